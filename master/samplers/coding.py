"""A library's view of a hyperparameter: the number of an option, or a number in a range.

Libraries know neither options that are lists nor every distribution. A normal distribution becomes
the share of its draws that lies below a value, which is uniform; a range with steps becomes the
number of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.search.parameters import Choice, Normal, Numeric
from common.search.values import Value


@dataclass(frozen=True)
class Options:
    """The options of a choice, known by their numbers."""

    options: Sequence[Value]

    def encode(self, value: Value) -> int:
        """Return the number of an option."""
        return self.options.index(value)

    def decode(self, found: int) -> Value:
        """Return the option of this number."""
        return self.options[int(found)]


@dataclass(frozen=True)
class Interval:
    """A range of numbers in which a hyperparameter is known to a library."""

    own: Numeric
    low: float
    high: float
    log: bool = False
    integer: bool = False

    def encode(self, value: Value) -> float:
        """Return the library's number, clipped to its range because of rounding."""
        assert isinstance(value, int | float)
        number = float(value)
        if isinstance(self.own, Normal):
            number = self.own.to_unit(number)
        elif self.own.step:
            number = (number - self.own.low) / self.own.step
        clipped = min(max(number, self.low), self.high)
        return round(clipped) if self.integer else clipped

    def decode(self, found: float) -> Value:
        """Return the hyperparameter's value."""
        if isinstance(self.own, Normal):
            return self.own.from_unit(float(found))
        if self.own.step:
            return self.own.to_grid(self.own.low + float(found) * self.own.step)
        return int(found) if self.integer else float(found)


def code(own: Numeric | Choice) -> Options | Interval:
    """Return how a library knows a hyperparameter."""
    if isinstance(own, Choice):
        return Options(own.options)
    if isinstance(own, Normal):
        return Interval(own, 0.0, 1.0)
    if own.step:
        return Interval(own, 0, own.n_values - 1, integer=True)
    return Interval(own, own.low, own.high, own.log, own.integer)
