"""The record of an ended attempt."""

from __future__ import annotations

import math
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from common.search.trial import (
    ENDED,
    Result,
    Trial,
    TrialState,
    is_stopped_early,
    violates,
)
from common.search.values import Value

LEAST_PLAIN, MOST_PLAIN = 1e-3, 1e4  # a metric in between is shown with four decimals
ROUNDING_EPOCHS = 1e-6  # epochs are steps divided by steps per epoch


class Diagnosis(BaseModel):
    """The diagnosis of a trial's curves: a word, and a sentence with the figures behind it."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    word: str
    sentence: str
    figures: dict[str, float | None] = {}


class Record(BaseModel):
    """All that is known about an ended attempt. Non-finite numbers are written as strings."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    format: int = 1
    search_id: str
    trial: str
    stage: str
    index: int
    seed: int
    group: str = "{}"
    budget_epochs: float
    max_epochs: float = 0.0  # the longest budget that the trial may get
    passed: tuple[float, ...] = ()  # shorter budgets that it was promoted from, ascending
    drawn: str = ""  # how its configuration was drawn, see ``common.search.trial.DRAWN``
    parents: tuple[str, ...] = ()  # trials that its configuration comes from
    hyperparameters: dict[str, Value]
    attempt: int = Field(ge=1)
    state: TrialState
    reason: str | None = None
    traceback: str | None = None
    # Of ``metrics``, repeated for other readers of the file. The master's verdicts and older files
    # have only these two.
    val_acc: float | None = None
    val_loss: float | None = None
    epochs: float = 0.0  # epochs trained
    best_epoch: float | None = None
    first_loss: float | None = None  # data loss plus L2 term before the first update, in nats
    n_val: int | None = None  # examples in the validation part
    # Validation accuracy of always predicting the largest class, where it is known.
    guess_acc: float | None = None
    guess_loss: float | None = None  # loss of guessing, where such a value exists
    epoch_steps: int | None = None  # steps per epoch
    # Where the training batches come from, if not from memory: what a repetition depends on.
    batches: str | None = None
    # Name -> one value per evaluation; "epoch" is the common axis.
    curves: dict[str, list[float | None]] = {}
    metric: str = "val_acc"  # what the search ranks by
    mode: str = "max"
    value: float | None = None  # the search's metric at the best epoch
    metrics: dict[str, float] = {}  # all measured metrics at the best epoch
    diagnosis: Diagnosis | None = None
    # Of kept checkpoints: histograms of the activations and gradients of each layer.
    portrait: dict[str, Any] | None = None
    # The weights over time: file names in the stage's folder snapshots/.
    snapshots: list[str] = []
    checkpoint: str | None = None  # file name in the stage's folder
    worker: str | None = None
    host: str | None = None
    device: str | None = None  # such as "cuda:0"
    device_model: str | None = None  # its model, such as "NVIDIA H200"
    array_width: int = 1
    seconds: float = 0.0
    epoch_s: float | None = None
    task_digest: str | None = None  # of the code in the search's task-code/
    task_commit: str | None = None  # of the git checkout that the code was launched from
    task_dirty: bool | None = None  # whether the code differed from that commit
    claimed_at: float = 0.0  # when the worker got the attempt: Unix time, s
    began_at: float = 0.0  # its first step
    trained_until: float = 0.0  # its last step or validation
    ended_at: float = 0.0  # when the record was written

    @field_validator("state")
    @classmethod
    def _check_ended(cls, state: TrialState) -> TrialState:
        if state not in ENDED:
            raise ValueError(f"an attempt that is {state} has not ended")
        return state

    @model_validator(mode="after")
    def _repeat_metrics(self) -> Self:
        """Fill ``val_acc`` and ``val_loss`` from ``metrics``, or ``metrics`` from them."""
        known = {"val_acc": self.val_acc, "val_loss": self.val_loss}
        if not self.metrics:
            self.metrics.update({name: v for name, v in known.items() if v is not None})
        elif self.best_epoch is not None:
            missing = [name for name, value in known.items() if value is None]
            self.__dict__.update({name: self.metrics.get(name) for name in missing})
        return self

    @classmethod
    def of(
        cls, search_id: str, trial: Trial, attempt: int, result: Result, **more: object
    ) -> Record:
        """Return the record of ``result``; ``more`` are the fields that Redis does not keep."""
        shared = {name: getattr(result, name) for name in Result.__dataclass_fields__}
        return cls.model_validate(
            {
                "search_id": search_id,
                "trial": trial.id,
                "stage": trial.stage,
                "index": trial.index,
                "seed": trial.seed,
                "group": trial.group,
                "budget_epochs": trial.epochs,
                "max_epochs": trial.max_epochs,
                "passed": trial.passed,
                "drawn": trial.drawn,
                "parents": trial.parents,
                "hyperparameters": trial.hyperparameters,
                "attempt": attempt,
                **shared,
                **more,
            }
        )

    @property
    def measured(self) -> float | None:
        """The value of the search's metric; val_acc or val_loss if the record lacks it."""
        if self.value is not None:
            return self.value
        return {"val_acc": self.val_acc, "val_loss": self.val_loss}.get(self.metric)

    @property
    def rung(self) -> int:
        """How often the trial had been promoted when this attempt began."""
        return len(self.passed)

    def value_at(self, epochs: float) -> float | None:
        """Return the best value of the search's metric within the first ``epochs`` epochs.

        It is read off the curves. A record without curves only knows its value at the end.
        """
        points = list(
            zip(self.curves.get("epoch", ()), self.curves.get(self.metric, ()), strict=False)
        )
        known = [
            v
            for e, v in points
            if e is not None
            and e <= epochs + ROUNDING_EPOCHS
            and v is not None
            and math.isfinite(v)
        ]
        if known:
            return max(known) if self.mode == "max" else min(known)
        return (
            self.measured if not points and self.budget_epochs <= epochs + ROUNDING_EPOCHS else None
        )

    def metrics_at(self, epochs: float) -> dict[str, float | None]:
        """Return all curves at the best evaluation within the first ``epochs`` epochs.

        The best is the one of the metrics at the end: by the search's metric, then by val_loss. It
        is empty if nothing was measured.
        """
        sign = 1.0 if self.mode == "max" else -1.0
        losses = self.curves.get("val_loss", [])
        best, found = (-math.inf, -math.inf), None
        for place, (epoch, value) in enumerate(
            zip(self.curves.get("epoch", ()), self.curves.get(self.metric, ()), strict=False)
        ):
            if epoch is None or epoch > epochs + ROUNDING_EPOCHS or value is None:
                continue
            loss = losses[place] if place < len(losses) else None
            key = (sign * value, -math.inf if loss is None else -loss)
            if key > best:
                best, found = key, place
        if found is None:
            return {}
        return {name: own[found] for name, own in self.curves.items() if found < len(own)}

    @property
    def violates(self) -> bool:
        """Whether it violates a constraint of its search; ``reason`` says which."""
        return violates(self.state, self.reason)

    @property
    def stopped_early(self) -> bool:
        """Whether it was stopped because its metric no longer improved.

        Its best epoch counts as if it had trained to its budget.
        """
        return is_stopped_early(self.state, self.reason)

    def result(self) -> Result:
        """Return the part of the record that Redis keeps."""
        return Result(**{name: getattr(self, name) for name in Result.__dataclass_fields__})


def format_metric(value: float | None, beside: float | None = None) -> str:
    """Format a metric with four decimals, as in checkpoint names.

    A value that this would show as 0, or as far too long, gets three digits instead.

    Args:
        value: a metric, or the error of one.
        beside: the metric that an error belongs to; its size decides the format.
    """
    if value is None:
        return ""
    size = abs(value if beside is None else beside)
    plain = size == 0 or LEAST_PLAIN <= size < MOST_PLAIN
    return f"{value:.4f}" if plain else f"{value:.3g}"
