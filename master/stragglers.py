"""Which running trials hold the search up, and what to do about each: values in, decisions out.

Lost trials (no heartbeat for a lease) are the queue's own affair; here are those that beat and yet get nowhere or too slowly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import NamedTuple

from common.search import Stragglers
from common.trial import Result, Running

MIN_PACES = 5  # epochs of its kind before one can be called slow
MIN_SLOW_S = 1.0  # an epoch below it is never slow: the system's hiccups last as long, and passing a trial on costs more
FIRST_EPOCH_GRACE_S = 10.0  # the first epoch after a claim holds the warm-up, which the median does not
OWN_LOOP_S = 600.0  # a loop of the user's own that has not said how long its reports take
SLOW_TRIALS = 3  # of a worker's latest, from which on the worker and not the trial is the reason
REMEMBERED_EPOCHS = 1000  # of a kind: enough for a median, and old conditions are forgotten
REMEMBERED_TRIALS = 20  # of a worker: one that has recovered is not called slow for ever
WAITING = "waiting"
OWN_LOOP = "own_loop"
PACED_PHASES = frozenset({"training", "evaluating", OWN_LOOP})  # where the time in an epoch says something about pace


class Kind(StrEnum):
    """What to do about a straggler."""

    STUCK = "stuck"  # take it away, back to the queue
    SLOW = "slow"  # give it to another worker, once
    KILL = "kill"  # slow with another worker as well: end it
    WARN = "warn"  # slow, but nobody else is there: only say so


@dataclass(frozen=True)
class Decision:
    """One straggler; ``reason`` is for the record and the user."""

    running: Running
    kind: Kind
    reason: str


class PaceKey(NamedTuple):
    """Epochs that can be compared: the same structure, device model, and about the same width."""

    group: str
    device_model: str
    width_bucket: int  # the width of the array rounded down to a power of two


def pace_key(group: str, device_model: str | None, array_width: int) -> PaceKey:
    """The kind of an epoch."""
    return PaceKey(group, device_model or "", 1 << (max(array_width, 1).bit_length() - 1))


def pace_of(running: Running) -> tuple[PaceKey, float] | None:
    """The last whole epoch of a running trial in seconds; None before its second has ended."""
    progress = running.progress
    if progress is None or progress.last_epoch_s is None:
        return None
    return pace_key(running.trial.group, progress.device_model, progress.array_width), progress.last_epoch_s


def pace_of_result(group: str, result: Result) -> tuple[PaceKey, float] | None:
    """The median epoch of an ended trial in seconds; None if it had no epoch but the first."""
    if result.epoch_s is None:
        return None
    return pace_key(group, result.device_model, result.array_width), result.epoch_s


class Paces:
    """What is known of how long epochs take: a bounded number of samples of each kind."""

    def __init__(self) -> None:
        self._samples: dict[PaceKey, deque[float]] = {}
        self._epochs: dict[tuple[str, int], int] = {}  # (trial, attempt): the last epoch that was counted
        self._workers: dict[str, dict[str, tuple[PaceKey, float]]] = {}  # its latest trials, each with its longest epoch yet

    @property
    def samples(self) -> Mapping[PaceKey, Sequence[float]]:
        """Seconds of whole epochs by kind, first epochs and warm-up left out."""
        return self._samples

    def add_running(self, running: Iterable[Running]) -> None:
        """Takes in what heartbeats say; the same epoch heard again adds nothing."""
        current: dict[tuple[str, int], int] = {}
        for one in running:
            attempt, pace = (one.fence.trial_id, one.fence.attempt), pace_of(one)
            current[attempt] = int(one.progress.epoch) if one.progress else 0
            if pace is not None and current[attempt] > self._epochs.get(attempt, 0):
                self._add(*pace)
            self._note_worker(one)
        self._epochs = current

    def add_result(self, group: str, result: Result) -> None:
        """Takes in an ended trial, which may have been too short for a heartbeat to tell of it."""
        pace = pace_of_result(group, result)
        if pace is not None:
            self._add(*pace)

    def of_worker(self) -> Mapping[str, Collection[tuple[PaceKey, float]]]:
        """For each worker the longest epoch of each of its latest trials."""
        return {worker: trials.values() for worker, trials in self._workers.items()}

    def _add(self, key: PaceKey, seconds: float) -> None:
        self._samples.setdefault(key, deque(maxlen=REMEMBERED_EPOCHS)).append(seconds)

    def _note_worker(self, one: Running) -> None:
        seconds = _comparable_s(one)
        if seconds is None or one.progress is None:
            return
        trials = self._workers.setdefault(one.worker, {})
        longest = max(seconds, one.progress.last_epoch_s or 0.0, trials.pop(one.trial.id, (None, 0.0))[1])
        trials[one.trial.id] = (pace_key(one.trial.group, one.progress.device_model, one.progress.array_width), longest)
        if len(trials) > REMEMBERED_TRIALS:
            del trials[next(iter(trials))]


def decide(
    running: Sequence[Running],
    paces: Mapping[PaceKey, Sequence[float]],
    policy: Stragglers,
    live_workers: Collection[str],
) -> list[Decision]:
    """What to do about the trials that are under lease; most need nothing.

    Args:
        running: all of them, since one that waits in a worker is judged by what the worker does.
        paces: seconds of whole epochs by kind, as ``Paces.samples``.
        policy: the search's ``[stragglers]``.
        live_workers: those that could take a trial over.
    """
    moving = {one.worker for one in running if not _waits(one) and one.still_s <= _limit_s(one, policy)}
    working = {one.worker for one in running if not _waits(one)}
    decisions = []
    for one in running:
        found = _stuck(one, policy, moving, working) or _slow(one, paces, policy, live_workers)
        if found is not None:
            decisions.append(found)
    return decisions


def slow_workers(paces: Paces, policy: Stragglers | None = None) -> frozenset[str]:
    """The workers that are slow on several of their latest trials, so that the worker is the reason."""
    factor = (policy or Stragglers()).slow_factor
    slow = set()
    for worker, epochs in paces.of_worker().items():
        medians = [(seconds, _median_s(paces.samples.get(key, ()))) for key, seconds in epochs]
        if sum(m is not None and seconds > max(factor * m, MIN_SLOW_S) for seconds, m in medians) >= SLOW_TRIALS:
            slow.add(worker)
    return frozenset(slow)


def _waits(one: Running) -> bool:
    return one.progress is not None and one.progress.phase == WAITING


def _limit_s(one: Running, policy: Stragglers) -> float:
    """How long it may stand still: a named phase's own limit, else the policy's."""
    if one.progress is not None and one.progress.phase_limit_s is not None:
        return one.progress.phase_limit_s
    if one.progress is not None and one.progress.phase == OWN_LOOP:
        return max(OWN_LOOP_S, policy.stuck_s)
    return policy.stuck_s


def _stuck(one: Running, policy: Stragglers, moving: Collection[str], working: Collection[str]) -> Decision | None:
    """One that waits follows its worker: it is stuck only if all that the worker trains stands still."""
    follows = _waits(one) and one.worker in working
    limit_s = _limit_s(one, policy)
    if one.worker in moving if follows else one.still_s <= limit_s:
        return None
    phase = one.progress.phase if one.progress else "starting"
    what = "its worker stands still" if follows else f"nothing has moved for {one.still_s:.0f} s"
    return Decision(one, Kind.STUCK, f"stuck on {one.worker}: {what} ({phase}, limit {limit_s:.0f} s)")


def _slow(one: Running, paces: Mapping[PaceKey, Sequence[float]], policy: Stragglers, live: Collection[str]) -> Decision | None:
    elapsed_s = _comparable_s(one)
    if elapsed_s is None or one.progress is None:
        return None
    usual_s = _median_s(paces.get(pace_key(one.trial.group, one.progress.device_model, one.progress.array_width), ()))
    if usual_s is None or elapsed_s <= max(policy.slow_factor * usual_s, MIN_SLOW_S):
        return None
    reason = f"slow on {one.worker}: {elapsed_s:.3g} s in this epoch, {elapsed_s / usual_s:.3g} times the usual {usual_s:.3g} s"
    if one.avoid not in (None, one.worker):  # its own name: the other worker went before it took the trial
        return Decision(one, Kind.KILL, f"{reason}; was slow on {one.avoid} as well")
    if not any(worker != one.worker for worker in live):
        return Decision(one, Kind.WARN, f"{reason}; no other worker is connected that could take it")
    return Decision(one, Kind.SLOW, reason)


def _comparable_s(one: Running) -> float | None:
    """Seconds in the current epoch that a median epoch can be compared with; None where the phase says nothing about pace."""
    if one.progress is None or one.progress.phase not in PACED_PHASES:
        return None
    elapsed_s = one.progress.epoch_elapsed_s
    first = one.progress.epoch < 1 or one.claimed_s - elapsed_s < FIRST_EPOCH_GRACE_S
    return elapsed_s - FIRST_EPOCH_GRACE_S if first else elapsed_s


def _median_s(samples: Sequence[float]) -> float | None:
    return median(samples) if len(samples) >= MIN_PACES else None
