"""What a search over a built-in task may say: every name is known, every value that may be drawn can be trained with.

A task of the user's own may read any name, so that here nothing of it is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import product

from common.errors import ConfigError
from common.practice import BUILT_IN_TASKS, CONVNET, Entry, Kind, Number, Whole, known
from common.space import Choice, Fixed, IntUniform, Parameter, Scalar, Space

OF_IMAGES = ("augment_shift", "augment_flip", "augment_rotate", "augment_zoom")
NO_IMAGES = ("pca", "whiten")  # kinds of preprocessing whose outputs are no images
SIMILAR = 0.6  # of 1; below it a name is no typo of another (difflib's own default)


def check_space(task: str, space: Space, place: str = "[space]") -> None:
    """Raises ConfigError where a built-in task cannot be trained with what the space may draw; the message names value and remedy."""
    if task not in BUILT_IN_TASKS:
        return
    entries = known(task)
    for name, parameter in space.parameters.items():
        if name not in entries:
            raise ConfigError(f"{place} {name}: {_unknown(name, task, entries)}")
        if (why := _refusal(entries[name], parameter)) is not None:
            raise ConfigError(f"{place} {name}{why}")
    for name, entry in entries.items():
        if isinstance(entry, Number) and entry.default is None and name not in space.parameters:
            raise ConfigError(f"{place}: {name} is missing; add {name} = {{ log_uniform = [1e-6, 1e1] }}")
    _check_together(task, space, place)


def _unknown(name: str, task: str, entries: Iterable[str]) -> str:
    alike = difflib.get_close_matches(name, entries, 1, SIMILAR)
    if alike:
        return f"neither the engine nor the task {task!r} knows it; did you mean {alike[0]}?"
    elsewhere = [other for other, theirs in BUILT_IN_TASKS.items() if name in theirs]
    of = f" (a hyperparameter of {', '.join(elsewhere)})" if elsewhere else ""
    return f"neither the engine nor the task {task!r} knows it{of}; remove it, or use one of {', '.join(entries)}"


def _refusal(entry: Entry, parameter: Parameter) -> str | None:
    """What is wrong with a parameter, as the end of a message that begins with its name; None if nothing is."""
    if isinstance(parameter, Fixed | Choice):
        for value in _values(parameter):
            if (why := entry.refusal(value)) is not None:
                return f" = {_written(value)}: {why}"
        return None
    if isinstance(entry, Kind):
        options = ", ".join(_written(option) for option in entry.options)
        return f": {parameter.kind} = [{parameter.low:g}, {parameter.high:g}] is a range of numbers; write {{ choice = [{options}] }}"
    if isinstance(entry, Whole) and not isinstance(parameter, IntUniform):
        whole = "log_int_uniform" if parameter.log else "int_uniform"
        return f": {parameter.kind} draws fractions, and a whole number is needed; use {whole}"
    for end in (parameter.low, parameter.high):
        if (why := entry.refusal(end)) is not None:
            return f": {parameter.kind} = [{parameter.low:g}, {parameter.high:g}]: {why}, {end:g} is not"
    return None


def _check_together(task: str, space: Space, place: str) -> None:
    """Refuses values that are good each by itself and may be drawn together, but cannot be trained with."""
    images = CONVNET.keys() <= BUILT_IN_TASKS[task].keys()
    moved = [name for name in OF_IMAGES if _may_differ(space, name)]
    if moved and not images:
        raise ConfigError(f"{place} {moved[0]}: is for images, and the task {task!r} has none; remove it")
    for done in (value for value in _possible(space, "preprocess") if value in NO_IMAGES):
        if moved:
            raise ConfigError(f"{place} {moved[0]}: is for images, and preprocess = {_written(done)} leaves none; remove one of the two")
        if "convnet" in _possible(space, "model"):
            raise ConfigError(
                f'{place} model = "convnet": needs images, and preprocess = {_written(done)} leaves none; use another of the two'
            )
    wanted = product(_possible(space, "optimizer", "sgd"), _possible(space, "nesterov"), _possible(space, "momentum", 0.0))
    if any(rule == "sgd" and ahead is True and momentum == 0 for rule, ahead, momentum in wanted):
        raise ConfigError(f"{place} nesterov = true: looks ahead along the momentum, which may be 0; add momentum = 0.9")


def _possible(space: Space, name: str, default: Scalar | None = None) -> tuple[Scalar, ...]:
    """The plain values that may be drawn: none of a range, the default of what is not in the space."""
    parameter = space.parameters.get(name)
    if parameter is None:
        return () if default is None else (default,)
    return _values(parameter) if isinstance(parameter, Fixed | Choice) else ()


def _values(parameter: Fixed | Choice) -> tuple[Scalar, ...]:
    return parameter.options if isinstance(parameter, Choice) else (parameter.value,)


def _may_differ(space: Space, name: str) -> bool:
    """Whether something else than 0 may be drawn."""
    parameter = space.parameters.get(name)
    return parameter is not None and (not isinstance(parameter, Fixed | Choice) or any(_values(parameter)))


def _written(value: Scalar) -> str:
    """As in the search file."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"
