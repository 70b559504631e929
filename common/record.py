"""What is written down of an ended attempt."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from common.space import Scalar
from common.trial import ENDED, NO_PROGRESS, Result, Trial, TrialState


class Diagnosis(BaseModel):
    """What a trial's curves say, as one word and one sentence with the figures behind it."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    word: str
    sentence: str
    figures: dict[str, float | None] = {}


class Record(BaseModel):
    """All that is known of an ended attempt. Non-finite numbers are written as strings."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    format: int = 1
    search_id: str
    trial: str
    stage: str
    index: int
    seed: int
    group: str = "{}"
    budget_epochs: float
    hyperparameters: dict[str, Scalar]
    attempt: int = Field(ge=1)
    state: TrialState
    reason: str | None = None
    traceback: str | None = None
    val_acc: float | None = None  # of the best epoch
    val_loss: float | None = None  # of the best epoch
    epochs: float = 0.0  # trained
    best_epoch: float | None = None
    first_loss: float | None = None  # data loss plus L2 term before the first update, in nats
    curves: dict[str, list[float | None]] = {}  # by name, one value an evaluation; "epoch" is their axis
    metric: str = "val_acc"  # what the search ranks by
    mode: str = "max"
    value: float | None = None  # of that metric, at the best epoch
    metrics: dict[str, float] = {}  # all that were measured, at the best epoch
    diagnosis: Diagnosis | None = None
    portrait: dict[str, Any] | None = None  # of kept checkpoints: histograms of activations and gradients a layer
    snapshots: list[str] = []  # weights over time, file names in the stage's folder snapshots/
    checkpoint: str | None = None  # file name in the stage's folder
    worker: str | None = None
    host: str | None = None
    device: str | None = None
    device_model: str | None = None
    array_width: int = 1
    seconds: float = 0.0
    epoch_s: float | None = None
    task_digest: str | None = None
    ended_at: float = 0.0  # Unix time, s

    @field_validator("state")
    @classmethod
    def _ended(cls, state: TrialState) -> TrialState:
        if state not in ENDED:
            raise ValueError(f"an attempt that is {state} has not ended")
        return state

    @classmethod
    def of(cls, search_id: str, trial: Trial, attempt: int, result: Result, **more: object) -> Record:
        """The record of ``result``; ``more`` are the fields that Redis does not keep."""
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
                "hyperparameters": trial.hyperparameters,
                "attempt": attempt,
                **shared,
                **more,
            }
        )

    @property
    def measured(self) -> float | None:
        """The value of the search's metric; of a record that was written without one, what it is known to be."""
        if self.value is not None:
            return self.value
        return {"val_acc": self.val_acc, "val_loss": self.val_loss}.get(self.metric)

    @property
    def stopped_early(self) -> bool:
        """Whether it ended since its metric made no more progress: its best epoch counts as if it had trained to its budget."""
        return self.state is TrialState.STOPPED and (self.reason or "").startswith(NO_PROGRESS)

    def result(self) -> Result:
        """What Redis keeps of it."""
        return Result(**{name: getattr(self, name) for name in Result.__dataclass_fields__})
