"""The two tables of an export: one row per trial, and one row per point of a curve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from common.search.values import Hyperparameters, Scalar, flat
from master.export.ended import Ended, EndedStage, evaluations, times
from master.results.lineage import longest_of

Cell = Scalar | datetime | None
Kind = Literal["text", "whole", "real", "time", "hyperparameter"]
CURVE_COLUMNS: dict[str, Kind] = {
    "stage": "text",
    "trial": "text",
    "attempt": "whole",
    "evaluation": "whole",
    "epoch": "real",
    "curve": "text",
    "value": "real",
}


@dataclass(frozen=True)
class Column:
    """A column of the table of trials."""

    name: str
    kind: Kind
    of: Callable[[Ended], Cell]


def columns(trials: Sequence[Ended]) -> list[Column]:
    """Return the columns for these trials.

    They are the outcome, with the mean and the deviation of repeated configurations, all metrics,
    all hyperparameters, the diagnosis, where the trials ran, and tags and notes if there are any.
    If the name of a metric or hyperparameter is taken, it gets the prefix ``metric_`` or
    ``hyperparameter_``.
    """
    head = _outcome(any(trial.spread for trial in trials))
    tail = [*_circumstances(), *_noted(trials)]
    taken = {column.name for column in head + tail}
    metrics = _names([record.metrics for record in (t.record for t in trials)])
    measured = [
        _metric(name, _free(name, "metric_", taken))
        for name in metrics
        if name not in ("val_acc", "val_loss")
    ]
    hyperparameters = _names([trial.record.hyperparameters for trial in trials])
    own = [_hyperparameter(name, _free(name, "hyperparameter_", taken)) for name in hyperparameters]
    return [*head, *measured, *own, *tail]


def trials_of(stages: Sequence[EndedStage]) -> list[Ended]:
    """Return the rows of the table of trials: stage by stage, best first."""
    return [trial for stage in stages for trial in stage.trials]


def curve_rows(trial: Ended) -> Iterator[tuple[Cell, ...]]:
    """Yield the rows of the table of curves, with the columns ``CURVE_COLUMNS``.

    A value that was not measured has no row.
    """
    record = trial.record
    for evaluation in evaluations(record):
        for name, value in evaluation.values.items():
            yield (
                record.stage,
                record.trial,
                record.attempt,
                evaluation.number,
                evaluation.epoch,
                name,
                value,
            )


def _outcome(repeated: bool) -> list[Column]:
    spread = [
        Column("mean", "real", lambda t: t.spread.mean if t.spread else None),
        Column("deviation", "real", lambda t: t.spread.deviation if t.spread else None),
    ]
    return [
        Column("rank", "whole", lambda t: t.rank),
        _field("trial", "text"),
        _field("stage", "text"),
        Column("state", "text", lambda t: t.record.state.value),
        _field("metric", "text"),
        Column("value", "real", lambda t: t.record.measured),
        *(spread if repeated else ()),
        _field("val_acc", "real"),
        _field("val_loss", "real"),
        _field("epochs", "real"),
        _field("best_epoch", "real"),
        _field("budget_epochs", "real"),
        Column(
            "max_epochs", "real", lambda t: longest_of(t.record.budget_epochs, t.record.max_epochs)
        ),
        _field("rung", "whole"),
        Column("drawn", "text", lambda t: t.record.drawn or None),
        Column("parents", "text", lambda t: " ".join(t.record.parents) or None),
    ]


def _circumstances() -> list[Column]:
    return [
        Column(
            "diagnosis", "text", lambda t: t.record.diagnosis.word if t.record.diagnosis else None
        ),
        Column(
            "diagnosis_sentence",
            "text",
            lambda t: t.record.diagnosis.sentence if t.record.diagnosis else None,
        ),
        _field("reason", "text"),
        _field("first_loss", "real"),
        _field("attempt", "whole"),
        _field("seed", "whole"),
        Column("checkpoint", "text", lambda t: t.checkpoint),
        _field("worker", "text"),
        _field("host", "text"),
        _field("device", "text"),
        _field("device_model", "text"),
        _field("array_width", "whole"),
        _field("seconds", "real"),
        _field("epoch_s", "real"),
        Column("ended_at", "time", lambda t: times(t.record)[1]),
    ]


def _noted(trials: Sequence[Ended]) -> list[Column]:
    tags = Column("tags", "text", lambda t: " ".join(t.noted.tags) or None)
    note = Column("note", "text", lambda t: t.noted.note or None)
    return [column for column in (tags, note) if any(column.of(trial) for trial in trials)]


def _field(name: str, kind: Kind) -> Column:
    return Column(name, kind, lambda t: getattr(t.record, name))


def _metric(metric: str, name: str) -> Column:
    return Column(name, "real", lambda t: t.record.metrics.get(metric))


def _hyperparameter(hyperparameter: str, name: str) -> Column:
    def of(trial: Ended) -> Cell:
        value = trial.record.hyperparameters.get(hyperparameter)
        return None if value is None else flat(value)

    return Column(name, "hyperparameter", of)


def _free(name: str, prefix: str, taken: set[str]) -> str:
    """Return ``name``, prefixed until it is not taken, and mark it as taken."""
    while name in taken:
        name = prefix + name
    taken.add(name)
    return name


def _names(tables: Sequence[dict[str, float]] | Sequence[Hyperparameters]) -> list[str]:
    """Return all names, in the order in which they first appear."""
    return list(dict.fromkeys(name for table in tables for name in table))
