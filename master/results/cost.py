"""What trials cost in device time, computed from their records.

A worker holds its devices from the claim of an attempt to its record. The time in which several
attempts train on a worker is shared by them, since they are the slots of one array. While none of
them trains, as when models are built, the claimed ones share the time. A worker on the CPU counts
as one device. An attempt that was lost left no record, so its time is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.folder.record import Record
from common.search.trial import Running
from master.results.usage import attempt_of


@dataclass(frozen=True)
class Held:
    """When an attempt was claimed, began to train, and ended (Unix time, s), and its devices."""

    trial: str
    worker: str
    claimed: float
    began: float
    ended: float
    devices: int = 1


def held_by(record: Record) -> Held | None:
    """Return the time that the attempt of a record held its devices; None if it never trained."""
    attempt = attempt_of(record)
    if attempt is None:
        return None
    ended = max(attempt.ended, attempt.until)
    began = min(attempt.began, ended)
    devices = (record.device or "").count(",") + 1
    return Held(
        record.trial, str(record.worker), min(attempt.claimed, began), began, ended, devices
    )


def held_now(running: Running, now_s: float) -> Held:
    """Return the time that a running attempt has held its device so far."""
    claimed = now_s - max(running.claimed_s, 0.0)
    return Held(running.trial.id, running.worker, claimed, claimed, now_s)


def device_seconds(held: Iterable[Held]) -> dict[str, float]:
    """Return the device seconds of each trial. Their sum is what the workers' devices were held."""
    by_worker: dict[str, list[Held]] = {}
    for one in held:
        by_worker.setdefault(one.worker, []).append(one)
    found: dict[str, float] = {}
    for own in by_worker.values():
        for one, seconds in zip(own, _shares(own), strict=True):
            found[one.trial] = found.get(one.trial, 0.0) + seconds * one.devices
    return found


def _shares(own: Sequence[Held]) -> list[float]:
    """Return the seconds of one worker that each of its attempts gets.

    ``of_training`` and ``of_claimed`` are the seconds until a moment of an attempt that trains all
    the time, and of one that waits all the time.
    """
    steps: dict[float, list[int]] = {}  # moment -> change in the number of training and claimed
    for one in own:
        for moment, training, claimed in (
            (one.claimed, 0, 1),
            (one.began, 1, -1),
            (one.ended, -1, 0),
        ):
            step = steps.setdefault(moment, [0, 0])
            step[0] += training
            step[1] += claimed
    until: dict[float, tuple[float, float]] = {}
    of_training = of_claimed = before = 0.0
    n_training = n_claimed = 0
    for moment in sorted(steps):
        if n_training:
            of_training += (moment - before) / n_training
        elif n_claimed:
            of_claimed += (moment - before) / n_claimed
        until[moment] = of_training, of_claimed
        n_training, n_claimed = n_training + steps[moment][0], n_claimed + steps[moment][1]
        before = moment
    return [
        until[one.ended][0] - until[one.began][0] + until[one.began][1] - until[one.claimed][1]
        for one in own
    ]


def cost_by_stage(by_trial: Mapping[str, float]) -> dict[str, float]:
    """Return the device seconds of each stage: those of its own trials, whoever promoted them."""
    found: dict[str, float] = {}
    for trial, seconds in by_trial.items():
        stage = trial.rpartition("-")[0]
        found[stage] = found.get(stage, 0.0) + seconds
    return found


def describe_cost(seconds: float) -> str:
    """Return device time as text: ``1.4 device-hours``, or in minutes or seconds if it is short."""
    if seconds < 1:
        return f"{seconds:.2g} device-seconds"
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            value = seconds / size
            return f"{value:,.0f} device-{unit}" if value >= 100 else f"{value:.3g} device-{unit}"
    return f"{seconds:.3g} device-seconds"
