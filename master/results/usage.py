"""What the workers of a search did with their time, computed from its records.

From the first claim to the last record that trained, the time of each worker has six parts:

- *trained*: steps and validation. The trials of one array train at the same time, so this is the
  union of their intervals;
- *wrote*: checkpoints, predictions, records, and whatever else happens between two steps of a
  claim;
- *prepared*: from a claim to its first step, while models are built and arrays are compiled;
- *started*: until the worker's first claim;
- *waited*: no trial was claimed, but another claim came later. The worker waited at a barrier, or
  was on its way to the next claim;
- *left*: after the worker's last record.

A record may not say when its attempt was claimed, began and stopped training (``claimed_at``,
``began_at``, ``trained_until``). Such an attempt is assumed to have trained for its seconds up to
``ended_at``. Its times of preparing and writing then count as waited.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from common.folder.record import ROUNDING_EPOCHS, Record

Interval = tuple[float, float]


@dataclass(frozen=True)
class Times:
    """The times of one worker inside the window, in seconds. Their sum is the window's length."""

    trained: float = 0.0
    wrote: float = 0.0
    prepared: float = 0.0
    started: float = 0.0
    waited: float = 0.0
    left: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> float:
        """The sum of all times."""
        return float(sum(getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Usage:
    """The times of all workers. ``began`` and ``ended`` are the window, in Unix seconds."""

    began: float
    ended: float
    workers: dict[str, Times]

    @property
    def seconds(self) -> float:
        """The length of the window."""
        return self.ended - self.began

    @property
    def all(self) -> Times:
        """The sum over the workers."""
        return sum(self.workers.values(), Times())

    @property
    def trained_share(self) -> float:
        """The share of the workers' time in the window that was spent on training."""
        return self.all.trained / self.all.total if self.all.total else 0.0


@dataclass(frozen=True)
class Attempt:
    """The times of one attempt, in Unix seconds.

    It was claimed, took its first step (``began``) and its last (``until``), and was written
    (``ended``). ``trained`` is how many of the seconds in between were spent on training.
    """

    claimed: float
    began: float
    until: float
    ended: float
    trained: float


def attempt_of(record: Record) -> Attempt | None:
    """Return the times of the record's attempt.

    Return None if it never trained or has no worker. The seconds of a promoted trial include those
    of its earlier rungs, so these are read from the curves and subtracted.
    """
    if record.worker is None or record.seconds <= 0:
        return None
    earlier = 0.0
    if record.passed:
        points = zip(record.curves.get("epoch", ()), record.curves.get("seconds", ()), strict=False)
        known = [
            s
            for e, s in points
            if e is not None and s is not None and e <= record.passed[-1] + ROUNDING_EPOCHS
        ]
        earlier = max(known, default=0.0)
    until = record.trained_until or record.ended_at
    trained = max(record.seconds - earlier, 0.0)
    began = record.began_at or until - trained
    claimed = record.claimed_at or began
    return Attempt(claimed, began, until, record.ended_at, min(trained, until - began))


def use_of_time(records: Iterable[Record]) -> Usage:
    """Return what each worker did between the first claim and the last record that trained.

    Raises:
        ValueError: no record trained.
    """
    by_worker: dict[str, list[Attempt]] = {}
    for record in records:
        if (attempt := attempt_of(record)) is not None:
            by_worker.setdefault(str(record.worker), []).append(attempt)
    if not by_worker:
        raise ValueError("no record has training times: nothing to count")
    began = min(a.claimed for attempts in by_worker.values() for a in attempts)
    ended = max(a.ended for attempts in by_worker.values() for a in attempts)
    return Usage(
        began,
        ended,
        {name: _times(attempts, began, ended) for name, attempts in sorted(by_worker.items())},
    )


def _times(attempts: Sequence[Attempt], began: float, ended: float) -> Times:
    """Return the times of one worker.

    Overlapping time counts as the first of trained, wrote and prepared.
    """
    training = [(a.began, a.until) for a in attempts]
    writing = [*training, *((a.until, a.ended) for a in attempts)]
    claimed = [*writing, *((a.claimed, a.began) for a in attempts)]
    trained = _compute_trained(attempts)
    first, last = min(a.claimed for a in attempts), max(a.ended for a in attempts)
    return Times(
        trained=trained,
        wrote=_length(writing) - trained,
        prepared=_length(claimed) - _length(writing),
        started=first - began,
        waited=last - first - _length(claimed),
        left=ended - last,
    )


def _compute_trained(attempts: Sequence[Attempt]) -> float:
    """Return the seconds in which at least one attempt trained.

    An array pauses while its ended trials are written, so an attempt trains only for a share of its
    interval. Of the attempts that are in the array at the same time, the largest share counts.
    """
    total = 0.0
    for start, end in _pieces(attempts):
        total += (end - start) * max(
            a.trained / (a.until - a.began) for a in attempts if a.began <= start and end <= a.until
        )
    return total


def _pieces(attempts: Sequence[Attempt]) -> Iterator[Interval]:
    """Yield the intervals between consecutive begins and ends with an attempt in training."""
    edges = sorted({edge for a in attempts for edge in (a.began, a.until)})
    for start, end in pairwise(edges):
        if any(a.began <= start and end <= a.until for a in attempts):
            yield start, end


def _length(intervals: Iterable[Interval]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total
