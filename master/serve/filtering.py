"""Filters and sorts rows of a ranking.

A filter is words apart by spaces, all of which must hold: ``learning_rate>0.01 optimizer=sgd noisy``. A comparison names a hyperparameter
or a column; any other word is looked for in the trial, its state, diagnosis, reason and worker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.errors import ConfigError

COLUMNS = ("rank", "trial", "state", "value", "val_acc", "val_loss", "epochs", "worker", "attempt", "diagnosis")
COMPARISON = re.compile(r"([A-Za-z_][\w.]*)(>=|<=|!=|=|>|<)(.+)")
MOST_WORDS = 20  # of a filter: more is no question of a person
Row = Mapping[str, Any]
Test = Callable[[Row], bool]


class FilterError(ConfigError):
    """A filter that cannot be read; often one that is being typed."""


def select(rows: Sequence[Row], text: str = "", state: str | None = None, sort: str = "rank", descending: bool = False) -> list[Row]:
    """The rows that pass, in order; what is not known comes last either way.

    Args:
        rows: of a ranking.
        text: the filter.
        state: only trials that ended so.
        sort: a column, or a hyperparameter's name.
        descending: the largest first.

    Raises:
        FilterError: a comparison names what no row has, or compares a number with a word.
        ConfigError: ``sort`` names what no row has.
    """
    tests = [_test(word, rows) for word in text.split()[:MOST_WORDS]]
    if state is not None:
        tests.append(lambda row: row["state"] == state)
    found = [row for row in rows if all(test(row) for test in tests)]
    if sort == "rank" and not descending:
        return found
    if problem := _unknown(sort, rows):
        raise ConfigError(problem)
    have = [row for row in found if value_of(row, sort) is not None]
    have.sort(key=lambda row: _order(value_of(row, sort)), reverse=descending)
    return have + [row for row in found if value_of(row, sort) is None]


def value_of(row: Row, name: str) -> Any:
    """A column's value, or a hyperparameter's; None where the row has none."""
    if name == "diagnosis":
        return row["diagnosis"]["word"] if row["diagnosis"] else None
    return row[name] if name in COLUMNS else row["hyperparameters"].get(name)


def _order(value: Any) -> tuple[int, Any]:
    """Numbers before words, for a hyperparameter may have both."""
    return (0, value) if isinstance(value, int | float) else (1, str(value))


def _unknown(name: str, rows: Sequence[Row]) -> str | None:
    """What is wrong with a name; None if rows have it."""
    if name not in COLUMNS and rows and not any(name in row["hyperparameters"] for row in rows):
        own = list(dict.fromkeys(key for row in rows for key in row["hyperparameters"]))
        return f"{name}: no such column or hyperparameter; use one of {', '.join([*COLUMNS, *own])}"
    return None


def _test(word: str, rows: Sequence[Row]) -> Test:
    match = COMPARISON.fullmatch(word)
    if match is None:
        lower = word.lower()
        return lambda row: lower in _told(row)
    name, operator, wanted = match.groups()
    if problem := _unknown(name, rows):
        raise FilterError(problem)
    if operator in ("=", "!="):
        return lambda row: (_same(value_of(row, name), wanted)) == (operator == "=")
    try:
        bound = float(wanted)
    except ValueError:
        raise FilterError(f"{word}: {wanted!r} is not a number; {name}={wanted} looks for the word") from None
    return lambda row: _compares(value_of(row, name), operator, bound)


def _told(row: Row) -> str:
    """What a plain word is looked for in."""
    words = [row["trial"], row["state"], value_of(row, "diagnosis"), row["reason"], row["worker"], row["checkpoint"]]
    return "\n".join(str(word) for word in words if word).lower()


def _same(value: Any, wanted: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(wanted) == value
        except ValueError:
            return False
    return value is not None and str(value).lower() == wanted.lower()


def _compares(value: Any, operator: str, bound: float) -> bool:
    if not isinstance(value, int | float):
        return False
    return {">": value > bound, ">=": value >= bound, "<": value < bound, "<=": value <= bound}[operator]
