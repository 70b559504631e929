"""The host's data about one slot: its trial, its progress, its curves, and the stage's policies."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from common.search.stage import Stage
from common.search.trial import Claim
from worker.training.history.history import History
from worker.training.math.schedules import Plateau
from worker.training.model.python_state import path_of, restore_attributes, save_attributes
from worker.training.model.structure import Model
from worker.training.stacked.rows import BEST, Row, best, moving, restore

FORMAT = 4  # of a saved state; 3 had no separate history
# These curves always exist; others are added as they are measured.
CURVES = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "seconds", "learning_rate")


@dataclass
class Moment:
    """The weights of a slot at one epoch: its own row, on the CPU."""

    epoch: float
    value: float
    row: Row


@dataclass(eq=False)
class Slot:
    """One trial in an array."""

    claim: Claim
    model: Model
    per_epoch: int  # steps
    total: int  # steps of its budget
    history: History
    stage: Stage | None = None  # its policies, if any
    chance: float | None = None  # the loss of guessing
    n_classes: int | None = None
    n_val: int | None = 1  # examples of the validation part, None if unknown
    # Steps of the longest budget that it may get; schedules run over them. Never below ``total``.
    horizon: int = 0
    # Multiple of the first loss above which it explodes: infinity if only a loss that is not finite
    # ends it, None if nothing does.
    explosion_factor: float | None = math.inf
    steps: int = 0  # done
    evaluated: int = 0  # steps done at the last evaluation
    first_loss: float | None = None
    loss_sum: float = 0.0  # over the steps since the last evaluation
    correct_sum: float = 0.0
    n_summed: int = 0
    part_sums: dict[str, float] = field(default_factory=dict)  # of the parts of the loss
    plateau: Plateau = field(default_factory=Plateau)
    moments: list[Moment] = field(default_factory=list)
    epoch_started_s: float = 0.0  # value of ``history.seconds`` at the start of the current epoch
    exploded: str | None = None  # why
    stopped: str | None = None  # why
    lost: bool = False
    began_at: float = 0.0  # first step in this worker, Unix time, s
    trained_until: float = 0.0  # last step or validation here
    width: int = 1  # of the widest array it was in

    def __post_init__(self) -> None:
        """Begin the curves. A trial that is never promoted has its budget as its horizon."""
        self.horizon = max(self.horizon, self.total)
        self.history.curves = {name: [] for name in CURVES}

    @property
    def to_boundary(self) -> int:
        """Steps to the end of the epoch or of the budget, or 0 if an evaluation is due."""
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
        """Whether nothing has to be computed for it any more."""
        return self.lost or self.exploded is not None

    @property
    def may_explode(self) -> bool:
        """Whether a cost may end it."""
        return self.explosion_factor is not None and not self.dead

    @property
    def ended(self) -> bool:
        """Whether it leaves the array at this boundary."""
        return self.dead or self.stopped is not None or self.evaluated >= self.total

    @property
    def epoch(self) -> float:
        """Epochs trained."""
        return self.steps / self.per_epoch

    def collect_measurements(self) -> dict[str, Any]:
        """Return what it knows, by the names of ``Measurements``."""
        return self.history.collect_measurements() | {
            "epochs": self.epoch,
            "first_loss": self.first_loss,
            "array_width": self.width,
            "n_val": self.n_val,
            "guess_loss": self.chance,
            "epoch_steps": self.per_epoch,
            "began_at": self.began_at,
            "trained_until": self.trained_until,
        }

    def train_point(self, batch_size: int) -> dict[str, float | None]:
        """Return the mean loss and accuracy over the batches since the last evaluation."""
        if not self.n_summed:
            return {"train_loss": None, "train_acc": None}
        parts = {f"train_{name}": total / self.n_summed for name, total in self.part_sums.items()}
        right = (
            self.correct_sum / (self.n_summed * batch_size) if self.n_classes is not None else None
        )
        return {"train_loss": self.loss_sum / self.n_summed, "train_acc": right, **parts}

    def note_parts(self, sums: Mapping[str, float]) -> None:
        """Add the sums of the parts of the loss over some steps."""
        for name, total in sums.items():
            self.part_sums[name] = self.part_sums.get(name, 0.0) + total

    def note_evaluation(
        self, point: Mapping[str, float | None], metrics: Mapping[str, float]
    ) -> bool:
        """Add a point to the curves, and apply the stage's policies.

        A loss that is not finite ends the trial as EXPLODED.

        Args:
            point: the values measured in training.
            metrics: of the validation, by name.

        Returns:
            Whether the epoch is the best so far.
        """
        self.evaluated = self.steps
        self.history.add_point(
            {"epoch": self.epoch, "seconds": self.history.seconds, **point, **metrics}
        )
        self.loss_sum, self.correct_sum, self.n_summed = 0.0, 0.0, 0
        self.part_sums = {}
        if self.steps % self.per_epoch == 0:
            self.history.epoch_seconds.append(self.history.seconds - self.epoch_started_s)
            self.epoch_started_s = self.history.seconds
        if not math.isfinite(metrics["val_loss"]) and self.explosion_factor is not None:
            self.exploded = (
                f"validation loss is not finite ({metrics['val_loss']}) after {self.epoch:g} epochs"
            )
            return False
        self.plateau.note(
            self.epoch, metrics["val_loss"], self.model.recipe.values["plateau_epochs"]
        )
        self._ask_policies()
        return self.history.note_metrics(self.epoch, metrics)

    @property
    def snapshot_due(self) -> bool:
        """Whether to keep the weights of this evaluation as a snapshot.

        The snapshots that the stage asks for are spread over the longest budget.
        """
        wanted = self.stage.snapshots if self.stage else 0
        return self.exploded is None and wanted * self.steps // self.horizon > len(self.moments)

    def state(self, row: Row) -> dict[str, Any]:
        """Return all that ``resume`` needs, as plain values and CPU tensors.

        Args:
            row: the slot's tensors, which are copied.
        """
        now, kept = moving(row), None
        if self.history.best_epoch is not None:
            # If both are the same tensors, they are written once. The best epoch of a young trial
            # is most often its last.
            kept_row = best(row)
            is_now = (
                self.history.best_epoch == self.epoch
                and self.evaluated == self.steps
                and torch.equal(kept_row["flat"], row["flat"])
            )
            kept = now if is_now else moving(kept_row)
        return {
            "format": FORMAT,
            "trial": self.claim.id,
            "layout": self._layout,
            "row": now,
            "best": kept,
            "history": self.history.state(),
            "recent": row["recent"].to("cpu", copy=True),
            **{name: getattr(self, name) for name in _PLAIN},
            "part_sums": dict(self.part_sums),
            "plateau": self.plateau.state(),
            "moments": [{**vars(moment), "row": dict(moment.row)} for moment in self.moments],
            **({"attributes": save_attributes(self.model.module)} if self.model.stateful else {}),
        }

    def resume(self, row: Row, state: dict[str, Any]) -> None:
        """Restore this slot and ``row`` from what ``state`` returned.

        The budget may have grown since.

        Raises:
            KeyError: a value is missing.
            ValueError: the state is of another trial or format, is beyond the budget, or does not
                fit the model.
        """
        if (state["format"], state["trial"]) != (FORMAT, self.claim.id):
            raise ValueError(f"it is of trial {state['trial']} in format {state['format']}")
        if state["layout"] != self._layout:
            raise ValueError("it is of a model with other parameters")
        if state["steps"] > self.total:
            raise ValueError(
                f"it has {state['steps'] / self.per_epoch:g} epochs, more than its budget of "
                f"{self.total / self.per_epoch:g}"
            )
        if self.model.stateful:
            self._restore_attributes(state["attributes"])
        restore(row, state["row"])
        self.history.resume(state["history"])
        if state["best"]:
            restore(row, state["best"], BEST)
        row["recent"].copy_(state["recent"])
        for name in _PLAIN:
            setattr(self, name, state[name])
        self.part_sums = dict(state.get("part_sums", {}))  # older states have none
        row["first"].fill_(self.first_loss if self.first_loss is not None else 0.0)
        self.plateau.restore(state["plateau"])
        self.moments = [Moment(**moment) for moment in state["moments"]]

    def _restore_attributes(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what the model's forward changes, besides its tensors."""
        for name, key in self.model.changing:
            if key not in saved.get(name, {}):
                raise ValueError(
                    f"its forward changes the attribute `{path_of(name, key)}`, which cannot be "
                    "saved; keep numbers, text, tensors, lists or dicts in it"
                )
        restore_attributes(self.model.module, saved)

    @property
    def _layout(self) -> list[list[str | int]]:
        return [[name, *shape] for name, shape in self.model.layout.shapes.items()]

    def _ask_policies(self) -> None:
        """End the trial if one of the stage's policies says so.

        At the end of the longest budget the policies are not asked. At the end of a rung they are,
        so that a promoted trial stops exactly where it would have stopped without rungs.
        """
        if self.stage is None or self.steps >= self.horizon:
            return
        chance = math.nan if self.chance is None else self.chance
        self.stopped = self.history.find_stop_reason(self.stage, self.n_classes, self.n_val, chance)


_PLAIN = (
    "steps",
    "evaluated",
    "first_loss",
    "loss_sum",
    "correct_sum",
    "n_summed",
    "epoch_started_s",
)


def pack(content: dict[str, Any]) -> bytes:
    """Return the bytes of a ``.pt`` file with ``content``.

    It has only tensors and plain values, so that ``torch.load(..., weights_only=True)`` reads it.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
