"""Decisions about running trials that hold the search up: values in, decisions out.

The queue itself handles lost trials, which have sent no heartbeat for a lease. This module finds
trials that send heartbeats and yet do not move, and trials that are slower than comparable ones on
other machines. A slow worker is reported, and it hands its trials to a worker that has nothing to
do. No trial is taken from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import NamedTuple

from common.search.stage import Stragglers
from common.search.trial import Result, Running

MIN_PACES = 5  # comparable epochs on other machines before an epoch can be called slow
MIN_SLOW_S = 1.0  # a shorter epoch is never slow, because the system's hiccups last as long
# Seconds of warm-up in the first epoch after a claim. The median includes no warm-up.
FIRST_EPOCH_GRACE_S = 10.0
# Limit for a user's own training loop that has not said how long its reports take.
OWN_LOOP_S = 600.0
# A worker is called slow once so many of its latest epochs are, of one trial or several.
SLOW_EPOCHS = 3
REMEMBERED_EPOCHS = 1000  # per kind: enough for a median, and old conditions are forgotten
# Epochs remembered per worker, counted for each trial. It is limited, so that a worker that has
# recovered is not called slow for ever.
LATEST_EPOCHS = 20
WAITING, TRAINING, OWN_LOOP = "waiting", "training", "own_loop"


class Kind(StrEnum):
    """Kind of straggler, which says what to do about it."""

    STUCK = "stuck"  # take it away and queue it again
    SLOW = "slow"  # only report it
    OVERDUE = "overdue"  # it took longer than the user's limit: kill it


@dataclass(frozen=True)
class Decision:
    """Decision about one straggler. ``reason`` is for the record and the user."""

    running: Running
    kind: Kind
    reason: str


class PaceKey(NamedTuple):
    """Kind of epoch: the same structure, the same device model and about the same array width.

    Only epochs of one kind are compared.
    """

    group: str
    device_model: str
    width_bucket: int  # the width of the array rounded down to a power of two


class Sample(NamedTuple):
    """Seconds that an epoch took, and the machine it ran on."""

    machine: str
    seconds: float


def pace_key(group: str, device_model: str | None, array_width: int) -> PaceKey:
    """Return the kind of an epoch."""
    return PaceKey(group, device_model or "", 1 << (max(array_width, 1).bit_length() - 1))


def pace_of(running: Running) -> tuple[PaceKey, float] | None:
    """Return the kind and the seconds of the last whole epoch of a running trial.

    Return None before its second epoch has ended.
    """
    progress = running.progress
    if progress is None or progress.last_epoch_s is None:
        return None
    return pace_key(
        running.trial.group, progress.device_model, progress.array_width
    ), progress.last_epoch_s


def pace_of_result(group: str, result: Result) -> tuple[PaceKey, float] | None:
    """Return the kind of an ended trial's epochs and their median seconds.

    Return None if it had no epoch but the first.
    """
    if result.epoch_s is None:
        return None
    return pace_key(group, result.device_model, result.array_width), result.epoch_s


class Paces:
    """Known durations of epochs: a bounded number of samples of each kind.

    Args:
        machine_of: returns the machine of a worker, or None if it is unknown. Epochs on unknown
            machines are not compared.
    """

    def __init__(self, machine_of: Callable[[str], str | None]) -> None:
        self._machine_of = machine_of
        self._samples: dict[PaceKey, deque[Sample]] = {}
        # The last epoch that was counted, by (trial, attempt).
        self._epochs: dict[tuple[str, int], int] = {}
        # The latest epochs of each worker, by (trial, epoch number).
        self._workers: dict[str, dict[tuple[str, int], tuple[PaceKey, float]]] = {}

    @property
    def samples(self) -> Mapping[PaceKey, Sequence[Sample]]:
        """Whole epochs by kind, without first epochs and warm-up."""
        return self._samples

    def usual_s(self, key: PaceKey, worker: str) -> float | None:
        """Return the median seconds of a kind of epoch on machines other than the worker's.

        Two workers of one machine are never compared: what slows one slows the other at another
        time.

        Returns:
            The seconds, or None if too few epochs are known.
        """
        machine = self._machine_of(worker)
        if machine is None:
            return None
        others = [
            sample.seconds for sample in self._samples.get(key, ()) if sample.machine != machine
        ]
        return median(others) if len(others) >= MIN_PACES else None

    def add_running(self, running: Iterable[Running]) -> None:
        """Add the epochs that heartbeats report. An epoch that is reported again adds nothing."""
        current: dict[tuple[str, int], int] = {}
        for one in running:
            attempt, pace = (one.fence.trial_id, one.fence.attempt), pace_of(one)
            current[attempt] = int(one.progress.epoch) if one.progress else 0
            if pace is not None and current[attempt] > self._epochs.get(attempt, 0):
                self._add(one.worker, *pace)
            self._note_worker(one)
        self._epochs = current

    def add_result(self, group: str, result: Result) -> None:
        """Add an ended trial, which may have been too short for any heartbeat to report it."""
        pace = pace_of_result(group, result)
        if pace is not None:
            self._add(result.worker or "", *pace)

    def of_worker(self) -> Mapping[str, Collection[tuple[PaceKey, float]]]:
        """Return the kinds and seconds of each worker's latest epochs.

        For an epoch that still runs, the seconds are those so far.
        """
        return {worker: epochs.values() for worker, epochs in self._workers.items()}

    def _add(self, worker: str, key: PaceKey, seconds: float) -> None:
        machine = self._machine_of(worker)
        if machine is not None:
            self._samples.setdefault(key, deque(maxlen=REMEMBERED_EPOCHS)).append(
                Sample(machine, seconds)
            )

    def _note_worker(self, one: Running) -> None:
        seconds = _comparable_s(one)
        if seconds is None or one.progress is None:
            return
        epochs, number = self._workers.setdefault(one.worker, {}), int(one.progress.epoch)
        longest = max(seconds, epochs.pop((one.trial.id, number), (None, 0.0))[1])
        epochs[one.trial.id, number] = (
            pace_key(one.trial.group, one.progress.device_model, one.progress.array_width),
            longest,
        )
        if len(epochs) > LATEST_EPOCHS:
            del epochs[next(iter(epochs))]


def decide(running: Sequence[Running], paces: Paces, policy: Stragglers) -> list[Decision]:
    """Decide what to do about the trials that are under lease. Most need nothing.

    Args:
        running: all of them, because a trial that waits in a worker is judged by what that worker
            does.
        paces: known durations of epochs.
        policy: the search's ``[stragglers]``.
    """
    moving = {
        one.worker for one in running if not _waits(one) and one.still_s <= _limit_s(one, policy)
    }
    working = {one.worker for one in running if not _waits(one)}
    decisions = []
    for one in running:
        found = (
            _overdue(one, policy)
            or _stuck(one, policy, moving, working)
            or _slow(one, paces, policy)
        )
        if found is not None:
            decisions.append(found)
    return decisions


def slow_workers(paces: Paces, policy: Stragglers | None = None) -> frozenset[str]:
    """Return the workers of which several of the latest epochs were slow.

    The epochs may be of several trials, or of one trial that was slow again and again.
    """
    factor = (policy or Stragglers()).slow_factor
    slow = set()
    for worker, epochs in paces.of_worker().items():
        medians = [(seconds, paces.usual_s(key, worker)) for key, seconds in epochs]
        if (
            sum(m is not None and seconds > max(factor * m, MIN_SLOW_S) for seconds, m in medians)
            >= SLOW_EPOCHS
        ):
            slow.add(worker)
    return frozenset(slow)


def _waits(one: Running) -> bool:
    return one.progress is not None and one.progress.phase == WAITING


def _limit_s(one: Running, policy: Stragglers) -> float:
    """Return the seconds that a trial may stand still: its phase's own limit, else the policy's."""
    if one.progress is not None and one.progress.phase_limit_s is not None:
        return one.progress.phase_limit_s
    if one.progress is not None and one.progress.phase == OWN_LOOP:
        return max(OWN_LOOP_S, policy.stuck_s)
    return policy.stuck_s


def _stuck(
    one: Running, policy: Stragglers, moving: Collection[str], working: Collection[str]
) -> Decision | None:
    """Return a decision if a trial is stuck, else None.

    A trial that waits follows its worker: it is stuck only if all that the worker trains stands
    still.
    """
    follows = _waits(one) and one.worker in working
    limit_s = _limit_s(one, policy)
    if one.worker in moving if follows else one.still_s <= limit_s:
        return None
    phase = one.progress.phase if one.progress else "starting"
    what = "its worker stands still" if follows else f"nothing has moved for {one.still_s:.0f} s"
    return Decision(
        one, Kind.STUCK, f"stuck on {one.worker}: {what} ({phase}, limit {limit_s:.0f} s)"
    )


def _overdue(one: Running, policy: Stragglers) -> Decision | None:
    if policy.limit_s is None or one.claimed_s <= policy.limit_s:
        return None
    return Decision(
        one,
        Kind.OVERDUE,
        f"took {one.claimed_s:.0f} s on {one.worker}, more than [stragglers] limit_s = "
        f"{policy.limit_s:g}",
    )


def _slow(one: Running, paces: Paces, policy: Stragglers) -> Decision | None:
    elapsed_s = _comparable_s(one)
    if elapsed_s is None or one.progress is None:
        return None
    usual_s = paces.usual_s(
        pace_key(one.trial.group, one.progress.device_model, one.progress.array_width), one.worker
    )
    if usual_s is None or elapsed_s <= max(policy.slow_factor * usual_s, MIN_SLOW_S):
        return None
    reason = (
        f"slow on {one.worker}: {elapsed_s:.3g} s in this epoch, {elapsed_s / usual_s:.3g} times "
        f"the usual {usual_s:.3g} s elsewhere"
    )
    return Decision(one, Kind.SLOW, reason)


def _comparable_s(one: Running) -> float | None:
    """Return the seconds of the current epoch that can be compared with a median epoch.

    Return None if the trial's phase says nothing about its pace.
    """
    if one.progress is None or one.progress.phase != TRAINING:
        return None
    elapsed_s = one.progress.epoch_elapsed_s
    first = one.progress.epoch < 1 or one.claimed_s - elapsed_s < FIRST_EPOCH_GRACE_S
    return elapsed_s - FIRST_EPOCH_GRACE_S if first else elapsed_s
