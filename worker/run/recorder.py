"""Record ended trials: write weights and record first, then report to Redis."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from traceback import format_exception
from typing import Any

from common import error_text
from common.errors import HOPELESS, CheckpointError, QueueError
from common.folder import durable
from common.folder.checkpoint_name import MOST_NAMED, CheckpointName, epoch_number
from common.folder.record import Record
from common.folder.records import StageFolder
from common.queue.answers import Verdict
from common.queue.reconcile import stage_of
from common.repeats import Repeats
from common.search.constraint import Constraint, find_violation
from common.search.trial import Claim, Fence, Result, TrialState, violates
from worker.run.checkpoint_files import keep, with_weights
from worker.run.folder_identity import SearchFileError
from worker.run.heartbeat import Heartbeat
from worker.run.rungs import may_go_on
from worker.run.second_tries import Raising
from worker.run.session import Session
from worker.training.device_errors import refuse_poisoned
from worker.training.engine.engine import Outcome, View
from worker.training.history.diagnosis import diagnose_trial
from worker.training.stacked.slot import pack

ENDED_WELL = (TrialState.COMPLETED, TrialState.STOPPED)  # the weights may be worth keeping
TROUBLES = (CheckpointError, QueueError, OSError)  # of Redis or the folder: not of a trial
STATE_INTERVAL_S = 30.0  # between saved states: the most work that is lost with a worker
# The states of a wide array take long to save. It may train for so many times as long between.
SAVING_SHARE = 10
# The number of trials per stage that predict although they may go on. An ensemble seldom has more.
BEST_AT_RUNG = 10


class Recorder:
    """Records the trials of one claim's array and reports them to Redis.

    Results that could not be reported are kept until they can.
    """

    def __init__(
        self,
        session: Session,
        heartbeat: Heartbeat,
        say: Callable[[str], None],
        repeats: Repeats | None = None,
    ) -> None:
        self._session = session
        self._heartbeat = heartbeat
        self._say = say
        self._repeats = repeats or Repeats(say)
        # Not written yet, since it was unknown which search the folder belongs to.
        self._ended: list[Outcome] = []
        self._unheard: list[tuple[Fence, Result]] = []  # written, but not reported yet
        self._raising = Raising(session.queue, heartbeat, say)
        self._with_state: set[str] = set()  # trials of which this worker wrote a resume state
        # Attempts whose last state is in the folder, since the trial may go on.
        self._carried: set[Fence] = set()
        self._saved_at, self._interval_s = time.monotonic(), STATE_INTERVAL_S
        self._told_unsure = False

    @property
    def unheard(self) -> set[str]:
        """The trials that have ended here but are not yet reported to Redis."""
        return (
            {o.trial.id for o in self._ended}
            | {fence.trial_id for fence, _ in self._unheard}
            | self._raising.trials()
        )

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Write weights and records of ended trials, then report them if Redis is there.

        A trial that raised is first offered to another machine.

        Raises:
            CheckpointError: the folder cannot be written. The leases are still held.
            QueueError: waiting for Redis does not help. The leases are still held.
            Poisoned: the device serves this process no more. The leases are still held.
        """
        self._ended += outcomes
        self.flush()

    def record_failure(self, claims: Sequence[Claim], reason: str, traceback: str | None) -> None:
        """End trials that could not even begin, unless another machine is to try them.

        Raises:
            CheckpointError: the folder cannot be written.
            QueueError: waiting for Redis does not help.
        """
        reason, traceback = (
            error_text.legible(reason, error_text.MOST_REASON),
            error_text.traceback(traceback),
        )
        for claim in claims:
            result = Result(TrialState.FAILED, reason, worker=self._heartbeat.info.worker)
            record = Record.of(
                self._search_id,
                claim.trial,
                claim.fence.attempt,
                result,
                traceback=traceback,
                **self._place(),
            )
            self._raising.add(claim.fence, record)
        self.flush()

    def forget_ended(self) -> None:
        """Forget what has ended and is not written: its tensors are on a device that is gone."""
        self._ended.clear()

    def flush(self) -> bool:
        """Write all that is not written yet, and report all that Redis has not heard.

        Returns:
            False if Redis is away (the heartbeat logs that), or if it is unknown which search the
            folder belongs to. The leases are kept alive.

        Raises:
            CheckpointError: the folder cannot be written.
            QueueError: waiting for Redis does not help.
        """
        try:
            sure = self._write_ended()
            # Report finished trials first: an error about failed ones must not delay them.
            self._tell()
            if sure:
                for fence, record in self._raising.ask():
                    self._write_records(record.stage, [(fence, record)])
                self._tell()
        except HOPELESS:
            raise
        except QueueError:
            return False
        return sure

    def save_states(self, views: Sequence[View], now: bool = False) -> bool:
        """Save the states of unfinished trials, every 30 s at most unless ``now``.

        Where that takes seconds, it is done less often, so that it takes a tenth of the time.

        Returns:
            Whether all states were saved.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        if (
            not views
            or (not now and time.monotonic() - self._saved_at < self._interval_s)
            or not self._is_ours()
        ):
            return False
        began = time.monotonic()
        ours = [view for view in views if self._heartbeat.holds(view.fence)]
        states = [
            (view.claim, content) for view in ours if (content := self._state(view)) is not None
        ]
        durable.replace_all({self._resume_path(claim): content for claim, content in states})
        self._with_state |= {claim.trial.id for claim, _ in states}
        if not now:
            self._saved_at = time.monotonic()
            took_s = self._saved_at - began
            self._interval_s = max(STATE_INTERVAL_S, SAVING_SHARE * took_s)
        return len(states) == len(ours)

    def _state(self, view: View) -> bytes | None:
        """Return the state of a trial as bytes.

        If it cannot be assembled, print why and return None. The trial trains on.
        """
        try:
            return view.state()
        except (Exception, SystemExit) as error:
            self._repeats.tell(
                ("state", type(error)),
                f"{view.trial.id}: its state cannot be saved ({type(error).__name__}: {error})",
            )
            return None

    # -- pieces ----------------------------------------------------------------------------------

    @property
    def _search_id(self) -> str:
        return self._session.queue.search_id

    def _stage(self, name: str) -> StageFolder:
        return self._session.folder.stage(name)

    def _resume_path(self, claim: Claim) -> Path:
        return self._stage(claim.trial.stage).resume_path(claim.trial.id, claim.fence.attempt)

    def _carry(self, outcomes: Sequence[Outcome]) -> None:
        """Save the states of ended trials that may be promoted and rank well enough.

        The files are durable on return.
        """
        search = self._session.search
        if not search.strategy.resumes:  # promoted trials train again from epoch 0
            return
        chosen = self._session.waiting.choose(
            outcomes, [stage.plan for stage in search.stages], search.mode
        )
        states = [(o.claim, o.resume()) for o in chosen if o.resume is not None]
        if not states:
            return
        self._heartbeat.beat("evaluating")
        durable.replace_all({self._resume_path(claim): pack(state) for claim, state in states})
        for claim, state in states:
            self._session.waiting.put(claim.trial.id, claim.fence.attempt, state)
            self._carried.add(claim.fence)

    def _keep(
        self, folder: StageFolder, outcomes: Sequence[Outcome]
    ) -> tuple[list[Outcome], dict[str, dict[str, Any]]]:
        """Write weights, predictions and pictures of the trials that rank within ``keep``.

        Returns:
            All outcomes, and by trial id what the record says of the files. An outcome whose
            weights cannot be assembled is returned as failed.
        """
        search = self._session.search
        names = {
            o.trial.id: checkpoint_name(o, search.metric)
            for o in outcomes
            if o.checkpoint is not None and is_worth_keeping(o)
        }
        existing = folder.checkpoints(search.mode)
        chosen = within_keep(names, existing, search.keep, search.mode)
        best = within_keep(names, existing, min(BEST_AT_RUNG, search.keep), search.mode)
        last = {stage.name: stage.final_epochs for stage in search.stages}
        ended, written = [], {}
        for outcome in outcomes:
            trial = outcome.trial
            one = with_weights(outcome) if trial.id in chosen else outcome
            if trial.id in chosen and one.state != TrialState.FAILED:
                predicts = trial.id in best and trial.epochs >= last.get(trial.stage, 0.0)
                written[names[trial.id]] = lighten(one, predicts)
            ended.append(one)
        return ended, keep(
            folder, written, self._repeats, lambda: self._heartbeat.beat("evaluating")
        )

    def _record(self, outcome: Outcome, files: dict[str, Any]) -> Record:
        search, info = self._session.search, self._heartbeat.info
        return Record.of(
            self._search_id,
            outcome.trial,
            outcome.fence.attempt,
            Result(outcome.state, outcome.reason, worker=info.worker),
            **outcome.collect_measurements(),
            metric=search.metric,
            mode=search.mode,
            traceback=outcome.traceback,
            diagnosis=diagnose_trial(outcome, search.metric, search.mode),
            **files,
            claimed_at=outcome.claim.claimed_at,
            device_model=info.device_model,
            **self._place(),
        )

    def _place(self) -> dict[str, object]:
        device, code = self._heartbeat.info.device, self._session.code
        return {
            "host": socket.gethostname(),
            "device": device,
            "task_digest": self._session.digest,
            "task_commit": code.commit if code is not None else None,
            "task_dirty": code.dirty if code is not None else None,
            "ended_at": time.time(),
        }

    def _is_ours(self) -> bool | None:
        """Return whether the folder still belongs to the search.

        If that is unknown, print it once and return None.

        Raises:
            CheckpointError: the folder is gone.
        """
        try:
            found = self._session.in_place()
        except SearchFileError as error:
            if not self._told_unsure:
                self._say(
                    f"{error}; until then what ends here is kept in memory, and its leases are held"
                )
            self._told_unsure = True
            return None
        self._told_unsure = False
        return found

    def _write_ended(self) -> bool:
        """Write the trials that have ended, except those that raised.

        Return False while it is unknown which search the folder belongs to.
        """
        self._ended = [outcome for outcome in self._ended if self._heartbeat.holds(outcome.fence)]
        if not self._ended and not self._raising.trials():
            return True
        ours = self._is_ours()
        if ours is None:
            return False
        if not ours:
            self._leave_out()
            return True
        ended, self._ended = self._ended, []
        for stage in {o.trial.stage for o in ended}:
            own = [o for o in ended if o.trial.stage == stage]
            try:
                self._write_stage(stage, own)
            except TROUBLES:
                raise
            # The result of one trial cannot be written. Only that trial is to fail, also where its
            # own code calls exit().
            except (Exception, SystemExit) as error:
                refuse_poisoned(error, [outcome.claim for outcome in own])
                for outcome in own:
                    self._write_alone(stage, outcome)
        return True

    def _write_alone(self, stage: str, outcome: Outcome) -> None:
        try:
            self._write_stage(stage, [outcome])
        except TROUBLES:
            raise
        except (Exception, SystemExit) as error:
            refuse_poisoned(error, [outcome.claim])
            trial, attempt = outcome.trial.id, outcome.fence.attempt
            names = self._stage(stage).checkpoints(self._session.search.mode)
            durable.remove(
                file
                for name in names
                if name.tried == (trial, attempt)
                for file in self._stage(stage).belongings(name)
            )
            self._write_stage(stage, [make_unrecorded(outcome, error)])

    def _write_stage(self, stage: str, outcomes: Sequence[Outcome]) -> None:
        """Write the trials that ended in one stage. It may be called again for the same trials."""
        metric, constraints = self._session.search.metric, self._session.search.constraints
        judged_ones = [judge(outcome, metric, constraints) for outcome in outcomes]
        self._carry(judged_ones)
        own, kept = self._keep(self._stage(stage), judged_ones)
        records = [(o.fence, self._record(o, kept.get(o.trial.id, {}))) for o in own]
        self._write_records(stage, [pair for pair in records if pair[1].state != TrialState.FAILED])
        for fence, record in records:
            if record.state == TrialState.FAILED:
                self._raising.add(fence, record)

    def _leave_out(self) -> None:
        """Discard what ended here and give its leases back, since another search has the folder."""
        fences = [outcome.fence for outcome in self._ended] + self._raising.fences()
        self._session.queue.release(fences)
        self._heartbeat.drop([fence.trial_id for fence in fences])
        self._say(
            f"search {self._session.search.name!r} was replaced by another in its folder: "
            f"{len(fences)} results are left out"
        )
        self._ended.clear()
        self._raising.clear()

    def _tell(self) -> None:
        """Report written results to Redis. A result that Redis has answered is not sent again."""
        for verdict in self._session.queue.finish(self._unheard) if self._unheard else ():
            self._note_answer(*self._unheard[0], verdict)
            del self._unheard[0]

    def _write_records(self, stage: str, records: Sequence[tuple[Fence, Record]]) -> None:
        standing = self._stage(stage).write_records([record for _, record in records])
        self._heartbeat.note_written(record.trial for record in standing)
        self._unheard += [
            (fence, record.result()) for (fence, _), record in zip(records, standing, strict=True)
        ]

    def _note_answer(self, fence: Fence, result: Result, verdict: Verdict) -> None:
        self._heartbeat.drop([fence.trial_id])
        if verdict is Verdict.OK:
            self._heartbeat.trials_done += 1
            if fence.attempt > 1 or fence.trial_id in self._with_state:
                folder = stage_of(self._session.folder, fence.trial_id)
                overtaken = range(1, fence.attempt + (fence not in self._carried))
                durable.remove(folder.resume_path(fence.trial_id, attempt) for attempt in overtaken)
            self._carried.discard(fence)
            return
        folder = stage_of(self._session.folder, fence.trial_id)
        name = CheckpointName.parse(result.checkpoint) if result.checkpoint else None
        # If Redis knows no later attempt, it has lost its data, and the files stay.
        if name and self._session.queue.attempt(fence.trial_id) > fence.attempt:
            durable.remove(folder.belongings(name))
        ended = self._session.queue.result(fence.trial_id)
        # If the trial has not ended yet, the worker that ends it removes this state.
        if ended and ended[0] > fence.attempt:
            durable.remove([folder.resume_path(fence.trial_id, fence.attempt)])
        self._repeats.tell(
            "late",
            f"{fence.trial_id} try {fence.attempt}: another worker now holds this trial; this "
            "late result changes nothing",
        )


def make_unrecorded(outcome: Outcome, error: BaseException) -> Outcome:
    """Return the outcome as a failed one, with the error that writing it raised."""
    reason = f"it cannot be recorded: {type(error).__name__}: {error}"
    return Outcome(outcome.claim, TrialState.FAILED, reason, "".join(format_exception(error)))


def judge(outcome: Outcome, metric: str, constraints: Sequence[Constraint] = ()) -> Outcome:
    """Return the outcome with the value that the search ranks by, and what it violates.

    The outcome is FAILED if the trial came to its end without such a value.
    """
    value = outcome.value if outcome.value is not None else outcome.metrics.get(metric)
    if value is None and outcome.state in ENDED_WELL:
        names = ", ".join(outcome.metrics) or "nothing"
        reason = (
            f'metric = "{metric}" was never measured; measured was {names}. Report it, or name one '
            "of these in the search file"
        )
        return replace(
            outcome, state=TrialState.FAILED, reason=reason, checkpoint=None, snapshots=()
        )
    violated = find_violation(constraints, outcome.metrics) if outcome.state in ENDED_WELL else None
    told = "; ".join(part for part in (outcome.reason, violated) if part) or None
    if (value, told) == (outcome.value, outcome.reason):
        return outcome
    return replace(outcome, value=value, reason=told)


def lighten(outcome: Outcome, predicts: bool) -> Outcome:
    """Return the outcome without what is not worth its time if the trial may go on.

    A search's first rungs are many trials of an epoch or two. To draw them and to predict with them
    takes several times as long as to train them. So only trials of full length are drawn. Ensembles
    need predictions, so they are also made for the best few trials at the last rung of a stage
    (``predicts``). A trial that is good at an earlier rung goes on in the same stage.
    """
    if not may_go_on(outcome.trial):
        return outcome
    return replace(
        outcome, portrait=None, picture=None, predictions=outcome.predictions if predicts else None
    )


def checkpoint_name(outcome: Outcome, metric: str) -> CheckpointName:
    """Return the name of an outcome's weights file."""
    claim = outcome.claim
    assert outcome.value is not None and outcome.best_epoch is not None
    return CheckpointName(
        outcome.value, claim.trial.id, epoch_number(outcome.best_epoch), claim.fence.attempt, metric
    )


def within_keep(
    names: dict[str, CheckpointName],
    existing: Sequence[CheckpointName],
    keep: int,
    mode: str = "max",
) -> set[str]:
    """Return the trials in ``names`` that rank within the best ``keep``.

    They are ranked together with the existing files.
    """
    others = [name for name in existing if name.trial_id not in names]
    best = sorted([*names.values(), *others], key=lambda n: n.value, reverse=mode == "max")[:keep]
    return {name.trial_id for name in best if name.trial_id in names}


def is_worth_keeping(outcome: Outcome) -> bool:
    """Return whether the weights may be kept: of a trial that was measured and ended well."""
    measured = (
        outcome.value is not None
        and math.isfinite(outcome.value)
        and abs(outcome.value) < MOST_NAMED
    )
    worthy = outcome.state in ENDED_WELL and not violates(outcome.state, outcome.reason)
    return measured and outcome.best_epoch is not None and worthy
