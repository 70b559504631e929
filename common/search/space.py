"""The hyperparameters of a search by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from itertools import product
from typing import Any

from common.errors import ConfigError
from common.search.check_conditions import check_names
from common.search.condition import UNKNOWN, Condition
from common.search.hyperparameters import bounds, never_splits
from common.search.parameters import Choice, Fixed, IntUniform, Numeric, Parameter, Ranged
from common.search.parse_parameter import NATURAL_LIMITS, parse_parameter
from common.search.values import Hyperparameters

MOST_COUNTED = 10_000  # combinations; counting them takes a tenth of a second


@dataclass(frozen=True)
class Space:
    """The hyperparameters of a search by name, in the order of the file."""

    parameters: Mapping[str, Parameter]

    @classmethod
    def parse(cls, raw: object, place: str = "[space]") -> Space:
        """Parse the table ``[space]``.

        Raises:
            ConfigError: with the place, the value and the remedy.
        """
        if not isinstance(raw, Mapping) or not raw:
            raise ConfigError(
                f"{place}: {raw!r} is not a table of hyperparameters; add learning_rate = {{ "
                "log_uniform = [1e-6, 1e1] }"
            )
        parameters = {
            str(name): parse_parameter(value, f"{place} {name}", str(name))
            for name, value in raw.items()
        }
        check_names(parameters, place)
        return cls(parameters)

    def plain(self) -> dict[str, Any]:
        """Return the space as in the search file, ready for TOML or JSON."""
        return {name: parameter.plain() for name, parameter in self.parameters.items()}

    @cached_property
    def conditions(self) -> dict[str, Condition]:
        """The conditions by the name that depends on them, so that none comes before its own."""
        own = {name: p.when for name, p in self.parameters.items() if p.when is not None}
        needed = {name: [n for n in when.names if n in own] for name, when in own.items()}
        return {name: own[name] for name in TopologicalSorter(needed).static_order()}

    def find_absent(self, values: Mapping[str, Any]) -> set[str]:
        """Return the hyperparameters that a configuration does not have, by their conditions.

        Args:
            values: the configuration. It may also have values of those that are absent. With a
                value ``UNKNOWN``, only what is absent for sure is returned.
        """
        present = dict(values)
        absent = set()
        for name, when in self.conditions.items():
            if when.holds(present) is False:
                absent.add(name)
                present.pop(name, None)
        return absent

    def prune(self, values: Hyperparameters) -> Hyperparameters:
        """Return a configuration without the hyperparameters whose conditions do not hold."""
        if not self.conditions:
            return values
        absent = self.find_absent(values)
        return {name: value for name, value in values.items() if name not in absent}

    @property
    def sampled(self) -> dict[str, Numeric | Choice]:
        """The parameters that are not fixed."""
        return {name: p for name, p in self.parameters.items() if not isinstance(p, Fixed)}

    @property
    def numeric(self) -> dict[str, Numeric]:
        """The parameters with a scale: ranges, and normal distributions."""
        return {name: p for name, p in self.parameters.items() if isinstance(p, Numeric)}

    @property
    def ranged(self) -> dict[str, Ranged]:
        """The parameters with a range, which has borders."""
        return {name: p for name, p in self.parameters.items() if isinstance(p, Ranged)}

    @property
    def structural(self) -> dict[str, Choice | IntUniform]:
        """The parameters whose values keep trials from sharing an array.

        They are the whole numbers, and the choices, except choices between values that are numbers
        to the engine.
        """
        return {
            name: p
            for name, p in self.parameters.items()
            if isinstance(p, IntUniform)
            or (isinstance(p, Choice) and not never_splits(name, p.options))
        }

    def group(self, hyperparameters: Hyperparameters) -> str:
        """Return the group of a configuration: its structural values, as canonical JSON.

        Trials of the same group are likely to share an array.
        """
        structural = {
            name: hyperparameters[name] for name in self.structural if name in hyperparameters
        }
        return json.dumps(structural, sort_keys=True, separators=(",", ":"))

    def n_groups(self) -> float:
        """Return the number of groups of the space.

        It is the product of the numbers of options and of whole numbers. Where some exist only
        under conditions there are fewer, and these are counted unless they are very many.
        """
        structural = self.structural
        most = math.prod(
            len(p.options) if isinstance(p, Choice) else p.n_values for p in structural.values()
        )
        if not self.conditions or most > MOST_COUNTED:
            return most
        unknown = dict.fromkeys(self.parameters, UNKNOWN)
        options = (_options(parameter) for parameter in structural.values())
        return len(
            {
                self.group(
                    {n: v for n, v in own.items() if n not in self.find_absent(unknown | own)}
                )
                for own in (dict(zip(structural, one, strict=True)) for one in product(*options))
            }
        )

    def limits(self, name: str) -> tuple[float, float]:
        """Return the bounds of a range: the user's ``limits``, within what its meaning allows.

        If the engine knows the name and the range lies within what the engine accepts, later ranges
        stay within that. Without limits, a range that starts at 0 or above stays there (a noise
        level), and a whole number that starts at 1 or above stays at 1 or above (a width, a depth).
        """
        parameter = self.ranged[name]
        low, high = NATURAL_LIMITS.get(name) or bounds(name)
        # A user's own task means something else by this name.
        if not low <= parameter.low <= parameter.high <= high:
            low, high = -math.inf, math.inf
        own_low, own_high = parameter.limits or (-math.inf, math.inf)
        if parameter.log and parameter.integer:
            low = max(low, 1)
        elif parameter.limits is None and parameter.low >= 0:
            low = max(low, 1 if parameter.integer and parameter.low >= 1 else 0)
        return max(low, own_low), min(high, own_high)


def _options(parameter: Choice | IntUniform) -> list[Any]:
    """Return all values that may be drawn."""
    if isinstance(parameter, Choice):
        return list(parameter.options)
    return [
        parameter.snap(parameter.low + n * parameter.pitch) for n in range(int(parameter.n_values))
    ]
