"""The values of hyperparameters: plain ones, and lists and tables of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

Scalar = bool | int | float | str
Value = Scalar | list[Any] | dict[str, Any]
Hyperparameters = dict[str, Value]
MOST_NESTED = 16  # lists and tables inside one another

T = TypeVar("T")


def is_value(found: object, room: int = MOST_NESTED) -> bool:
    """Return whether something read from JSON is a hyperparameter's value.

    Args:
        found: what was read.
        room: how many levels of lists and tables are allowed.
    """
    if isinstance(found, bool | int | float | str):
        return True
    if isinstance(found, list):
        return room > 0 and all(is_value(one, room - 1) for one in found)
    if isinstance(found, dict):
        return room > 0 and all(
            isinstance(key, str) and is_value(one, room - 1) for key, one in found.items()
        )
    return False


def hashable(value: object) -> Hashable:
    """Return a key that two values share if and only if they are equal."""
    if isinstance(value, list):
        return ("list", *(hashable(one) for one in value))
    if isinstance(value, dict):
        return ("table", frozenset((key, hashable(one)) for key, one in value.items()))
    return value


def distinct(values: Iterable[T]) -> list[T]:
    """Return the values without repetitions, in the order in which they first appear."""
    found: dict[Hashable, T] = {}
    for value in values:
        found.setdefault(hashable(value), value)
    return list(found.values())


def flat(value: Value) -> Scalar:
    """Return a value for a cell of a table: a list or a table as JSON, others as they are."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def own_copy(value: T) -> T:
    """Return a value that the receiver may change: a copy of a list or a table."""
    return copy.deepcopy(value) if isinstance(value, list | dict) else value
