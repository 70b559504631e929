"""The pace of a search and the time that is left, steady enough to read.

The work of a training is spread evenly over the time that it took, and running trainings count with
what they have done so far. So an array whose trials end all at once makes no jump. Time in which
nothing was trained, as between two launches, does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from master.results.usage import Interval

LEAST_WINDOW_S = 60.0  # what is looked at: the last minute, or more where a training takes longer
TRAININGS_LONG = 2.0  # of the longest recent training, so that whole ones are seen
SILENT_S = 60.0  # without any training for so long there is no pace
LEAST_S = 1.0  # of training, before anything is said
MOST_SEEN = 1000  # latest trainings that are looked at
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
        epochs: The planned epochs that it has done away with.
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
    busy = _union([(max(one.began, begin), min(one.ended, now_s)) for one in latest])
    length = sum(end - start for start, end in busy)
    if length < LEAST_S:
        return None
    pace = sum(one.share * _overlap(one, busy) for one in latest) / length
    rate = sum(one.epochs * _overlap(one, busy) for one in latest) / length
    if pace <= 0 or rate <= 0:
        return None
    n_ended = sum(one.share == 1 and one.ended > begin for one in latest)
    is_known = length >= LEAST_RANGE_S and n_ended >= LEAST_TRAININGS
    return Estimate(
        pace,
        left_epochs / rate,
        _find_range(latest, busy, length, rate, left_epochs) if is_known else None,
    )


def _find_range(
    latest: Sequence[Training],
    busy: Sequence[Interval],
    length: float,
    rate: float,
    left_epochs: float,
) -> tuple[float, float]:
    rates = [
        sum(one.epochs * _overlap(one, piece) for one in latest) / (length / SLICES)
        for piece in _cut(busy, length / SLICES)
    ]
    error = WIDTH * stdev(rates) / math.sqrt(len(rates)) / fmean(rates) if len(rates) > 1 else 0.0
    slow = max(1 - error, 1 / MOST_FACTOR)
    return left_epochs / (rate * (1 + error)), left_epochs / (rate * slow)


def _overlap(one: Training, pieces: Sequence[Interval]) -> float:
    """Return the share of a training's time that lies in the intervals."""
    inside = sum(max(0.0, min(one.ended, end) - max(one.began, start)) for start, end in pieces)
    return inside / (one.ended - one.began)


def _union(intervals: Sequence[Interval]) -> list[Interval]:
    found: list[Interval] = []
    for start, end in sorted(own for own in intervals if own[1] > own[0]):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def _cut(busy: Sequence[Interval], size: float) -> list[list[Interval]]:
    """Cut a union of intervals into parts of the same length."""
    parts: list[list[Interval]] = [[]]
    room = size
    for start, end in busy:
        while end - start > room and len(parts) < SLICES:
            parts[-1].append((start, start + room))
            start, room = start + room, size
            parts.append([])
        parts[-1].append((start, end))
        room -= end - start
    return parts


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
