"""The pace of a search and the time that is left, steady enough to read.

The work of a training is spread evenly over the time that it took, and running trainings count with
what they have done so far. So an array whose trials end all at once makes no jump. Time in which
nothing was trained, as between two launches, does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_WINDOW_S = 60.0  # what is looked at: the last minute, or more where a training takes longer
TRAININGS_LONG = 2.0  # of the longest recent training, so that whole ones are seen
SILENT_S = 60.0  # without any training for so long there is no pace
LEAST_S = 1.0  # of training, before anything is said
MOST_SEEN = 2000  # latest trainings that are looked at
SLICES = 6  # of the window; their scatter gives the range
LEAST_RANGE_S = 6.0  # of training, and
LEAST_TRAININGS = 5  # that have ended, before a range is given
WIDTH = 2.0  # standard errors on each side: about 95 %
MOST_FACTOR = 4.0  # by which the slow end of the range may be slower than the estimate


@dataclass(frozen=True)
class Training:
    """A training at one budget, or the part of it that is done.

    Attributes:
        began: When its attempt was claimed: Unix time of the observer, s.
        ended: When it ended; now, if it runs.
        share: The share that is done: 1 if it has ended.
        epochs: The planned epochs that need no training any more: all of them once it has ended.
    """

    began: float
    ended: float
    share: float
    epochs: float


@dataclass(frozen=True)
class Estimate:
    """Trainings a second, and the seconds to go, with a range of about 95 % or none."""

    pace: float
    left_s: float
    left_range_s: tuple[float, float] | None


def estimate(
    trainings: Sequence[Training], left_epochs: float, now_s: float, any_running: bool
) -> Estimate | None:
    """Return the pace and the time left, or None if nothing has trained lately.

    Args:
        trainings: The latest trainings, and the running ones.
        left_epochs: The epochs that are left to train, without what running trainings have done.
        now_s: Unix time, s.
        any_running: Whether a training runs now.
    """
    seen = [one for one in trainings if one.ended > one.began]
    if not seen or not (any_running or now_s - max(one.ended for one in seen) < SILENT_S):
        return None
    latest = sorted(seen, key=lambda one: one.ended)[-MOST_SEEN:]
    longest = max(one.ended - one.began for one in latest[-20:])
    begin = now_s - max(LEAST_WINDOW_S, TRAININGS_LONG * longest)
    if len(latest) == MOST_SEEN:  # of those that ended before the first of them, none is known
        begin = max(begin, latest[0].ended)
    spent = _Spent(latest, begin, now_s)
    if spent.length < LEAST_S:
        return None
    pace = spent.rate_of([one.share for one in latest])
    rate = spent.rate_of([one.epochs for one in latest])
    if pace <= 0 or rate <= 0:
        return None
    n_ended = sum(one.share == 1 and one.ended > begin for one in latest)
    is_known = spent.length >= LEAST_RANGE_S and n_ended >= LEAST_TRAININGS
    left_s = left_epochs / rate
    if not is_known:
        return Estimate(pace, left_s, None)
    error = spent.error_of([one.epochs for one in latest]) / rate
    return Estimate(pace, left_s, (left_s / (1 + error), left_s / max(1 - error, 1 / MOST_FACTOR)))


class _Spent:
    """The time in which something was trained, and the share of each training in its slices.

    Attributes:
        length: Seconds of that time inside of the window.
    """

    def __init__(self, trainings: Sequence[Training], begin: float, end: float) -> None:
        began = np.array([one.began for one in trainings])
        ended = np.array([one.ended for one in trainings])
        start, stop = np.clip(began, begin, end), np.clip(ended, begin, end)
        # The seconds of the union of the intervals until each of their ends.
        order = np.argsort(start, kind="stable")
        reached = np.maximum.accumulate(stop[order])
        before = np.concatenate(([begin], reached[:-1]))
        gaps = np.maximum(start[order] - before, 0.0)
        self.length = float(reached[-1] - begin - gaps.sum())
        # All of an interval is inside of the union, so only the gaps before it are left out.
        gap_ends, gap_sums = start[order], np.cumsum(gaps)
        places = np.searchsorted(gap_ends, [start, stop], side="right")
        skipped = np.concatenate(([0.0], gap_sums))[places]
        first, last = start - begin - skipped[0], stop - begin - skipped[1]
        edges = np.linspace(0.0, self.length, SLICES + 1)
        inside = np.minimum(last[:, None], edges[1:]) - np.maximum(first[:, None], edges[:-1])
        self._shares = np.maximum(inside, 0.0) / (ended - began)[:, None]  # (trainings, slices)

    def rate_of(self, work: Sequence[float]) -> float:
        """Return the work a second."""
        return float(np.array(work) @ self._shares.sum(axis=1)) / self.length

    def error_of(self, work: Sequence[float]) -> float:
        """Return the half width of the range of the work a second, from its scatter."""
        rates = np.array(work) @ self._shares / (self.length / SLICES)
        return float(WIDTH * rates.std(ddof=1) / math.sqrt(SLICES))


def describe_left(estimate: Estimate) -> str:
    """Return the time left as text: ``about 3 min left (2 min to 5 min)``."""
    told = f"about {rough(estimate.left_s)} left"
    if estimate.left_range_s is None:
        return told
    low, high = map(rough, estimate.left_range_s)
    return told if low == high else f"{told} ({low} to {high})"


def rough(seconds: float) -> str:
    """Return a time to two digits or so, which does not change at every look."""
    if seconds < 10:
        return f"{math.ceil(seconds)} s"
    if seconds < 95:
        return f"{5 * round(seconds / 5)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    tens = 10 * round(minutes / 10)
    if tens < 24 * 60:
        return f"{tens // 60} h {tens % 60:02d} min" if tens % 60 else f"{tens // 60} h"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"
