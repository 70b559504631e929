"""All that is known of one trial: its record where it has ended, else what Redis hears of it while it runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import tomlkit

from common.broker import Broker
from common.errors import QueueError
from common.record import Record
from common.records import StageFolder
from common.space import Scalar
from common.trial import ENDED, Running, Trial, TrialState
from master.serve import models
from master.serve.search_view import SearchView
from master.serve.stage_view import StageView

TRIAL_PATTERN = re.compile(r"([A-Za-z][A-Za-z0-9_]{0,31})-\d{4,9}")  # as in the names of records; nothing that could climb
MOST_ATTEMPTS = 1000  # looked for; a trial has a few


def stage_of_trial(view: SearchView, trial_id: str) -> StageView | None:
    """The stage that a trial belongs to; None if there is none, or this is no trial's name."""
    match = TRIAL_PATTERN.fullmatch(trial_id)
    return view.stage(match[1]) if match else None


def trial_detail(view: SearchView, stage: StageView, trial_id: str, broker: Broker | None) -> models.TrialDetail | None:
    """A trial's page; None if nobody knows it.

    Args:
        view: its search.
        stage: its stage.
        trial_id: such as coarse-0042.
        broker: None while Redis is away: then the folder alone tells.
    """
    told = _Told.by(view, trial_id, broker)
    light = stage.records.get(trial_id)
    highest = max(told.attempt, light.attempt if light else 0)
    records = {r.attempt: r for r in _records(stage.folder, trial_id, highest)}
    ended = told.state in ENDED or (told.state is None and bool(records))
    record = records.get(max(records)) if records and ended else None
    known = record or told.trial or (records[max(records)] if records else None)
    if known is None:
        return None
    return _detail(view, stage, trial_id, told, record, records, known)


class _Told:
    """What Redis says of a trial; everything is empty while it is away."""

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
            told.trial, told.state, told.attempt = queue.trial(trial_id), queue.state(trial_id), queue.attempt(trial_id)
            told.curves = queue.curves(trial_id) if told.state is TrialState.RUNNING else {}
        except QueueError:
            return cls()  # it went away this very moment; the page says so and asks again
        told.running = next((r for r in view.running if r.trial.id == trial_id), None)
        return told


def _records(folder: StageFolder, trial_id: str, highest: int) -> Iterator[Record]:
    for attempt in range(1, min(highest, MOST_ATTEMPTS) + 1):
        if (record := folder.record(trial_id, attempt)) is not None:
            yield record


def _detail(
    view: SearchView,
    stage: StageView,
    trial_id: str,
    told: _Told,
    record: Record | None,
    records: Mapping[int, Record],
    known: Record | Trial,
) -> models.TrialDetail:
    row = stage.ranked.by_trial.get(trial_id) if record else None
    hyperparameters = {name: _plain(value) for name, value in known.hyperparameters.items()}
    curves = record.curves if record else told.curves
    checkpoint = row["checkpoint"] if row else None
    picture = stage.folder.picture_path(trial_id, record.attempt) if record else None
    running = unfinished_row(told.running) if told.running else None
    return models.TrialDetail(
        search=view.search.name,
        trial=trial_id,
        stage=stage.stage.name,
        state=(told.state or (record.state if record else TrialState.PENDING)).value,
        attempt=max(told.attempt, *records, 0) if records else told.attempt,
        rank=row["rank"] if row else None,
        of=len(stage.ranked.rows),
        metric=view.search.metric,
        value=_finite(record.measured) if record else (running.value if running else None),
        val_acc=_finite(record.val_acc) if record else None,
        val_loss=_finite(record.val_loss) if record else None,
        epochs=_finite(record.epochs) if record else (running.epoch if running else None),
        best_epoch=_finite(record.best_epoch) if record else None,
        budget_epochs=known.budget_epochs if isinstance(known, Record) else known.epochs,
        seed=str(known.seed),
        hyperparameters=hyperparameters,
        toml=as_toml(known.hyperparameters),
        curves={name: [_finite(value) for value in values] for name, values in curves.items()},
        curves_from="record" if record else ("redis" if told.curves else "nowhere"),
        first_loss=_finite(record.first_loss) if record else None,
        diagnosis=models.DiagnosisRow(word=record.diagnosis.word, sentence=record.diagnosis.sentence)
        if record and record.diagnosis
        else None,
        reason=record.reason if record else None,
        traceback=record.traceback if record else None,
        checkpoint=str(stage.folder.path / checkpoint) if checkpoint else None,
        picture=f"/api/searches/{view.folder.name}/trials/{trial_id}/picture" if picture and picture.is_file() else None,
        running=running,
        attempts=[*(_attempt(r) for _, r in sorted(records.items())), *_current(told)],
    )


def unfinished_row(running: Running) -> models.UnfinishedTrial:
    """A running trial as a row."""
    told = running.progress
    return models.UnfinishedTrial(
        trial=running.trial.id,
        state="running",
        hyperparameters={name: _plain(value) for name, value in running.trial.hyperparameters.items()},
        budget_epochs=running.trial.epochs,
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
    """A waiting trial as a row."""
    values = {name: _plain(value) for name, value in trial.hyperparameters.items()}
    return models.UnfinishedTrial(trial=trial.id, state="pending", hyperparameters=values, budget_epochs=trial.epochs)


def as_toml(hyperparameters: Mapping[str, Scalar]) -> str:
    """A configuration as the ``[space]`` of a search file, each value fixed."""
    document = tomlkit.document()
    document["space"] = dict(hyperparameters)
    return tomlkit.dumps(document)


def _attempt(record: Record) -> models.AttemptRow:
    return models.AttemptRow(
        attempt=record.attempt,
        state=record.state.value,
        reason=record.reason,
        worker=record.worker,
        device=record.device_model or record.device,
        epochs=_finite(record.epochs),
        value=_finite(record.measured),
        seconds=_finite(record.seconds),
        ended_at=record.ended_at or None,
    )


def _current(told: _Told) -> list[models.AttemptRow]:
    """The attempt that runs now."""
    if told.running is None:
        return []
    running, progress = told.running, told.running.progress
    return [
        models.AttemptRow(
            attempt=running.fence.attempt,
            state="running",
            worker=running.worker,
            device=(progress.device_model or None) if progress else None,
            epochs=progress.epoch if progress else None,
            value=_finite(progress.value) if progress else None,
            seconds=running.claimed_s,
        )
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(value: Any) -> Scalar | None:
    """A hyperparameter's value for strict JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
