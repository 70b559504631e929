"""Check the space of a search over a built-in task.

Every name must be known, and every value that may be drawn must be usable for training. A user's
own task may read any name, so nothing is refused for it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

from common.errors import ConfigError
from common.search.condition import UNKNOWN
from common.search.hyperparameters import (
    BUILT_IN_TASKS,
    CONVNET,
    Entry,
    Kind,
    Number,
    Whole,
    known_entries,
)
from common.search.parameters import Choice, Fixed, IntUniform, Normal, Numeric, Parameter
from common.search.space import Space
from common.search.values import Value

OF_IMAGES = ("augment_shift", "augment_flip", "augment_rotate", "augment_zoom")
NO_IMAGES = ("pca", "whiten")  # kinds of preprocessing whose outputs are not images
SIMILAR = 0.6  # of 1; below it two names are not alike (the default of difflib)


def check_space(task: str, space: Space, place: str = "[space]") -> None:
    """Raise ConfigError if the space may draw what a built-in task cannot be trained with.

    The message names the value and the remedy.
    """
    if task not in BUILT_IN_TASKS:
        return
    entries = known_entries(task)
    for name, parameter in space.parameters.items():
        if name not in entries:
            raise ConfigError(f"{place} {name}: {_unknown(name, task, entries)}")
        if (why := _refusal(entries[name], parameter)) is not None:
            raise ConfigError(f"{place} {name}{why}")
    for name, entry in entries.items():
        if isinstance(entry, Number) and entry.default is None:
            if name not in space.parameters:
                raise ConfigError(
                    f"{place}: {name} is missing; add {name} = {{ log_uniform = [1e-6, 1e1] }}"
                )
            if name in space.conditions:
                raise ConfigError(f"{place} {name}: when: every trial needs it; remove when")
    _check_together(task, space, place)


def _unknown(name: str, task: str, entries: Iterable[str]) -> str:
    alike = difflib.get_close_matches(name, entries, 1, SIMILAR)
    if alike:
        return f"neither the engine nor the task {task!r} knows it; did you mean {alike[0]}?"
    elsewhere = [other for other, theirs in BUILT_IN_TASKS.items() if name in theirs]
    of = f" (a hyperparameter of {', '.join(elsewhere)})" if elsewhere else ""
    return (
        f"neither the engine nor the task {task!r} knows it{of}; remove it, or use one of "
        f"{', '.join(entries)}"
    )


def _refusal(entry: Entry, parameter: Parameter) -> str | None:
    """Return what is wrong with a parameter; None if nothing is.

    The text is the end of a message that begins with the parameter's name.
    """
    if isinstance(parameter, Fixed | Choice):
        for value in _values(parameter):
            if (why := entry.refusal(value)) is not None:
                return f" = {_format_value(value)}: {why}"
        return None
    if isinstance(entry, Kind):
        options = ", ".join(_format_value(option) for option in entry.options)
        return f": {_drawn(parameter)} draws numbers; write {{ choice = [{options}] }}"
    if isinstance(entry, Whole) and not isinstance(parameter, IntUniform):
        whole = "log_int_uniform" if parameter.log else "int_uniform"
        return f": {parameter.kind} draws fractions, and a whole number is needed; use {whole}"
    for end in (parameter.low, parameter.high):
        if (why := entry.refusal(end)) is not None:
            side = "low" if end == parameter.low else "high"
            remedy = f"; give {side} = ..." if isinstance(parameter, Normal) else ""
            return f": {_drawn(parameter)}: {why}, {end:g} is not{remedy}"
    return None


def _drawn(parameter: Numeric) -> str:
    """Return how numbers are drawn, as in the search file."""
    first, second = parameter.plain()[parameter.kind]
    return f"{parameter.kind} = [{first:g}, {second:g}]"


def _check_together(task: str, space: Space, place: str) -> None:
    """Refuse values that are valid one by one, but cannot be trained with together."""
    images = CONVNET.keys() <= BUILT_IN_TASKS[task].keys()
    moved = [name for name in OF_IMAGES if _may_differ(space, name)]
    if moved and not images:
        raise ConfigError(
            f"{place} {moved[0]}: is for images, and the task {task!r} has none; remove it"
        )
    for name in moved:
        for found in _combine(space, "preprocess", name):
            done = found.get("preprocess")
            if done in NO_IMAGES and found.get(name):
                raise ConfigError(
                    f"{place} {name}: is for images, and preprocess = {_format_value(done)} "
                    "leaves none; remove one of the two"
                )
    for found in _combine(space, "preprocess", "model"):
        done = found.get("preprocess")
        if done in NO_IMAGES and found.get("model") == "convnet":
            raise ConfigError(
                f'{place} model = "convnet": needs images, and preprocess = '
                f"{_format_value(done)} leaves none; use another of the two"
            )
    for found in _combine(space, "optimizer", "nesterov", "momentum"):
        sgd = found.get("optimizer", "sgd") == "sgd"
        if sgd and found.get("nesterov") is True and found.get("momentum", 0.0) == 0:
            raise ConfigError(
                f"{place} nesterov = true: looks ahead along the momentum, which may be 0; add "
                "momentum = 0.9"
            )


def _combine(space: Space, *names: str) -> Iterator[dict[str, Any]]:
    """Yield the values that these hyperparameters may have together.

    A name that is absent is left out, and a number from a range is ``UNKNOWN``. Combinations of
    which the conditions do not say whether they can be are left out, too.
    """
    own = [name for name in names if name in space.parameters]
    drawn = (space.parameters[name] for name in own)
    options = [_values(p) if isinstance(p, Fixed | Choice) else (UNKNOWN,) for p in drawn]
    for values in product(*options):
        present = {
            **dict.fromkeys(space.parameters, UNKNOWN),
            **dict(zip(own, values, strict=True)),
        }
        holds: dict[str, bool | None] = {}
        for name, when in space.conditions.items():
            holds[name] = when.holds(present)
            if holds[name] is False:
                present.pop(name)
        if all(holds.get(name, True) is not None for name in own):
            yield {name: present[name] for name in own if name in present}


def _values(parameter: Fixed | Choice) -> tuple[Value, ...]:
    return parameter.options if isinstance(parameter, Choice) else (parameter.value,)


def _may_differ(space: Space, name: str) -> bool:
    """Return whether a value other than 0 may be drawn."""
    parameter = space.parameters.get(name)
    return parameter is not None and (
        not isinstance(parameter, Fixed | Choice) or any(_values(parameter))
    )


def _format_value(value: Value) -> str:
    """Format a value as in the search file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        return json.dumps(value)
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"
