"""The evidence that a trial is diagnosed by, and functions to read its curves.

Curves may have gaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median

from common.search.trial import TrialState
from common.search.values import Value

Values = Sequence[float | None]
# The last quarter of the evaluations is recent: long enough to pass over one bad epoch, short
# enough to be recent.
QUARTER = 4


@dataclass(frozen=True)
class Evidence:
    """The end of a trial and its measurements. Unknown values have their defaults."""

    state: TrialState
    reason: str | None = None
    curves: Mapping[str, Values] = field(default_factory=dict)  # by name, one value per evaluation
    hyperparameters: Mapping[str, Value] = field(default_factory=dict)
    first_loss: float | None = None  # data loss plus penalties before the first update
    n_classes: int | None = None  # None if it is no classification or not known
    chance_loss: float | None = None  # the loss of guessing; None if there is none
    n_val: int | None = None  # examples of the validation part
    metric: str = "val_acc"
    mode: str = "max"
    # Whether a loop or program of the task's own has reported the curves. Its first loss is then
    # that of its first report, and of a model that knows something.
    is_reported: bool = False
    # Curves that were read already: each is asked for by several rules.
    _read: dict[str, list[float]] = field(default_factory=dict, init=False, compare=False)

    def curve(self, name: str) -> list[float]:
        """Return the finite values of a curve, in order; empty if there is no such curve."""
        if name not in self._read:
            self._read[name] = _finite(self.curves.get(name, ()))
        return self._read[name]

    def last(self, name: str) -> float | None:
        """Return the last finite value of a curve."""
        values = self.curve(name)
        return values[-1] if values else None

    def number(self, name: str) -> float | None:
        """Return a hyperparameter, or None if it is missing or not a number."""
        value = self.hyperparameters.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value)

    @property
    def epochs(self) -> float:
        """Epochs trained at the last evaluation."""
        return self.last("epoch") or 0.0

    @cached_property
    def cost(self) -> str:
        """The name of the curve that should improve.

        It is the validation loss, else the metric, else the training loss.
        """
        known = [
            name
            for name in ("val_loss", self.metric, "train_loss")
            if self.curve(name) and (name != self.metric or self._turned)
        ]
        return known[0] if known else self.metric

    @cached_property
    def costs(self) -> list[float]:
        """The values of that curve so that lower is better.

        An accuracy becomes the share of errors.
        """
        return self._turned or [] if self.cost == self.metric else self.curve(self.cost)

    @cached_property
    def _turned(self) -> list[float] | None:
        """The metric so that lower is better.

        If higher is better, it is 1 minus the metric, or None unless all values are between 0 and
        1. Other metrics have no zero to measure shares from.
        """
        values = self.curve(self.metric)
        if self.mode == "min":
            return values
        return [1 - value for value in values] if all(0 <= value <= 1 for value in values) else None

    @cached_property
    def start(self) -> float | None:
        """The loss of a model that knows nothing.

        It is the loss of guessing, else the first loss, unless that includes a penalty or comes
        from a report.
        """
        penalties = ("weight_decay", "l1", "activation_l1")
        unknown = self.is_reported or any(self.number(name) for name in penalties)
        return self.chance_loss if self.chance_loss is not None or unknown else self.first_loss

    @cached_property
    def ratios(self) -> list[float]:
        """The update:weight ratio at each evaluation, as the median over the layers."""
        rows = zip(
            *(values for name, values in self.curves.items() if name.startswith("update_ratio.")),
            strict=False,
        )
        return [median(known) for known in map(_finite, rows) if known]

    @cached_property
    def silent(self) -> tuple[str, float] | None:
        """The curve and the share of the layer with the most units that pass no gradient.

        For dead units the last evaluation counts, because they do not come back. For saturated ones
        the best evaluation counts, because a model that has become sure of itself saturates too,
        and that is fine.
        """
        dead = {
            name: values[-1]
            for name in self.curves
            if name.startswith("dead.") and (values := self.curve(name))
        }
        saturated = {
            name: min(values)
            for name in self.curves
            if name.startswith("saturated.") and (values := self.curve(name))
        }
        return max((dead | saturated).items(), key=lambda item: item[1], default=None)


def later(values: Sequence[float]) -> list[float]:
    """Return the latter half of the values, at least the last one."""
    return list(values[len(values) // 2 :])


def recent(values: Sequence[float]) -> int:
    """Return how many evaluations are the last quarter: at least one."""
    return max(1, len(values) // QUARTER)


def fall(values: Sequence[float]) -> float | None:
    """Return by which share the lowest value of the last quarter is below the lowest before it.

    None for fewer than two values.
    """
    if len(values) < 2:
        return None
    n = recent(values)
    before, now = min(values[:-n]), min(values[-n:])
    return (before - now) / abs(before) if before else 0.0


def _finite(values: Values) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
