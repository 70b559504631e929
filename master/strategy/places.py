"""Places: the conversion of a configuration to a row of numbers, and back.

A place z is the position of a value in the FIRST range of its hyperparameter, on its sampling
scale. It is 0 at the low end and 1 at the high end. It is below 0 or above 1 where the range has
moved since. For a normal distribution it is 0 two standard deviations below the mean, and 1 two
above. The place of an integer is the middle of its share of the range. The same holds for an
option.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.search.parameters import Choice, Fixed, Normal, Numeric
from common.search.space import Space
from common.search.values import Hyperparameters, Value, distinct

Row = tuple[float | None, ...]  # None where a hyperparameter is absent by its condition
# Share of the first range. A place this close to an end of the box is that end, despite rounding.
SNAP = 1e-12


class Places:
    """The sampled hyperparameters of a search, and the box that new configurations must lie in.

    Args:
        first: the space of the search file, which gives the scale.
        box: the ranges of the stage that is drawn: the same hyperparameters, sampled the same way.
    """

    def __init__(self, first: Space, box: Space) -> None:
        self.box = box
        self.names: tuple[str, ...] = tuple(first.sampled)
        self._numbers: dict[str, Numeric] = first.numeric
        # Read once: a space builds these dictionaries anew at each access.
        own, self._inside = first.sampled, box.sampled
        self.options: dict[str, tuple[Value, ...]] = {
            name: _join_options(own[name], self._inside[name])
            for name in self.names
            if name not in self._numbers
        }

    @cached_property
    def is_choice(self) -> NDArray[np.bool_]:
        """Whether each hyperparameter is a choice, (d,)."""
        return np.array([name in self.options for name in self.names], bool)

    @cached_property
    def n_options(self) -> NDArray[np.float64]:
        """The number of options of each hyperparameter, (d,). It is 2, and unused, for a number."""
        return np.array([max(2, len(self.options.get(name, ()))) for name in self.names], float)

    @cached_property
    def allowed(self) -> dict[int, NDArray[np.float64]]:
        """The places of the options that the box has, for each choice by its position."""
        return {
            position: np.array(
                [self._option_place(name, option) for option in _options(self._inside[name])]
            )
            for position, name in enumerate(self.names)
            if name in self.options
        }

    def spread(self, unit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map numbers in [0, 1), (d,), to places in the box, as the box is sampled.

        Each option in the box gets an equal share.
        """
        low, high = self.ends
        row = np.asarray(low + unit * (high - low))
        for position, allowed in self.allowed.items():
            row[position] = allowed[min(int(unit[position] * len(allowed)), len(allowed) - 1)]
        for position, (name, own) in self._distributions.items():
            value = own.from_unit(float(unit[position]))
            row[position] = self._scale_place(name, own.to_scale(value))
        return row

    @cached_property
    def _distributions(self) -> dict[int, tuple[str, Normal]]:
        """The normal distributions of the box by their position."""
        return {
            position: (name, own)
            for position, name in enumerate(self.names)
            if isinstance(own := self._inside[name], Normal)
        }

    @cached_property
    def ends(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The low and the high ends of the box as places, (d,) and (d,); 0 and 1 for a choice."""
        pairs = [self._ends_of(name) for name in self.names]
        return np.array([low for low, _ in pairs], float), np.array(
            [high for _, high in pairs], float
        )

    def row(self, hyperparameters: Mapping[str, Value]) -> Row | None:
        """Return the places of a configuration, (d,).

        The place of what is absent by its condition is None. Return None for all if a value is
        missing or cannot be a value of this search.
        """
        absent = self.box.find_absent(hyperparameters) if self.box.conditions else ()
        found: list[float | None] = []
        for name in self.names:
            place = None if name in absent else self._place(name, hyperparameters.get(name))
            if name not in absent and (place is None or not math.isfinite(place)):
                return None
            found.append(place)
        return tuple(found)

    def values(self, row: NDArray[np.float64]) -> Hyperparameters:
        """Return the configuration at ``row`` (d,), inside the box.

        It includes the fixed values and has the order of the space. It lacks what is absent by its
        condition.
        """
        return self.box.prune(self._all_values(row))

    def with_absent(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``rows`` (n, d) with nan in the places of what is absent by its condition."""
        if not self.box.conditions:
            return rows
        found = rows.copy()
        for row in found:
            absent = self.box.find_absent(self._all_values(row))
            row[[position for position, name in enumerate(self.names) if name in absent]] = math.nan
        return found

    def _all_values(self, row: NDArray[np.float64]) -> Hyperparameters:
        """Return the values of all hyperparameters at ``row`` (d,), whatever the conditions."""
        low, high = self.ends
        position = {name: number for number, name in enumerate(self.names)}
        values: Hyperparameters = {}
        for name, parameter in self.box.parameters.items():
            if isinstance(parameter, Fixed):
                values[name] = parameter.value
            elif isinstance(parameter, Choice):
                values[name] = self._option(name, float(row[position[name]]))
            else:
                at = position[name]
                values[name] = self._number(
                    name, parameter, float(row[at]), float(low[at]), float(high[at])
                )
        return values

    def _number(self, name: str, inside: Numeric, place: float, low: float, high: float) -> Value:
        if place <= low + SNAP:
            return inside.low
        if place >= high - SNAP:
            return inside.high
        first = self._numbers[name]
        start, end = first.measure
        value = inside.snap(first.from_scale(start + place * (end - start)))
        return int(value) if first.integer else float(value)

    def _option(self, name: str, place: float) -> Value:
        options = self.options[name]
        return options[min(max(int(place * len(options)), 0), len(options) - 1)]

    def _option_place(self, name: str, option: Value) -> float:
        return (self.options[name].index(option) + 0.5) / len(self.options[name])

    def _place(self, name: str, value: Value | None) -> float | None:
        if name in self.options:
            return (
                self._option_place(name, value)
                if value is not None and value in self.options[name]
                else None
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return self._scale_place(name, self._numbers[name].to_scale(value))

    def _ends_of(self, name: str) -> tuple[float, float]:
        if name in self.options:
            return 0.0, 1.0
        inside = self._inside[name]
        assert not isinstance(inside, Choice)  # as in ``_options``
        low, high = inside.scaled
        return self._scale_place(name, low), self._scale_place(name, high)

    def _scale_place(self, name: str, position: float) -> float:
        low, high = self._numbers[name].measure
        return (position - low) / (high - low)


def _options(parameter: Numeric | Choice) -> tuple[Value, ...]:
    # Ranges of another kind than those of the search are refused when they are read.
    assert isinstance(parameter, Choice)
    return parameter.options


def _join_options(first: Numeric | Choice, box: Numeric | Choice) -> tuple[Value, ...]:
    """Return the first options, then those that only the box has.

    A user may have added options to the box.
    """
    return tuple(distinct((*_options(first), *_options(box))))
