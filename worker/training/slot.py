"""What the host knows of one slot: its trial, how far it is, its curves; and the files made of it."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from common.trial import TrialState
from worker.training.interface import Curves, Job, Outcome
from worker.training.rows import BEST, Row, named, restore
from worker.training.structure import Model

FORMAT = 1
CURVES = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "seconds")


@dataclass
class Best:
    """The best epoch so far: higher accuracy, then lower loss."""

    val_acc: float
    val_loss: float
    epoch: float


@dataclass(eq=False)
class Slot:
    """One trial in an array."""

    job: Job
    model: Model
    per_epoch: int  # steps
    total: int  # steps
    steps: int = 0  # done
    evaluated: int = 0  # steps done at the last evaluation
    first_loss: float | None = None
    loss_sum: float = 0.0  # over the steps since the last evaluation
    correct_sum: float = 0.0
    n_summed: int = 0
    best: Best | None = None
    curves: Curves = field(default_factory=lambda: {name: [] for name in CURVES})
    seconds: float = 0.0
    epoch_started_s: float = 0.0  # value of ``seconds`` when the current epoch began
    epoch_seconds: list[float] = field(default_factory=list)  # whole epochs
    exploded: str | None = None  # why
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
        return self.dead or self.evaluated >= self.total

    @property
    def epoch(self) -> float:
        """Epochs trained."""
        return self.steps / self.per_epoch

    def note_evaluation(self, val_loss: float, val_acc: float, batch_size: int) -> bool:
        """Adds a point to the curves; True if it is the best so far. A loss that is not finite ends the trial."""
        self.evaluated = self.steps
        point = {
            "epoch": self.epoch,
            "train_loss": self.loss_sum / self.n_summed if self.n_summed else None,
            "train_acc": self.correct_sum / (self.n_summed * batch_size) if self.n_summed else None,
            "val_loss": val_loss,
            "val_acc": val_acc,
            "seconds": self.seconds,
        }
        for name, value in point.items():
            self.curves[name].append(value)
        self.loss_sum, self.correct_sum, self.n_summed = 0.0, 0.0, 0
        if self.steps % self.per_epoch == 0:
            self.epoch_seconds.append(self.seconds - self.epoch_started_s)
            self.epoch_started_s = self.seconds
        if not math.isfinite(val_loss):
            self.exploded = f"validation loss is not finite ({val_loss}) after {self.epoch:g} epochs"
            return False
        if self.best and (val_acc, -val_loss) <= (self.best.val_acc, -self.best.val_loss):
            return False
        self.best = Best(val_acc, val_loss, self.epoch)
        return True

    def state(self, row: Row) -> dict[str, Any]:
        """All that a resume needs, as plain values and CPU tensors."""
        return {
            "format": FORMAT,
            "trial": self.job.id,
            **named(self.model, row),
            "best": {**named(self.model, row, BEST), **vars(self.best)} if self.best else None,
            "recent": row["recent"].cpu().clone(),
            **{name: getattr(self, name) for name in _PLAIN},
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
            self.best = Best(saved["val_acc"], saved["val_loss"], saved["epoch"])
        row["recent"].copy_(state["recent"])
        for name in _PLAIN:
            setattr(self, name, state[name])
        row["first"].fill_(self.first_loss if self.first_loss is not None else 0.0)
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

    def outcome(self, row: Row, task_name: str) -> Outcome:
        """How it ended. ``row`` is a copy that nothing changes any more."""
        return Outcome(
            job=self.job,
            state=TrialState.EXPLODED if self.exploded else TrialState.COMPLETED,
            reason=self.exploded,
            val_acc=self.best.val_acc if self.best else None,
            val_loss=self.best.val_loss if self.best else None,
            epochs=self.epoch,
            best_epoch=self.best.epoch if self.best else None,
            first_loss=self.first_loss,
            curves=self.curves,
            seconds=self.seconds,
            epoch_s=self.epoch_s,
            array_width=self.width,
            checkpoint=(lambda: self._checkpoint(row, task_name)) if self.best else None,
        )

    def _checkpoint(self, row: Row, task_name: str) -> bytes:
        trial, fence, best = self.job.claim.trial, self.job.claim.fence, named(self.model, row, BEST)
        rule = self.model.recipe.rule
        content = {
            "format": FORMAT,
            "model": best["model"],
            "optimizer": {"name": rule.name, "state": best["optimizer"], **self.model.recipe.values},
            "epoch": self.best.epoch if self.best else None,
            "trial": trial.id,
            "attempt": fence.attempt,
            "seed": trial.seed,
            "hyperparameters": dict(trial.hyperparameters),
            "task": task_name,
            "curves": self.curves,
        }
        return packed(content)


_PLAIN = ("steps", "evaluated", "first_loss", "loss_sum", "correct_sum", "n_summed", "seconds", "epoch_started_s")


def packed(content: dict[str, Any]) -> bytes:
    """The bytes of a ``.pt`` file; tensors and plain values only, so that ``weights_only=True`` reads it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
