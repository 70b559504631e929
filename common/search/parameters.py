"""Hyperparameters: how each is sampled, and its mapping to and from the unit interval.

With ``when``, a hyperparameter is in a configuration only where the condition holds.

Source: CS231n notes, "Hyperparameter optimization" (search on a log scale where effects multiply);
Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13 (2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from statistics import NormalDist
from typing import Any, Self

from common.search.condition import Condition
from common.search.values import Value

# Standard deviations around the mean in which a normal distribution is drawn. One draw in 16,000
# would lie beyond.
REACH = 4.0
# Standard deviations around the mean that distances are measured in: they hold 95 % of the draws,
# as a range holds all of them.
MEASURE = 2.0
STANDARD = NormalDist()
LEAST_SHARE = 2.0**-53  # of a distribution: the inverse at 0 and 1 is infinite
ON_GRID = 1e-9  # steps; rounding errors of a position on a grid are smaller


class _Numeric:
    """A hyperparameter with a scale. ``low`` and ``high`` are the ends of what is drawn."""

    low: float
    high: float
    kind = ""
    log = False
    integer = False

    @property
    def pitch(self) -> float:
        """The distance between neighboring values; 0 if there is none."""
        return 1 if self.integer else 0

    def to_scale(self, value: float) -> float:
        """Return ``value`` on the sampling scale, log10 or plain. On a log scale 0 is -inf."""
        if not self.log:
            return float(value)
        return math.log10(value) if value > 0 else -math.inf

    def from_scale(self, position: float) -> float:
        """Return the inverse of ``to_scale``."""
        return 10.0**position if self.log else position

    @property
    def scaled(self) -> tuple[float, float]:
        """(low, high) on the sampling scale.

        With a pitch it is half a pitch wider at each end, so that every value has its full share.
        """
        half = self.pitch / 2
        return self.to_scale(self.low - half), self.to_scale(self.high + half)

    @property
    def measure(self) -> tuple[float, float]:
        """Two positions on the sampling scale. Distances between values are measured in theirs."""
        return self.scaled

    def snap(self, value: float) -> float:
        """Return the nearest value that may be drawn."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class _Interval(_Numeric):
    """A range [low, high]. ``limits`` are the user's bounds, which no later stage may pass.

    With ``step``, the values are low, low + step, and so on up to high.
    """

    low: float
    high: float
    limits: tuple[float, float] | None = None
    step: float | None = None
    when: Condition | None = None

    @property
    def pitch(self) -> float:
        """The distance between neighboring values; 0 if there is none."""
        return self.step or super().pitch

    @property
    def n_values(self) -> float:
        """The number of values that may be drawn; infinite without a pitch."""
        return round((self.high - self.low) / self.pitch) + 1 if self.pitch else math.inf

    def from_unit(self, unit: float) -> float:
        """Return the value at ``unit`` in [0, 1). Rounding never takes it outside [low, high]."""
        low, high = self.scaled
        return self.snap(self.from_scale(low + unit * (high - low)))

    def to_unit(self, value: float) -> float:
        """Return the position of ``value`` on the sampling scale between low (0) and high (1).

        For a range of one point it is 0.5.
        """
        low, high = self.scaled
        return (self.to_scale(value) - low) / (high - low) if high > low else 0.5

    def snap(self, value: float) -> float:
        """Return the nearest value that may be drawn."""
        return min(max(self.to_grid(value), self.low), self.high)

    def to_grid(self, value: float, rounding: Callable[[float], float] = round) -> float:
        """Return ``value`` on the grid of the values, which goes on beyond the ends.

        Args:
            value: a number.
            rounding: ``round``, ``math.floor`` or ``math.ceil``.
        """
        if self.step is None:
            return value
        place = (value - self.low) / self.step
        number = int(rounding(round(place) if abs(place - round(place)) < ON_GRID else place))
        # As decimal numbers, so that the third step of 0.1 is 0.3.
        return float(Decimal(repr(self.low)) + number * Decimal(repr(self.step)))

    def move_to(self, low: float, high: float) -> Self:
        """Return the same parameter over another range, with ends on the grid of its values."""
        return replace(self, low=self.to_grid(low), high=self.to_grid(high))

    def plain(self) -> dict[str, Any]:
        """Return the parameter as in the search file."""
        limits = list(self.limits) if self.limits else None
        return _table(self, [self.low, self.high], step=self.step, limits=limits)


@dataclass(frozen=True)
class LogUniform(_Interval):
    """A range that is sampled uniformly in log10 between two positive ends."""

    kind = "log_uniform"
    log = True


@dataclass(frozen=True)
class Uniform(_Interval):
    """A range that is sampled uniformly."""

    kind = "uniform"


@dataclass(frozen=True)
class IntUniform(_Interval):
    """A range of whole numbers, both ends included, each equally likely."""

    kind = "int_uniform"
    integer = True

    def from_unit(self, unit: float) -> int:
        """Return the whole number whose share of the unit interval includes ``unit``."""
        return int(super().from_unit(unit))

    def to_grid(self, value: float, rounding: Callable[[float], float] = round) -> int:
        """Return ``value`` as a whole number on the grid of the values."""
        return int(rounding(value) if self.step is None else super().to_grid(value, rounding))


@dataclass(frozen=True)
class LogIntUniform(IntUniform):
    """A range of whole numbers from 1 on, sampled uniformly in log10."""

    kind = "log_int_uniform"
    log = True


@dataclass(frozen=True)
class Normal(_Numeric):
    """A normal distribution, cut off at ``least`` and ``most`` and 4 standard deviations away.

    It has no borders: it says where good values are expected, and later stages draw by it, too.
    """

    mean: float
    deviation: float
    least: float | None = None
    most: float | None = None
    when: Condition | None = None

    kind = "normal"

    @property
    def low(self) -> float:  # type: ignore[override]
        """The lowest value that may be drawn."""
        reached = self._from_normal(self.mean - REACH * self.deviation)
        return reached if self.least is None else max(reached, self.least)

    @property
    def high(self) -> float:  # type: ignore[override]
        """The highest value that may be drawn."""
        reached = self._from_normal(self.mean + REACH * self.deviation)
        return reached if self.most is None else min(reached, self.most)

    @property
    def measure(self) -> tuple[float, float]:
        """Two standard deviations below and above the mean, on the sampling scale."""
        ends = (self.mean + side * MEASURE * self.deviation for side in (-1, 1))
        low, high = (self.to_scale(self._from_normal(end)) for end in ends)
        return low, high

    def _from_normal(self, value: float) -> float:
        """Return the hyperparameter's value for one that is distributed normally."""
        return value

    def _to_normal(self, value: float) -> float:
        """Return the inverse of ``_from_normal``."""
        return value

    def _share_below(self, value: float) -> float:
        """Return the share of the distribution below a value, as if nothing was cut off."""
        return STANDARD.cdf((self._to_normal(value) - self.mean) / self.deviation)

    def from_unit(self, unit: float) -> float:
        """Return the value below which the share ``unit`` of the draws lies."""
        low, high = self._share_below(self.low), self._share_below(self.high)
        share = min(max(low + unit * (high - low), LEAST_SHARE), 1 - LEAST_SHARE)
        return self.snap(self._from_normal(self.mean + self.deviation * STANDARD.inv_cdf(share)))

    def to_unit(self, value: float) -> float:
        """Return the share of the draws that lies below ``value``."""
        low, high = self._share_below(self.low), self._share_below(self.high)
        return (self._share_below(value) - low) / (high - low)

    def plain(self) -> dict[str, Any]:
        """Return the parameter as in the search file."""
        return _table(self, [self.mean, self.deviation], low=self.least, high=self.most)


@dataclass(frozen=True)
class LogNormal(Normal):
    """A distribution whose natural logarithm is normal, with this mean and standard deviation."""

    kind = "log_normal"
    log = True

    def _from_normal(self, value: float) -> float:
        return math.exp(value)

    def _to_normal(self, value: float) -> float:
        return math.log(value) if value > 0 else -math.inf


@dataclass(frozen=True)
class Choice:
    """One of several options, each equally likely. An option may be a list or a table."""

    options: tuple[Value, ...]
    when: Condition | None = None
    kind = "choice"

    def from_unit(self, unit: float) -> Value:
        """Return the option whose share of the unit interval includes ``unit``."""
        return self.options[min(int(unit * len(self.options)), len(self.options) - 1)]

    def to_unit(self, value: Value) -> float:
        """Return the middle of the option's share of the unit interval."""
        return (self.options.index(value) + 0.5) / len(self.options)

    def plain(self) -> dict[str, Any]:
        """Return the parameter as in the search file."""
        return _table(self, list(self.options))


@dataclass(frozen=True)
class Fixed:
    """One value, the same for all trials."""

    value: Value
    when: Condition | None = None
    kind = "fixed"

    def from_unit(self, unit: float) -> Value:
        """Return the value, for any ``unit``."""
        return self.value

    def plain(self) -> Value:
        """Return the value as in the search file."""
        if self.when is None and not isinstance(self.value, list | dict):
            return self.value
        return _table(self, self.value)


def _table(parameter: _Interval | Parameter, main: object, **more: object) -> dict[str, Any]:
    """Return a parameter as an inline table of the search file, without what was not given."""
    more["when"] = parameter.when.text if parameter.when else None
    return {parameter.kind: main, **{key: one for key, one in more.items() if one is not None}}


Ranged = LogUniform | Uniform | IntUniform | LogIntUniform
Numeric = Ranged | Normal | LogNormal
Parameter = Numeric | Choice | Fixed
RANGED_KINDS: dict[str, type[Ranged]] = {
    c.kind: c for c in (LogUniform, Uniform, IntUniform, LogIntUniform)
}
NORMAL_KINDS: dict[str, type[Normal]] = {c.kind: c for c in (Normal, LogNormal)}
