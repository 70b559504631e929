"""What is left of a trial: weights, record, and only then the word to Redis."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from common import durable
from common.checkpoint_name import MOST_NAMED, CheckpointName, epoch_number
from common.errors import HOPELESS, QueueError
from common.record import Record
from common.records import StageFolder
from common.trial import Claim, Fence, Result, TrialState
from common.verdict import Verdict
from common.witness import stage_of
from worker import legible
from worker.heartbeat import Heartbeat
from worker.keeping import Kept, keep
from worker.place import SearchFileError
from worker.raising import Raising
from worker.session import Session
from worker.training.diagnosis import diagnosed
from worker.training.engine import Outcome, View

ENDED_WELL = (TrialState.COMPLETED, TrialState.STOPPED)  # those whose weights may be worth keeping
STATE_INTERVAL_S = 30.0  # at most this much work is lost with a worker


class Recorder:
    """Records the trials of one claim's array, and tells Redis; keeps what Redis could not hear."""

    def __init__(self, session: Session, heartbeat: Heartbeat, say: Callable[[str], None]) -> None:
        self._session = session
        self._heartbeat = heartbeat
        self._say = say
        self._ended: list[Outcome] = []  # not written yet: whose the folder is could not be told
        self._unheard: list[tuple[Fence, Result]] = []  # written
        self._raising = Raising(session.queue, heartbeat, say)
        self._with_state: set[str] = set()  # trials of which this worker wrote a resume state
        self._saved_at = time.monotonic()
        self._told_unsure = False

    @property
    def unheard(self) -> set[str]:
        """Trials that have ended here, but of which Redis has not heard yet."""
        return {o.job.id for o in self._ended} | {fence.trial_id for fence, _ in self._unheard} | self._raising.trials()

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Writes weights and records of ended trials, then tells Redis if it is there; what raised goes to another machine first.

        Raises:
            CheckpointError: the folder cannot be written; the leases are still held.
            QueueError: no waiting for Redis helps; the same.
        """
        metric = self._session.search.metric
        self._ended += [judged(outcome, metric) for outcome in outcomes]
        self.flush()

    def record_failure(self, claims: Sequence[Claim], reason: str, traceback: str | None) -> None:
        """Ends trials that could not even begin, unless another machine is to try them.

        Raises:
            CheckpointError: the folder cannot be written.
            QueueError: no waiting for Redis helps.
        """
        reason, traceback = legible.legible(reason, legible.MOST_REASON), legible.traceback(traceback)
        for claim in claims:
            result = Result(TrialState.FAILED, reason, worker=self._heartbeat.info.worker)
            record = Record.of(self._search_id, claim.trial, claim.fence.attempt, result, traceback=traceback, **self._place())
            self._raising.add(claim.fence, record)
        self.flush()

    def flush(self) -> bool:
        """Writes what is not written yet, and tells Redis what it has not heard.

        Returns:
            False if Redis is away (the heartbeat says so) or nobody can tell whose the folder is; the leases are kept alive.

        Raises:
            CheckpointError: the folder cannot be written.
            QueueError: no waiting for Redis helps.
        """
        try:
            sure = self._write_ended()
            self._tell()  # first, so that nothing which Redis refuses of those that raised holds back what ended beside them
            if sure:
                for fence, record in self._raising.ruled():
                    self._write_records(record.stage, [(fence, record)])
                self._tell()
        except HOPELESS:
            raise
        except QueueError:
            return False
        return sure

    def save_states(self, views: Sequence[View], now: bool = False) -> None:
        """Saves where unfinished trials stand, every 30 s at most unless ``now``.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        if not views or (not now and time.monotonic() - self._saved_at < STATE_INTERVAL_S) or not self._is_ours():
            return
        ours = [view for view in views if self._heartbeat.holds(view.job.claim.fence)]
        durable.replace_all({self._resume_path(view.job.claim): view.state() for view in ours})
        self._with_state |= {view.job.claim.trial.id for view in ours}
        self._saved_at = time.monotonic()

    # -- pieces ------------------------------------------------------------------------------------------------------

    @property
    def _search_id(self) -> str:
        return self._session.queue.search_id

    def _stage(self, name: str) -> StageFolder:
        return self._session.folder.stage(name)

    def _resume_path(self, claim: Claim) -> Path:
        return self._stage(claim.trial.stage).resume_path(claim.trial.id, claim.fence.attempt)

    def _keep(self, folder: StageFolder, outcomes: Sequence[Outcome]) -> dict[str, Kept]:
        """Writes the weights, and what goes with them, of those that rank within ``keep``; by trial id."""
        search = self._session.search
        names = {o.job.claim.trial.id: checkpoint_name(o, search.metric) for o in outcomes if o.checkpoint is not None and _good(o)}
        chosen = within_keep(names, folder.checkpoints(search.mode), search.keep, search.mode)
        best = {names[o.job.claim.trial.id]: o for o in outcomes if o.job.claim.trial.id in chosen}
        return keep(folder, best, self._say, lambda: self._heartbeat.beat("evaluating"))

    def _record(self, outcome: Outcome, kept: Kept | None) -> Record:
        result = Result(
            outcome.state,
            outcome.reason,
            outcome.val_acc,
            outcome.val_loss,
            outcome.epochs,
            kept.checkpoint if kept else None,
            self._heartbeat.info.worker,
            outcome.seconds,
            outcome.epoch_s,
            self._heartbeat.info.device_model,
            outcome.array_width,
            outcome.value,
        )
        claim = outcome.job.claim
        more = {
            "metric": self._session.search.metric,
            "mode": self._session.search.mode,
            "metrics": outcome.metrics,
            "best_epoch": outcome.best_epoch,
            "first_loss": outcome.first_loss,
            "curves": outcome.curves,
            "traceback": outcome.traceback,
            "snapshots": kept.snapshots if kept else [],
            "portrait": kept.portrait if kept else None,
            "diagnosis": diagnosed(outcome, self._session.search.metric, self._session.search.mode),
        }
        return Record.of(self._search_id, claim.trial, claim.fence.attempt, result, **more, **self._place())

    def _place(self) -> dict[str, object]:
        device = self._heartbeat.info.device
        return {"host": socket.gethostname(), "device": device, "task_digest": self._session.digest, "ended_at": time.time()}

    def _is_ours(self) -> bool | None:
        """Whether the folder is still the search's; None, and said once, where nobody can tell.

        Raises:
            CheckpointError: it is gone.
        """
        try:
            found = self._session.in_place()
        except SearchFileError as error:
            if not self._told_unsure:
                self._say(f"{error}; until then what ends here is kept in memory, and its leases are held")
            self._told_unsure = True
            return None
        self._told_unsure = False
        return found

    def _write_ended(self) -> bool:
        """Writes what has ended, but for trials that raised; False while nobody can tell whose the folder is."""
        self._ended = [outcome for outcome in self._ended if self._heartbeat.holds(outcome.job.claim.fence)]
        if not self._ended and not self._raising.trials():
            return True
        ours = self._is_ours()
        if ours is None:
            return False
        if not ours:
            self._leave_out()
            return True
        ended, self._ended = self._ended, []
        for stage in {o.job.claim.trial.stage for o in ended}:
            own = [o for o in ended if o.job.claim.trial.stage == stage]
            kept = self._keep(self._stage(stage), own)
            records = [(o.job.claim.fence, self._record(o, kept.get(o.job.claim.trial.id))) for o in own]
            self._write_records(stage, [pair for pair in records if pair[1].state != TrialState.FAILED])
            for fence, record in records:
                if record.state == TrialState.FAILED:
                    self._raising.add(fence, record)
        return True

    def _leave_out(self) -> None:
        """Another search has the folder now: what ended here belongs nowhere, and its leases go back."""
        fences = [outcome.job.claim.fence for outcome in self._ended] + self._raising.fences()
        self._session.queue.release(fences)
        self._heartbeat.drop([fence.trial_id for fence in fences])
        self._say(f"search {self._session.search.name!r} was replaced by another in its folder: {len(fences)} results are left out")
        self._ended.clear()
        self._raising.clear()

    def _tell(self) -> None:
        """Tells Redis what is written; one that is answered for is not told again."""
        for verdict in self._session.queue.finish(self._unheard) if self._unheard else ():
            self._answered(*self._unheard[0], verdict)
            del self._unheard[0]

    def _write_records(self, stage: str, records: Sequence[tuple[Fence, Record]]) -> None:
        standing = self._stage(stage).write_records([record for _, record in records])
        self._heartbeat.written(record.trial for record in standing)
        self._unheard += [(fence, record.result()) for (fence, _), record in zip(records, standing, strict=True)]

    def _answered(self, fence: Fence, result: Result, verdict: Verdict) -> None:
        folder = stage_of(self._session.folder, fence.trial_id)
        self._heartbeat.drop([fence.trial_id])
        if verdict is Verdict.OK:
            self._heartbeat.trials_done += 1
            if fence.attempt > 1 or fence.trial_id in self._with_state:
                durable.remove(folder.resume_path(fence.trial_id, attempt) for attempt in range(1, fence.attempt + 1))
            return
        name = CheckpointName.parse(result.checkpoint) if result.checkpoint else None
        if name and self._session.queue.attempt(fence.trial_id) > fence.attempt:  # else Redis has lost its data
            durable.remove(folder.belongings(name))
        self._say(f"{fence.trial_id} try {fence.attempt}: somebody else has it now; this late result changes nothing")


def judged(outcome: Outcome, metric: str) -> Outcome:
    """The outcome with the value that the search ranks by; FAILED where a trial came to its end without one."""
    known = {"val_acc": outcome.val_acc, "val_loss": outcome.val_loss, **outcome.metrics}
    value = outcome.value if outcome.value is not None else known.get(metric)
    if value is None and outcome.state in ENDED_WELL:
        names = ", ".join(name for name, found in known.items() if found is not None) or "nothing"
        reason = f'metric = "{metric}" was never measured; measured was {names}. Report it, or name one of these in the search file'
        return replace(outcome, state=TrialState.FAILED, reason=reason, checkpoint=None, snapshots=())
    return replace(outcome, value=value)


def checkpoint_name(outcome: Outcome, metric: str) -> CheckpointName:
    """The name of an outcome's weights file."""
    claim = outcome.job.claim
    assert outcome.value is not None and outcome.best_epoch is not None
    return CheckpointName(outcome.value, claim.trial.id, epoch_number(outcome.best_epoch), claim.fence.attempt, metric)


def within_keep(names: dict[str, CheckpointName], existing: Sequence[CheckpointName], keep: int, mode: str = "max") -> set[str]:
    """The trials among ``names`` that rank within the best ``keep`` of these and the existing files."""
    others = [name for name in existing if name.trial_id not in names]
    best = sorted([*names.values(), *others], key=lambda n: n.value, reverse=mode == "max")[:keep]
    return {name.trial_id for name in best if name.trial_id in names}


def _good(outcome: Outcome) -> bool:
    measured = outcome.value is not None and math.isfinite(outcome.value) and abs(outcome.value) < MOST_NAMED
    return measured and outcome.best_epoch is not None and outcome.state in ENDED_WELL
