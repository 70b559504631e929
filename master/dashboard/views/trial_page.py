"""All that is known of one trial.

It comes from the record of an ended trial, and from Redis for a pending or running one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import tomlkit

from common.broker.connection import Broker
from common.errors import QueueError
from common.folder.output import read_end
from common.folder.record import ROUNDING_EPOCHS, Record
from common.folder.records import StageFolder
from common.search.parameters import Fixed
from common.search.space import Space
from common.search.trial import ENDED, Running, Trial, TrialState
from common.search.values import Value
from master.dashboard.views import models
from master.dashboard.views.live import as_cost
from master.dashboard.views.search_view import SearchView, note_row
from master.dashboard.views.stage_view import StageView
from master.results.columns import DiagnosisRow
from master.results.lineage import budget_words, children_of, longest_of, rung_values, way_of
from master.stages.standings import trial_of
from master.strategy.ranges import write_table

# As in the names of records. It allows no path to another folder.
TRIAL_PATTERN = re.compile(r"([A-Za-z][A-Za-z0-9_]{0,31})-\d{4,9}")
MOST_ATTEMPTS = 1000  # searched for; a trial has a few
FOR_GOOD = (TrialState.COMPLETED, TrialState.STOPPED, TrialState.EXPLODED)
OUTPUT_BYTES = 16 << 10  # of the end of an output: some screenfuls


def stage_of_trial(view: SearchView, trial_id: str) -> StageView | None:
    """Return the stage that a trial belongs to, or None if the name fits no stage."""
    match = TRIAL_PATTERN.fullmatch(trial_id)
    return view.stage(match[1]) if match else None


def trial_detail(
    view: SearchView, stage: StageView, trial_id: str, broker: Broker | None
) -> models.TrialDetail | None:
    """Return the content of a trial's page, or None if the trial is unknown.

    Args:
        view: The search.
        stage: The trial's stage.
        trial_id: The name of the trial, such as coarse-0042.
        broker: The connection to Redis. None while Redis is away: then only the folder is read.
    """
    told = _Told.by(view, trial_id, broker)
    light = stage.records.get(trial_id)
    highest = max(told.attempt, light.attempt if light else 0)
    records = {r.attempt: r for r in _records(stage.folder, trial_id, highest)}
    last = records[max(records)] if records else None
    ended = told.state in ENDED or (told.state is None and last is not None)
    if last is not None and not ended and _is_behind(told, last):
        told.state, told.running, ended = last.state, None, True
    known = _trial(told, last, ended)
    if known is None:
        return None
    return _detail(view, stage, told, last if ended else None, records, known)


def _is_behind(told: _Told, last: Record) -> bool:
    """Return whether Redis does not know yet, or no longer, that a trial has ended for good.

    Its record comes first, and a Redis that has lost writes hears of it later. Only a promotion
    sends a trial on that completed, stopped or exploded.
    """
    promoted = told.trial is not None and told.trial.rung > last.rung
    return last.state in FOR_GOOD and not promoted and told.attempt <= last.attempt


def _trial(told: _Told, last: Record | None, ended: bool) -> Trial | None:
    """Return the trial with its present budget.

    A promoted trial has a longer budget than its last record.
    """
    if last is not None and (ended or told.trial is None):
        return trial_of(last)
    return told.trial


class _Told:
    """What Redis says of a trial. Everything is empty while Redis is away."""

    def __init__(self) -> None:
        self.trial: Trial | None = None
        self.state: TrialState | None = None
        self.attempt = 0
        self.curves: models.Curves = {}
        self.running: Running | None = None

    @classmethod
    def by(cls, view: SearchView, trial_id: str, broker: Broker | None) -> _Told:
        told = cls()
        if broker is None:
            return told
        queue = view.queue(broker.client)
        try:
            told.trial, told.state, told.attempt = (
                queue.trial(trial_id),
                queue.state(trial_id),
                queue.attempt(trial_id),
            )
            told.curves = queue.curves(trial_id) if told.state is TrialState.RUNNING else {}
        except QueueError:
            return cls()  # Redis has just gone away; the page says so and asks again
        told.running = next((r for r in view.running if r.trial.id == trial_id), None)
        return told


def _records(folder: StageFolder, trial_id: str, highest: int) -> Iterator[Record]:
    for attempt in range(1, min(highest, MOST_ATTEMPTS) + 1):
        if (record := folder.record(trial_id, attempt)) is not None:
            yield record


def _detail(
    view: SearchView,
    stage: StageView,
    told: _Told,
    record: Record | None,
    records: Mapping[int, Record],
    trial: Trial,
) -> models.TrialDetail:
    """Return the content of a trial's page.

    ``record`` is the record of a trial that has ended, else None. A trial that waits or runs for a
    longer budget shows the values of its last record.
    """
    last = record or next(
        (own for _, own in sorted(records.items(), reverse=True) if own.rung < trial.rung), None
    )
    row = stage.ranked.by_trial.get(trial.id) if last else None
    checkpoint = row["checkpoint"] if row else None
    picture = stage.folder.picture_path(trial.id, last.attempt) if last else None
    outputs = stage.folder.outputs_by_attempt(trial.id)
    running = make_unfinished_row(told.running) if told.running else None
    curves, curves_from = _curves(told, record, last)
    value = (
        running.value
        if running and running.value is not None
        else (_finite(last.measured) if last else None)
    )
    return models.TrialDetail(
        search=view.folder.name,
        trial=trial.id,
        stage=stage.stage.name,
        state=(told.state or (record.state if record else TrialState.PENDING)).value,
        attempt=max(told.attempt, *records, 0) if records else told.attempt,
        rank=row["rank"] if row else None,
        of=len(stage.ranked.rows),
        repeats=row["repeats"] if row else None,
        metric=view.search.metric,
        value=value,
        val_acc=_finite(last.val_acc) if last else None,
        val_loss=_finite(last.val_loss) if last else None,
        metrics={name: _finite(value) for name, value in last.metrics.items()}
        if last and last.best_epoch is not None
        else {},
        epochs=running.epoch
        if running and running.epoch
        else (_finite(last.epochs) if last else None),
        best_epoch=_finite(last.best_epoch) if last else None,
        budget_epochs=trial.epochs,
        max_epochs=longest_of(trial.epochs, trial.max_epochs),
        rung=trial.rung,
        budget=budget_words(trial.epochs, trial.max_epochs, trial.rung),
        drawn=trial.drawn,
        drawn_words=way_of(trial.drawn, trial.parents),
        rungs=_rungs(view, trial, last),
        parents=[_relative(view, name) for name in trial.parents],
        children=[_relative(view, name) for name in _children(view, trial.id)],
        seed=str(trial.seed),
        hyperparameters={name: _plain(value) for name, value in trial.hyperparameters.items()},
        toml=as_toml(trial.hyperparameters),
        curves={name: [_finite(value) for value in values] for name, values in curves.items()},
        curves_from=curves_from,
        first_loss=_finite(last.first_loss) if last else None,
        diagnosis=DiagnosisRow(word=record.diagnosis.word, sentence=record.diagnosis.sentence)
        if record and record.diagnosis
        else None,
        reason=record.reason if record else None,
        traceback=record.traceback if record else None,
        output=read_end(outputs[max(outputs)], OUTPUT_BYTES) if outputs else None,
        outputs=list(outputs),
        noted=note_row(view.notes.of(trial.id)),
        cost=as_cost(view.costs.by_trial.get(trial.id, 0.0)),
        checkpoint=str(stage.folder.path / checkpoint) if checkpoint else None,
        picture=f"/api/searches/{view.folder.name}/trials/{trial.id}/picture"
        if picture and picture.is_file()
        else None,
        running=running,
        attempts=[*(_attempt(r) for _, r in sorted(records.items())), *_current(told)],
    )


def _curves(
    told: _Told, record: Record | None, last: Record | None
) -> tuple[models.Curves, Literal["record", "redis", "nowhere"]]:
    """Return the curves of a trial, and where they come from.

    While a trial runs for a longer budget, the curves of its last record are continued by those of
    Redis.
    """
    if record is not None:
        return record.curves, "record"
    if not told.curves.get("epoch"):
        return (last.curves, "record") if last is not None else ({}, "nowhere")
    began = next((epoch for epoch in told.curves["epoch"] if epoch is not None), math.inf)
    before = last.curves if last is not None else {}
    kept = [
        place
        for place, epoch in enumerate(before.get("epoch", ()))
        if epoch is not None and epoch < began - ROUNDING_EPOCHS
    ]
    if not kept:
        return told.curves, "redis"
    n_new = len(told.curves["epoch"])
    joined = {}
    for name in dict.fromkeys([*before, *told.curves]):
        old = before.get(name, [])
        first = [old[place] if place < len(old) else None for place in kept]
        joined[name] = first + told.curves.get(name, [None] * n_new)
    return joined, "redis"


def _rungs(view: SearchView, trial: Trial, last: Record | None) -> list[models.RungValue]:
    """Return each budget that a trial had.

    Each comes with the value reached within it, and the stage that sent the trial there.
    """
    sent_by, values = (
        view.promotions.find_promoters(view.search),
        dict(rung_values(last)) if last else {},
    )
    return [
        models.RungValue(
            epochs=epochs,
            value=_finite(values.get(epochs)),
            stage=sent_by.get((trial.id, epochs)) if number else trial.stage,
        )
        for number, epochs in enumerate((*trial.passed, trial.epochs))
    ]


def _children(view: SearchView, trial_id: str) -> list[str]:
    """Return the trials that were bred from one.

    Ended ones come first, in the order of the stages, then running ones.
    """
    ended = [record.trial for record in children_of(trial_id, view.records().values())]
    return list(
        dict.fromkeys(
            [*ended, *(one.trial.id for one in view.running if trial_id in one.trial.parents)]
        )
    )


def _relative(view: SearchView, trial_id: str) -> models.Relative:
    stage = stage_of_trial(view, trial_id)
    record = stage.records.get(trial_id) if stage else None
    if record is None:
        return models.Relative(trial=trial_id, state=None, value=None, budget_epochs=None, drawn="")
    value = _finite(record.measured)
    return models.Relative(
        trial=trial_id,
        state=record.state.value,
        value=value,
        budget_epochs=record.budget_epochs,
        drawn=record.drawn,
    )


def make_unfinished_row(running: Running) -> models.UnfinishedTrial:
    """Return the row of a running trial."""
    told = running.progress
    return models.UnfinishedTrial(
        trial=running.trial.id,
        state="running",
        hyperparameters={
            name: _plain(value) for name, value in running.trial.hyperparameters.items()
        },
        **_standing(running.trial),
        attempt=running.fence.attempt,
        worker=running.worker,
        phase=told.phase if told else None,
        epoch=told.epoch if told else None,
        value=_finite(told.value if told.value is not None else told.val_acc) if told else None,
        claimed_s=running.claimed_s,
        still_s=running.still_s,
        array_width=told.array_width if told else None,
    )


def pending_row(trial: Trial) -> models.UnfinishedTrial:
    """Return the row of a pending trial."""
    values = {name: _plain(value) for name, value in trial.hyperparameters.items()}
    return models.UnfinishedTrial(
        trial=trial.id, state="pending", hyperparameters=values, **_standing(trial)
    )


def _standing(trial: Trial) -> dict[str, Any]:
    """Return the fields for the budget of a trial and the origin of its configuration."""
    longest = longest_of(trial.epochs, trial.max_epochs)
    return {
        "budget_epochs": trial.epochs,
        "max_epochs": longest,
        "rung": trial.rung,
        "drawn": trial.drawn,
        "parents": list(trial.parents),
    }


def as_toml(hyperparameters: Mapping[str, Value]) -> str:
    """Return a configuration as the ``[space]`` of a search file, with each value fixed."""
    document = tomlkit.document()
    document["space"] = write_table(
        Space({name: Fixed(value) for name, value in hyperparameters.items()})
    )
    return tomlkit.dumps(document)


def _attempt(record: Record) -> models.AttemptRow:
    return models.AttemptRow(
        attempt=record.attempt,
        state=record.state.value,
        budget_epochs=record.budget_epochs,
        rung=record.rung,
        reason=record.reason,
        worker=record.worker,
        device=record.device_model or record.device,
        epochs=_finite(record.epochs),
        value=_finite(record.measured),
        seconds=_finite(record.seconds),
        ended_at=record.ended_at or None,
    )


def _current(told: _Told) -> list[models.AttemptRow]:
    """Return the row of the attempt that runs now, if any."""
    if told.running is None:
        return []
    running, progress = told.running, told.running.progress
    return [
        models.AttemptRow(
            attempt=running.fence.attempt,
            state="running",
            budget_epochs=running.trial.epochs,
            rung=running.trial.rung,
            worker=running.worker,
            device=(progress.device_model or None) if progress else None,
            epochs=progress.epoch if progress else None,
            value=_finite(progress.value) if progress else None,
            seconds=running.claimed_s,
        )
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(value: Any) -> Value | None:
    """Return a hyperparameter's value for strict JSON: None if it is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
