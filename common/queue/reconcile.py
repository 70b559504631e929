"""Bring Redis and the folder to the same account of which trials ended.

A worker writes its record before it reports ``finish``. So an ended record of the current attempt
is true even if its worker died in between. What Redis has decided by itself (a kill, too many
losses) is written to the folder.

Where the two differ, as after Redis has lost writes, one rule applies: the highest ended attempt
with a record counts. If both have the same attempt, the record counts, since it was durable first.
A record below the attempt of a trial that waits or runs does not end it.

A record is the end of a trial at the budget of its attempt. If the trial was promoted since, the
record is history: it does not end the trial, and does not replace what a later attempt left. A
record of a longer budget than the trial is known to have is the trace of a promotion that Redis has
lost, and gives the trial that budget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from common.folder.record import Record
from common.folder.records import SearchFolder, StageFolder
from common.queue import wire
from common.queue.answers import Taken, Verdict
from common.queue.trial_queue import TrialQueue
from common.search.trial import Fence, Result, Running, Trial

NOTHING_KNOWN: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Reaped:
    """The outcome of leases that had run out, as ids of trials."""

    returned: tuple[str, ...] = ()  # back in the queue
    failed: tuple[str, ...] = ()  # lost too often
    finished: tuple[str, ...] = ()  # they had a record already

    def __bool__(self) -> bool:
        return bool(self.returned or self.failed or self.finished)


def reap(
    queue: TrialQueue,
    folder: SearchFolder,
    master: bool,
    endings: Mapping[str, str] = NOTHING_KNOWN,
) -> Reaped:
    """Handle leases that have run out.

    Args:
        queue: the queue of the search.
        folder: the folder of the same search.
        master: whether to note that a master lives.
        endings: worker -> how it ended, in words, where that is known.

    Raises:
        QueueError: Redis is unavailable.
        CheckpointError: a record cannot be written. The next launch writes it again.
    """
    returned: list[str] = []
    failed: list[str] = []
    finished: list[str] = []
    for fence, worker in queue.tick(master=master).expired:
        if finish_from_record(queue, folder, fence):
            finished.append(fence.trial_id)
        elif taken := queue.expire(fence, how=endings.get(worker, "")):
            write_verdict(queue, folder, taken)
            (failed if taken.result else returned).append(fence.trial_id)
    return Reaped(tuple(returned), tuple(failed), tuple(finished))


def finish_from_record(queue: TrialQueue, folder: SearchFolder, fence: Fence) -> bool:
    """Report ``finish`` for a worker that wrote its record and then was lost.

    A record of the same attempt number but of another budget is from before Redis lost its last
    writes. It says nothing about this attempt.

    Returns:
        False if there is no such record.
    """
    record = stage_of(folder, fence.trial_id).record(fence.trial_id, fence.attempt)
    if record is None or record.search_id != queue.search_id:
        return False
    (trial,) = queue.trials_of([fence.trial_id])
    if trial is not None and trial.epochs != record.budget_epochs:
        return False
    queue.finish([(fence, record.result())])
    return True


def write_verdict(queue: TrialQueue, folder: SearchFolder, taken: Taken) -> None:
    """Write the record of a trial that Redis has ended: killed, or failed by losses.

    Nothing is written if the trial went back to the queue. If that attempt has a record already,
    that record counts, and is reported to Redis.
    """
    trial = queue.trial(taken.fence.trial_id)
    if trial is not None and taken.result is not None:
        _tell_folder(queue, folder, [(trial, taken.fence.attempt, taken.result)])


def _tell_folder(
    queue: TrialQueue, folder: SearchFolder, ended: Sequence[tuple[Trial, int, Result]]
) -> int:
    """Write records of what Redis knows to have ended.

    Returns:
        The number of trials whose record existed with another result, which Redis now has.
    """
    standing = {record.trial: record for record in write_ended(folder, queue.search_id, ended)}
    differ = [
        (trial, standing[trial.id])
        for trial, _, result in ended
        if not _same(result, standing[trial.id].result())
    ]
    return sum(_restore(queue, trial, record) for trial, record in differ)


def _restore(queue: TrialQueue, trial: Trial, record: Record, floor: int = 0) -> bool:
    """End a trial as a record says, with the budget of the record's attempt."""
    if record.budget_epochs != trial.epochs:
        if not _is_ascending(*record.passed, record.budget_epochs):
            return False  # no promotion leaves such budgets: another program wrote it
        trial = replace(trial, epochs=record.budget_epochs, passed=record.passed)
    return queue.restore(trial, record.attempt, record.result(), floor)


def counts_for(record: Record, trial: Trial) -> bool:
    """Return whether a record can be the end of a trial with its current budget.

    It can if it is of that budget, or of a later promotion's.
    """
    is_longer = record.rung > trial.rung and record.budget_epochs > trial.epochs
    return record.budget_epochs == trial.epochs or is_longer


def _is_ascending(*budgets: float) -> bool:
    return all(0 < epochs < math.inf for epochs in budgets) and list(budgets) == sorted(
        set(budgets)
    )


def _same(one: Result, other: Result) -> bool:
    return one == other or wire.result_out(one) == wire.result_out(other)  # nan differs from itself


def write_ended(
    folder: SearchFolder, search_id: str, ended: Iterable[tuple[Trial, int, Result]]
) -> list[Record]:
    """Write the records of attempts that Redis knows to have ended. Existing records stay.

    Returns:
        The records as they are now in the folder.
    """
    by_stage: dict[str, list[Record]] = {}
    for trial, attempt, result in ended:
        by_stage.setdefault(trial.stage, []).append(
            Record.of(search_id, trial, attempt, result, ended_at=time.time())
        )
    standing: list[Record] = []
    for stage, records in by_stage.items():
        folder.stage(stage).make()
        for record in records:
            folder.stage(stage).set_damaged_aside(record.trial, record.attempt, search_id)
        standing += folder.stage(stage).write_records(records)
    return standing


def restore(
    queue: TrialQueue,
    trials: Iterable[Trial],
    records: Iterable[Record],
    attempts: Mapping[str, int],
) -> int:
    """End trials as the folder's records say, if Redis does not know them or has them waiting.

    Call this before the other trials are published, or a worker may train them again in between.

    Args:
        queue: the queue of the search.
        trials: the trials that will be published, each with its current budget.
        records: the highest ended attempt of each.
        attempts: trial id -> highest attempt number that the folder knows. If a later attempt than
            the record's has left a saved state or a damaged record, the trial goes on above that. A
            trial that completed has ended nevertheless: the state is of a longer budget, whose
            promotion is lost, or would come to the same end.

    Returns:
        The number of trials that were ended.
    """
    known = {record.trial: record for record in records if record.search_id == queue.search_id}
    if not known:
        return 0
    settled = {trial_id for trial_id, _, _ in queue.read_ended()} | {
        running.fence.trial_id for running in queue.running()
    }
    waiting = (
        (trial, known[trial.id])
        for trial in trials
        if trial.id in known and trial.id not in settled
    )
    ended = ((trial, record) for trial, record in waiting if counts_for(record, trial))
    restored = sum(
        _restore(queue, trial, record, attempts.get(trial.id, 0)) for trial, record in ended
    )
    if restored:
        queue.bells.ended.ring()
    return restored


@dataclass(frozen=True)
class Reconciled:
    """What was corrected, as numbers of trials."""

    # Ended in the folder, but not in Redis, or there with another ending.
    to_redis: int = 0
    to_folder: int = 0  # ended in Redis, without a record


def reconcile(
    queue: TrialQueue, folder: SearchFolder, trials: Iterable[Trial], records: Iterable[Record]
) -> Reconciled:
    """Bring Redis and the folder of one stage to the same account of what ended.

    Args:
        queue: the queue of the search.
        folder: the folder of the same search.
        trials: the stage's trials, each with its current budget. All are published, but perhaps not
            promoted yet.
        records: the highest ended attempt of each trial of the stage.

    Raises:
        QueueError: Redis is unavailable.
        CheckpointError: the folder cannot be written.
    """
    known = {record.trial: record for record in records if record.search_id == queue.search_id}
    running = {running.fence.trial_id: running for running in queue.running()}
    ended = {trial_id: (attempt, result) for trial_id, attempt, result in queue.read_ended()}
    to_redis, unsure = 0, []
    for trial in trials:
        record, accepted = known.get(trial.id), ended.get(trial.id)
        if accepted is not None and (
            record is None or record.attempt < accepted[0] or record.rung < accepted[1].rung
        ):
            unsure.append(trial.id)
        elif record is not None and (accepted is None or not _tells(record, accepted)):
            to_redis += _adopt(
                queue, trial, record, running.get(trial.id), has_ended=accepted is not None
            )
    missing = [
        own for own in queue.endings_of(unsure) if not _stands(folder, queue.search_id, *own)
    ]
    to_redis += _tell_folder(queue, folder, missing)
    if to_redis:
        queue.bells.ended.ring()
    return Reconciled(to_redis, len(missing))


def _stands(
    folder: SearchFolder, search_id: str, trial: Trial, attempt: int, result: Result
) -> bool:
    """Return whether the folder has the record of exactly this ending."""
    record = stage_of(folder, trial.id).record(trial.id, attempt)
    of_it = record is not None and (record.search_id, record.budget_epochs) == (
        search_id,
        trial.epochs,
    )
    return record is not None and of_it and _same(record.result(), result)


def _tells(record: Record, accepted: tuple[int, Result]) -> bool:
    return record.attempt == accepted[0] and _same(record.result(), accepted[1])


def _adopt(
    queue: TrialQueue, trial: Trial, record: Record, running: Running | None, has_ended: bool
) -> bool:
    """Report a record to Redis, unless it is history for a trial that waits or trains."""
    if (
        running is not None
        and running.fence.attempt == record.attempt
        and running.trial.epochs == record.budget_epochs
    ):
        return queue.finish([(running.fence, record.result())]) == [Verdict.OK]
    return (has_ended or counts_for(record, trial)) and _restore(queue, trial, record)


def stage_of(folder: SearchFolder, trial_id: str) -> StageFolder:
    """Return the stage's folder, which has the trial's files."""
    return folder.stage(trial_id.rsplit("-", 1)[0])
