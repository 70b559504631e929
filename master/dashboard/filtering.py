"""Filters and sorts the rows of a ranking.

A filter is a list of words separated by spaces: ``learning_rate>0.01 optimizer=sgd noisy``. All of
them must hold. ``OR`` separates alternatives, and parentheses group words: ``(hidden=64 OR
hidden=128) val_acc>0.9``. A comparison names a hyperparameter or a column. Any other word is
searched for in the trial's name, state, diagnosis, reason, worker, checkpoint, the way it was
drawn, its parents, tags and note. ``tag:good`` finds trials with that tag.

Spaces and parentheses within brackets or double quotes separate nothing, so a list or a table may
be written as a ranking shows it: ``layers=[64, 64] optimizer="adam w"``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.errors import ConfigError
from master.results import ranking

COMPARISON = re.compile(r"([A-Za-z_][\w.]*)(>=|<=|!=|=|>|<)(.+)")
TAGGED = re.compile(r"tag:(.+)")  # a trial with this tag
QUOTED = re.compile(r'"([^"]*)"')
MOST_WORDS = 60  # of a filter, parentheses included; this also limits how deep they are nested
Row = Mapping[str, Any]
Test = Callable[[Row], bool]


class FilterError(ConfigError):
    """Error of a filter that cannot be read, often because it is still being typed."""


def select(
    rows: Sequence[Row],
    text: str = "",
    state: str | None = None,
    sort: str = "rank",
    descending: bool = False,
) -> list[Row]:
    """Return the rows that pass the filter, in order.

    A row without a value in the sorted column comes last in both directions.

    Args:
        rows: The rows of a ranking.
        text: The filter.
        state: Only trials that ended in this state.
        sort: A column, or a hyperparameter's name.
        descending: Whether the largest comes first.

    Raises:
        FilterError: A comparison names a column that no row has, or compares a number with a word.
            A parenthesis has no partner, or ``OR`` has nothing beside it.
        ConfigError: ``sort`` names a column that no row has.
    """
    test = _Filter(text, rows).read()
    found = [row for row in rows if state in (None, row["state"]) and test(row)]
    if sort == "rank" and not descending:
        return found
    check_names([sort], rows)
    have = [row for row in found if value_of(row, sort) is not None]
    have.sort(key=lambda row: _order(value_of(row, sort)), reverse=descending)
    return have + [row for row in found if value_of(row, sort) is None]


def value_of(row: Row, name: str) -> Any:
    """Return the value of a column, a hyperparameter or a metric, or None where the row has none.

    A list or a table is text.
    """
    value = ranking.value_of(row, name)
    return _as_json(value) if isinstance(value, list | dict) else value


def _as_json(value: Any) -> str:
    """Return a list or a table as text that does not depend on the order of its keys."""
    return json.dumps(value, sort_keys=True)


def split_words(text: str) -> list[str]:
    """Split a filter into words, at spaces and parentheses outside of brackets and double quotes.

    A parenthesis is a word of its own. What is left open, as while it is being typed, reaches to
    the end.
    """
    words, depth, quoted = [""], 0, False
    for character in text:
        if character == '"':
            quoted = not quoted
        elif not quoted:
            depth = max(0, depth + (character in "[{") - (character in "]}"))
        if quoted or depth or not (character.isspace() or character in "()"):
            words[-1] += character
        else:
            words += [character.strip(), ""]
    return [word for word in words if word]


def _order(value: Any) -> tuple[int, Any]:
    """Return a sort key: numbers before words, since a hyperparameter may have both."""
    return (0, value) if isinstance(value, int | float) else (1, str(value))


def check_names(names: Sequence[str], rows: Sequence[Row]) -> None:
    """Check that the rows have these columns, hyperparameters or metrics.

    Raises:
        ConfigError: They have not.
    """
    for name in names:
        if problem := _unknown(name, rows):
            raise ConfigError(problem)


def _unknown(name: str, rows: Sequence[Row]) -> str | None:
    """Return what is wrong with a column name, or None if it is known."""
    known = ranking.names_of(rows)
    if rows and name not in known:
        return f"{name}: no such column or hyperparameter; use one of {', '.join(known)}"
    return None


class _Filter:
    """Reads a filter from left to right. ``OR`` binds less than the space between two words."""

    def __init__(self, text: str, rows: Sequence[Row]) -> None:
        self._words = split_words(text)
        self._rows = rows
        if len(self._words) > MOST_WORDS:
            raise FilterError(f"the filter has more than {MOST_WORDS} words; use fewer")

    def read(self) -> Test:
        if not self._words:
            return lambda row: True
        test = self._alternatives()
        if self._words:
            raise FilterError("the filter has a ) without a ( before it")
        return test

    def _alternatives(self) -> Test:
        tests = [self._all_of()]
        while self._words and self._words[0].upper() == "OR":
            self._words.pop(0)
            tests.append(self._all_of())
        return lambda row: any(test(row) for test in tests)

    def _all_of(self) -> Test:
        tests = []
        while self._words and self._words[0] != ")" and self._words[0].upper() != "OR":
            word = self._words.pop(0)
            if word == "(":
                tests.append(self._alternatives())
                if not self._words:
                    raise FilterError("the filter has a ( without a ) after it")
                self._words.pop(0)
            elif word.upper() != "AND":  # what the space means
                tests.append(_test(word, self._rows))
        if not tests:
            raise FilterError(
                "the filter has an OR, an AND or parentheses without a word beside it"
            )
        return lambda row: all(test(row) for test in tests)


def _test(word: str, rows: Sequence[Row]) -> Test:
    if (tagged := TAGGED.fullmatch(word)) is not None:
        return lambda row: tagged[1].lower() in (tag.lower() for tag in row.get("tags", ()))
    match = COMPARISON.fullmatch(word)
    if match is None:
        lower = _unquote(word).lower()
        return lambda row: lower in _join_words(row)
    name, operator, wanted = match.groups()
    if problem := _unknown(name, rows):
        raise FilterError(problem)
    if operator in ("=", "!="):
        wanted = _plain(wanted)
        return lambda row: (_same(value_of(row, name), wanted)) == (operator == "=")
    try:
        bound = float(wanted)
    except ValueError:
        raise FilterError(
            f"{word}: {wanted!r} is not a number; {name}={wanted} looks for the word"
        ) from None
    return lambda row: _compares(value_of(row, name), operator, bound)


def _unquote(text: str) -> str:
    match = QUOTED.fullmatch(text)
    return match[1] if match else text


def _join_words(row: Row) -> str:
    """Return the text in which a plain word is searched for."""
    words = [
        row["trial"],
        row["state"],
        value_of(row, "diagnosis"),
        row["reason"],
        row["worker"],
        row["checkpoint"],
        row["drawn"],
        *row["parents"],
        *row.get("tags", ()),
        row.get("note"),
    ]
    return "\n".join(str(word) for word in words if word).lower()


def _plain(wanted: str) -> str:
    """Return a word without its quotes, and a list or a table as ``value_of`` has it."""
    if wanted[0] not in '[{"':
        return wanted
    try:
        value = json.loads(wanted)
    except ValueError:  # still being typed
        return wanted
    return value if isinstance(value, str) else _as_json(value)


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
    return {">": value > bound, ">=": value >= bound, "<": value < bound, "<=": value <= bound}[
        operator
    ]
