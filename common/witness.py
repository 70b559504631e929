"""Redis and the folder as two witnesses of what ended: each mends what the other lacks.

A worker writes its record before it says `finish`, so an ended record of the current attempt is the truth even if
its worker died in between; and what Redis has decided by itself (a kill, too many losses) is written to the folder.

One rule says what counts where they differ, as after writes that Redis has lost: the highest ended attempt with a record. Of two words
about one attempt the record counts, which was durable first. A trial that waits or runs is not ended by a record below its attempt.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common import wire
from common.queue import TrialQueue
from common.record import Record
from common.records import SearchFolder, StageFolder
from common.trial import Fence, Result, Trial
from common.verdict import Taken, Verdict


@dataclass(frozen=True)
class Reaped:
    """What became of the leases that had run out."""

    returned: tuple[str, ...] = ()  # back to the queue
    failed: tuple[str, ...] = ()  # lost too often
    finished: tuple[str, ...] = ()  # their record was there already

    def __bool__(self) -> bool:
        return bool(self.returned or self.failed or self.finished)


def reap(queue: TrialQueue, folder: SearchFolder, master: bool) -> Reaped:
    """Deals with leases that have run out; ``master``: also notes that a master lives.

    Raises:
        QueueError: Redis is away.
        CheckpointError: a verdict cannot be written (it is written again at the next launch).
    """
    returned: list[str] = []
    failed: list[str] = []
    finished: list[str] = []
    for fence, _worker in queue.tick(master=master).expired:
        if finish_from_record(queue, folder, fence):
            finished.append(fence.trial_id)
        elif taken := queue.expire(fence):
            write_verdict(queue, folder, taken)
            (failed if taken.result else returned).append(fence.trial_id)
    return Reaped(tuple(returned), tuple(failed), tuple(finished))


def finish_from_record(queue: TrialQueue, folder: SearchFolder, fence: Fence) -> bool:
    """Says `finish` on behalf of a worker that wrote its record and was not heard again; False if there is no record."""
    record = stage_of(folder, fence.trial_id).record(fence.trial_id, fence.attempt)
    if record is None or record.search_id != queue.search_id:
        return False
    queue.finish([(fence, record.result())])
    return True


def write_verdict(queue: TrialQueue, folder: SearchFolder, taken: Taken) -> None:
    """Writes the record of a verdict that Redis holds (killed, failed by losses); nothing if the trial went back to pending.

    Where that attempt has a record already, it counts, and Redis hears of it.
    """
    trial = queue.trial(taken.fence.trial_id)
    if trial is not None and taken.result is not None:
        _tell_folder(queue, folder, [(trial, taken.fence.attempt, taken.result)])


def _tell_folder(queue: TrialQueue, folder: SearchFolder, ended: Sequence[tuple[Trial, int, Result]]) -> int:
    """Writes what Redis knows to have ended; returns of how many a record with another result stood there, which Redis has now."""
    standing = {record.trial: record for record in write_ended(folder, queue.search_id, ended)}
    differ = [(trial, standing[trial.id]) for trial, _, result in ended if not _same(result, standing[trial.id].result())]
    return sum(queue.restore(trial, record.attempt, record.result()) for trial, record in differ)


def _same(one: Result, other: Result) -> bool:
    return one == other or wire.result_out(one) == wire.result_out(other)  # nan differs from itself


def write_ended(folder: SearchFolder, search_id: str, ended: Iterable[tuple[Trial, int, Result]]) -> list[Record]:
    """Writes the records of attempts that Redis knows to have ended; existing ones stay. Returns them as the folder has them now."""
    by_stage: dict[str, list[Record]] = {}
    for trial, attempt, result in ended:
        by_stage.setdefault(trial.stage, []).append(Record.of(search_id, trial, attempt, result, ended_at=time.time()))
    standing: list[Record] = []
    for stage, records in by_stage.items():
        folder.stage(stage).make()
        for record in records:
            folder.stage(stage).set_damaged_aside(record.trial, record.attempt, search_id)
        standing += folder.stage(stage).write_records(records)
    return standing


def restore(queue: TrialQueue, trials: Iterable[Trial], records: Iterable[Record], attempts: Mapping[str, int]) -> int:
    """Ends the trials that the folder's records say have ended, of those that Redis does not know or has waiting; returns how many.

    To be done before the others are published: a worker would train them again in between.

    Args:
        trials: those that are to be published.
        records: the highest ended attempt of each.
        attempts: trial id -> highest attempt number that the folder knows. Where a later attempt than the record's has left something, a
            saved state or a damaged record, the trial goes on above that.
    """
    known = {record.trial: record for record in records if record.search_id == queue.search_id}
    if not known:
        return 0
    settled = {trial_id for trial_id, _, _ in queue.ended()} | {running.fence.trial_id for running in queue.running()}
    ended = ((trial, known[trial.id]) for trial in trials if trial.id in known and trial.id not in settled)
    return sum(queue.restore(trial, record.attempt, record.result(), attempts.get(trial.id, 0)) for trial, record in ended)


@dataclass(frozen=True)
class Reconciled:
    """What the two witnesses had to tell each other; counts of trials."""

    to_redis: int = 0  # ended in the folder, not in Redis or as something else
    to_folder: int = 0  # ended in Redis, without a record


def reconcile(queue: TrialQueue, folder: SearchFolder, trials: Iterable[Trial], records: Iterable[Record]) -> Reconciled:
    """Brings Redis and the folder of one stage to the same account of what ended.

    Args:
        trials: the stage's trials, all published already.
        records: the stage's records, the highest ended attempt of each trial.

    Raises:
        QueueError: Redis is away.
        CheckpointError: the folder cannot be written.
    """
    known = {record.trial: record for record in records if record.search_id == queue.search_id}
    fences = {running.fence.trial_id: running.fence for running in queue.running()}
    ended = {trial_id: (attempt, result) for trial_id, attempt, result in queue.ended()}
    to_redis, missing = 0, []
    for trial in trials:
        record, accepted = known.get(trial.id), ended.get(trial.id)
        if accepted is not None and (record is None or record.attempt < accepted[0]):
            missing.append((trial, *accepted))
        elif record is not None and (accepted is None or record.attempt > accepted[0] or not _same(accepted[1], record.result())):
            to_redis += _adopt(queue, trial, record, fences.get(trial.id))
    to_redis += _tell_folder(queue, folder, missing)
    return Reconciled(to_redis, len(missing))


def _adopt(queue: TrialQueue, trial: Trial, record: Record, fence: Fence | None) -> bool:
    if fence is not None and fence.attempt == record.attempt:
        return queue.finish([(fence, record.result())]) == [Verdict.OK]
    return queue.restore(trial, record.attempt, record.result())


def stage_of(folder: SearchFolder, trial_id: str) -> StageFolder:
    """The part of the folder that a trial's files are in."""
    return folder.stage(trial_id.rsplit("-", 1)[0])
