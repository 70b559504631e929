"""What the host knows of one slot: its trial, how far it is, its curves, and how it stands with the stage's policies."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from common.search import Stage
from worker.training import policy
from worker.training.interface import Curves, Job
from worker.training.rows import BEST, Row, named, restore
from worker.training.schedules import Plateau
from worker.training.structure import Model

FORMAT = 2
CURVES = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "seconds", "learning_rate")  # always there; others as they come


@dataclass(frozen=True)
class Pick:
    """How epochs are compared."""

    metric: str
    sign: int  # 1: more is better

    def key(self, metrics: Mapping[str, float | None]) -> tuple[float, float]:
        """Larger is better: the metric, then a lower validation loss; what is missing or not finite is worst."""
        value, loss = metrics.get(self.metric), metrics.get("val_loss")
        return (self._or_worst(value, self.sign), self._or_worst(loss, -1))

    @staticmethod
    def _or_worst(value: float | None, sign: int) -> float:
        return sign * value if value is not None and math.isfinite(value) else -math.inf


@dataclass
class Best:
    """The best epoch so far."""

    epoch: float
    metrics: dict[str, float]


@dataclass
class Moment:
    """Weights kept over time: a slot's own row, moved to the CPU."""

    epoch: float
    value: float
    row: Row


@dataclass(eq=False)
class Slot:
    """One trial in an array."""

    job: Job
    model: Model
    per_epoch: int  # steps
    total: int  # steps
    pick: Pick
    stage: Stage | None = None  # its policies
    chance: float | None = None  # the loss of guessing
    n_classes: int | None = None
    n_val: int = 1  # examples of the validation part
    steps: int = 0  # done
    evaluated: int = 0  # steps done at the last evaluation
    first_loss: float | None = None
    loss_sum: float = 0.0  # over the steps since the last evaluation
    correct_sum: float = 0.0
    n_summed: int = 0
    best: Best | None = None
    plateau: Plateau = field(default_factory=Plateau)
    moments: list[Moment] = field(default_factory=list)
    curves: Curves = field(default_factory=lambda: {name: [] for name in CURVES})
    seconds: float = 0.0
    epoch_started_s: float = 0.0  # value of ``seconds`` when the current epoch began
    epoch_seconds: list[float] = field(default_factory=list)  # whole epochs
    exploded: str | None = None  # why
    stopped: str | None = None  # why
    lost: bool = False
    width: int = 1  # of the widest array it was in

    @property
    def to_boundary(self) -> int:
        """Steps to the end of the epoch or of the budget; 0 where an evaluation is due."""
        if self.due:
            return 0
        return min((self.steps // self.per_epoch + 1) * self.per_epoch, self.total) - self.steps

    @property
    def due(self) -> bool:
        """Whether an evaluation is due."""
        at_boundary = self.steps % self.per_epoch == 0 or self.steps >= self.total
        return at_boundary and self.steps > self.evaluated and self.exploded is None

    @property
    def dead(self) -> bool:
        """Nothing is to be computed for it any more."""
        return self.lost or self.exploded is not None

    @property
    def ended(self) -> bool:
        """It leaves the array at this boundary."""
        return self.dead or self.stopped is not None or self.evaluated >= self.total

    @property
    def epoch(self) -> float:
        """Epochs trained."""
        return self.steps / self.per_epoch

    @property
    def value(self) -> float | None:
        """Of the search's metric, at the best epoch so far."""
        return self.best.metrics.get(self.pick.metric) if self.best else None

    def train_point(self, batch_size: int) -> dict[str, float | None]:
        """Mean loss and accuracy over the batches since the last evaluation."""
        if not self.n_summed:
            return {"train_loss": None, "train_acc": None}
        right = self.correct_sum / (self.n_summed * batch_size) if self.n_classes is not None else None
        return {"train_loss": self.loss_sum / self.n_summed, "train_acc": right}

    def note_evaluation(self, point: Mapping[str, float | None], metrics: Mapping[str, float]) -> bool:
        """Adds a point to the curves; True if it is the best so far. A loss that is not finite ends the trial, as a policy may.

        Args:
            point: what was watched in training.
            metrics: of validation, by name.
        """
        self.evaluated = self.steps
        self._extend({"epoch": self.epoch, "seconds": self.seconds, **point, **metrics})
        self.loss_sum, self.correct_sum, self.n_summed = 0.0, 0.0, 0
        if self.steps % self.per_epoch == 0:
            self.epoch_seconds.append(self.seconds - self.epoch_started_s)
            self.epoch_started_s = self.seconds
        if not math.isfinite(metrics["val_loss"]):
            self.exploded = f"validation loss is not finite ({metrics['val_loss']}) after {self.epoch:g} epochs"
            return False
        self.plateau.note(self.epoch, metrics["val_loss"], self.model.recipe.values["plateau_epochs"])
        self._ask_policies()
        if self.best and self.pick.key(metrics) <= self.pick.key(self.best.metrics):
            return False
        self.best = Best(self.epoch, dict(metrics))
        return True

    @property
    def snapshot_due(self) -> bool:
        """Whether the weights at this evaluation are one of those that the stage keeps over time."""
        wanted = self.stage.snapshots if self.stage else 0
        return self.exploded is None and wanted * self.steps // self.total > len(self.moments)

    def state(self, row: Row) -> dict[str, Any]:
        """All that a resume needs, as plain values and CPU tensors."""
        return {
            "format": FORMAT,
            "trial": self.job.id,
            **named(self.model, row),
            "best": {**named(self.model, row, BEST), "epoch": self.best.epoch, "metrics": self.best.metrics} if self.best else None,
            "recent": row["recent"].cpu().clone(),
            **{name: getattr(self, name) for name in _PLAIN},
            "plateau": self.plateau.state(),
            "moments": [{**vars(moment), "row": dict(moment.row)} for moment in self.moments],
            "curves": {name: list(values) for name, values in self.curves.items()},
            "epoch_seconds": list(self.epoch_seconds),
        }

    def resume(self, row: Row, state: dict[str, Any]) -> None:
        """The inverse of ``state``, into this slot and ``row``.

        Raises:
            KeyError: something is missing.
            ValueError: it is another trial's, another format's, or does not fit the model.
        """
        if (state["format"], state["trial"]) != (FORMAT, self.job.id):
            raise ValueError(f"it is of trial {state['trial']} in format {state['format']}")
        restore(self.model, row, state)
        saved = state["best"]
        if saved:
            restore(self.model, row, saved, BEST)
            self.best = Best(saved["epoch"], dict(saved["metrics"]))
        row["recent"].copy_(state["recent"])
        for name in _PLAIN:
            setattr(self, name, state[name])
        row["first"].fill_(self.first_loss if self.first_loss is not None else 0.0)
        self.plateau.restore(state["plateau"])
        self.moments = [Moment(**moment) for moment in state["moments"]]
        self.curves = {name: list(values) for name, values in state["curves"].items()}
        self.epoch_seconds = list(state["epoch_seconds"])

    @property
    def epoch_s(self) -> float | None:
        """Median seconds of an epoch, the first left out."""
        return median(self.epoch_seconds[1:]) if len(self.epoch_seconds) > 1 else None

    @property
    def last_epoch_s(self) -> float | None:
        """Seconds of the last whole epoch, the first left out."""
        return self.epoch_seconds[-1] if len(self.epoch_seconds) > 1 else None

    def _extend(self, point: Mapping[str, float | None]) -> None:
        """One more value for every curve; None where the point says nothing, and before a curve began."""
        n_before = len(self.curves["epoch"])
        for name in dict.fromkeys([*self.curves, *point]):
            self.curves.setdefault(name, [None] * n_before).append(point.get(name))

    def _ask_policies(self) -> None:
        """Whether the stage's policies end the trial here; at the end of its budget they have no say."""
        stage = self.stage
        if stage is None or self.steps >= self.total:
            return
        epochs, values = [epoch for epoch in self.curves["epoch"] if epoch is not None], self.curves.get(self.pick.metric, [])
        if stage.patience is not None:
            self.stopped = policy.no_progress(values, epochs, "max" if self.pick.sign > 0 else "min", stage.patience)
        if stage.chance_epochs is not None and self.stopped is None and self.n_classes is not None:
            self.stopped = policy.at_chance(
                self.curves["val_acc"],
                self.curves["val_loss"],
                epochs,
                grace=stage.chance_epochs,
                n_classes=self.n_classes,
                n_examples=self.n_val,
                chance=math.nan if self.chance is None else self.chance,
            )


_PLAIN = ("steps", "evaluated", "first_loss", "loss_sum", "correct_sum", "n_summed", "seconds", "epoch_started_s")


def packed(content: dict[str, Any]) -> bytes:
    """The bytes of a ``.pt`` file; tensors and plain values only, so that ``weights_only=True`` reads it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
