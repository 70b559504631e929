"""What a trial left to be judged by, and how to read it: curves with gaps, the loss of guessing, ratios of several layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from common.space import Scalar
from common.trial import TrialState

Values = Sequence[float | None]
QUARTER = 4  # recent is the last quarter of the evaluations: long enough to pass over one bad epoch, short enough to be recent


@dataclass(frozen=True)
class Evidence:
    """How a trial ended and what was measured on the way. Whatever is not known is left out."""

    state: TrialState
    reason: str | None = None
    curves: Mapping[str, Values] = field(default_factory=dict)  # by name, one value an evaluation
    hyperparameters: Mapping[str, Scalar] = field(default_factory=dict)
    first_loss: float | None = None  # data loss plus penalties before the first update
    n_classes: int | None = None  # None: no classification, or not known
    chance_loss: float | None = None  # the loss of guessing; None where there is no such value
    n_val: int | None = None  # examples of the validation part
    metric: str = "val_acc"
    mode: str = "max"

    def curve(self, name: str) -> list[float]:
        """The finite values of a curve, in order; empty if there is none."""
        return _finite(self.curves.get(name, ()))

    def last(self, name: str) -> float | None:
        """The last finite value of a curve."""
        values = self.curve(name)
        return values[-1] if values else None

    def number(self, name: str) -> float | None:
        """A hyperparameter that is a number."""
        value = self.hyperparameters.get(name)
        return None if isinstance(value, bool | str) or value is None else float(value)

    @property
    def epochs(self) -> float:
        """Trained at the last evaluation."""
        return self.last("epoch") or 0.0

    @property
    def cost(self) -> str:
        """The name of the curve that should get better: the validation loss, else the metric, else the training loss."""
        known = [name for name in ("val_loss", self.metric, "train_loss") if self.curve(name) and (name != self.metric or self._turned)]
        return known[0] if known else self.metric

    @property
    def costs(self) -> list[float]:
        """That curve so that lower is better: an accuracy as the share of errors."""
        return self._turned or [] if self.cost == self.metric else self.curve(self.cost)

    @property
    def _turned(self) -> list[float] | None:
        """The metric so that lower is better; None where that has no zero to measure shares from."""
        values = self.curve(self.metric)
        if self.mode == "min":
            return values
        return [1 - value for value in values] if all(0 <= value <= 1 for value in values) else None

    @property
    def start(self) -> float | None:
        """The loss of a model that knows nothing: that of guessing, else the first one unless a penalty is part of it."""
        penalised = any(self.number(name) for name in ("weight_decay", "l1"))
        return self.chance_loss if self.chance_loss is not None or penalised else self.first_loss

    @property
    def ratios(self) -> list[float]:
        """The update:weight ratio at each evaluation, of the layer in the middle."""
        rows = zip(*(values for name, values in self.curves.items() if name.startswith("update_ratio.")), strict=False)
        return [median(known) for known in map(_finite, rows) if known]

    @property
    def silent(self) -> tuple[str, float] | None:
        """The curve and the share of the layer with most units that give no gradient.

        Dead units are those of the last evaluation: they do not come back. Saturated ones are those of the best evaluation: a model that
        has become sure of itself saturates too, and well.
        """
        dead = {name: values[-1] for name in self.curves if name.startswith("dead.") and (values := self.curve(name))}
        saturated = {name: min(values) for name in self.curves if name.startswith("saturated.") and (values := self.curve(name))}
        return max((dead | saturated).items(), key=lambda item: item[1], default=None)


def later(values: Sequence[float]) -> list[float]:
    """The latter half, at least the last value."""
    return list(values[len(values) // 2 :])


def recent(values: Sequence[float]) -> int:
    """How many evaluations are the last quarter: at least one, and not all."""
    return max(1, len(values) // QUARTER)


def fall(values: Sequence[float]) -> float | None:
    """By which share the lowest value of the last quarter lies below the lowest before; None for a single value."""
    if len(values) < 2:
        return None
    n = recent(values)
    before, now = min(values[:-n]), min(values[-n:])
    return (before - now) / abs(before) if before else 0.0


def _finite(values: Values) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
