"""Check the conditions of a space: every name is known, no circles, and each may come true."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

from common.errors import ConfigError
from common.search.condition import ORDERS, Comparison, Condition, Name, is_among
from common.search.parameters import Choice, Fixed, Parameter

WAY_OUT = "remove one of these conditions"


def check_names(parameters: Mapping[str, Parameter], place: str) -> None:
    """Raise ConfigError if a condition names what is not in the space, or if there is a circle."""
    found = {name: p.when for name, p in parameters.items() if p.when is not None}
    for name, when in found.items():
        for other in when.names:
            if other == name:
                raise ConfigError(
                    f"{place} {name}: when = {when.text!r} names {name} itself; name others"
                )
            if other not in parameters:
                alike = difflib.get_close_matches(other, parameters, 1)
                remedy = (
                    f"did you mean {alike[0]}?"
                    if alike
                    else f"write a value in quotes, or use one of {', '.join(parameters)}"
                )
                raise ConfigError(
                    f"{place} {name}: when = {when.text!r}: the space has no {other}; {remedy}"
                )
    try:
        TopologicalSorter({name: when.names for name, when in found.items()}).prepare()
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        raise ConfigError(
            f"{place}: the conditions go in a circle: {' needs '.join(circle)}; {WAY_OUT}"
        ) from None


def check_values(parameters: Mapping[str, Parameter], place: str = "[space]") -> None:
    """Raise ConfigError if a condition compares a hyperparameter with what it can never be."""
    for name, parameter in parameters.items():
        if parameter.when is not None:
            for one in parameter.when.comparisons():
                for side, other in ((one.left, one.right), (one.right, one.left)):
                    if isinstance(side, Name) and not isinstance(other, Name):
                        why = _misfit(side.name, parameters[side.name], one)
                        if why is not None:
                            told = _place(place, name, parameter.when)
                            raise ConfigError(f"{told}: {side.name} {why}")


def _place(place: str, name: str, when: Condition) -> str:
    return f"{place} {name}: when = {when.text!r}"


def _misfit(name: str, parameter: Parameter, one: Comparison) -> str | None:
    """Return why a comparison makes no sense; None if it does.

    A fixed value may be compared with any other: it takes the place of a range or a choice.
    """
    compared = [side for side in (one.left, *one.options) if not isinstance(side, Name)]
    values = (
        parameter.options
        if isinstance(parameter, Choice)
        else [parameter.value]
        if isinstance(parameter, Fixed)
        else None
    )
    if one.sign in ORDERS:
        if values is not None and not all(map(_is_number, values)):
            return f"is not always a number, so it has no order; use == or in, not {one.sign}"
        if not all(map(_is_number, compared)):
            return f"is compared by {one.sign} with what is no number; write a number"
        return None
    if isinstance(parameter, Fixed):
        return None
    if values is not None:
        odd = next((value for value in compared if not is_among(value, values)), None)
        options = ", ".join(map(repr, values))
        return None if odd is None else f"is never {odd!r}; it is one of {options}"
    if not all(map(_is_number, compared)):
        return "is a number, and never equals a word; write a number"
    if not getattr(parameter, "pitch", 0):
        return f"has so many values that {one.sign} says nothing; use < or >"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
