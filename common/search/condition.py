"""Conditions under which a hyperparameter exists, such as ``optimizer == 'sgd' and depth > 2``.

The text is parsed, never evaluated: only comparisons of names with values are understood. A
comparison with a hyperparameter that is absent itself is false.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import ConfigError

MOST_CHARACTERS = 1000  # of a condition; a person reads fewer
WORDS = {"true": True, "false": False}  # as in TOML
HOW = "write comparisons such as optimizer == 'sgd' and depth >= 2"
COMPARED: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}
ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class _Unknown:
    """The value of a name of which nothing is known."""


UNKNOWN = _Unknown()


@dataclass(frozen=True)
class Name:
    """The name of another hyperparameter."""

    name: str


@dataclass(frozen=True)
class Comparison:
    """``left`` compared with ``right``; each is a ``Name``, or a value."""

    left: Any
    sign: str
    right: Any

    @property
    def options(self) -> list[Any]:
        """The values that a name is compared with."""
        return list(self.right) if self.sign in ("in", "not in") else [self.right]


@dataclass(frozen=True)
class _Both:
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class _Either:
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Condition:
    """A condition on other hyperparameters. Two with the same text are equal."""

    text: str
    _tree: Any = field(compare=False, repr=False)

    @classmethod
    def parse(cls, raw: object, place: str, how: str = HOW) -> Condition:
        """Parse the value of ``when``, or of another key that is a condition.

        Args:
            raw: as read from the file.
            place: for the message.
            how: the remedy, for the message.

        Raises:
            ConfigError: with the place, the value and the remedy.
        """
        if not isinstance(raw, str) or not raw.strip():
            raise ConfigError(f"{place} = {raw!r}: is no condition; {how}")
        if len(raw) > MOST_CHARACTERS:
            raise ConfigError(
                f"{place}: has {len(raw):,} characters, more than {MOST_CHARACTERS:,}; shorten it"
            )
        try:
            tree = _read(ast.parse(raw.strip(), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ConfigError(f"{place} = {raw!r}: cannot be read as a condition; {how}") from None
        except _NotUnderstoodError as error:
            raise ConfigError(f"{place} = {raw!r}: {error}") from None
        return cls(raw, tree)

    def comparisons(self) -> Iterator[Comparison]:
        """Yield all comparisons in the condition."""
        yield from _comparisons(self._tree)

    @property
    def names(self) -> list[str]:
        """The hyperparameters that it depends on."""
        sides = (side for one in self.comparisons() for side in (one.left, one.right))
        return list(dict.fromkeys(side.name for side in sides if isinstance(side, Name)))

    def holds(self, values: Mapping[str, Any]) -> bool | None:
        """Return whether the condition holds.

        Args:
            values: the other hyperparameters by name. A name that is missing is absent. The value
                ``UNKNOWN`` stands for any value.

        Returns:
            None if that depends on an unknown value.
        """
        return _holds(self._tree, values)


class _NotUnderstoodError(Exception):
    """The condition has something else than comparisons."""


def _read(node: ast.expr) -> Any:
    if isinstance(node, ast.BoolOp):
        parts = tuple(_read(value) for value in node.values)
        return _Both(parts) if isinstance(node.op, ast.And) else _Either(parts)
    if not isinstance(node, ast.Compare):
        raise _NotUnderstoodError(f"{ast.unparse(node)!r} compares nothing; {HOW}")
    sides = [_side(side) for side in (node.left, *node.comparators)]
    made = [
        _comparison(left, COMPARED.get(type(op)), right, node)
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
    ]
    return made[0] if len(made) == 1 else _Both(tuple(made))


def _comparison(left: Any, sign: str | None, right: Any, node: ast.Compare) -> Comparison:
    if sign is None:
        raise _NotUnderstoodError(f"{ast.unparse(node)!r}: use ==, !=, <, <=, >, >= or in")
    if not isinstance(left, Name) and not isinstance(right, Name):
        raise _NotUnderstoodError(
            f"{ast.unparse(node)!r} compares two values; compare a name with a value"
        )
    if sign in ("in", "not in") and not (isinstance(left, Name) and isinstance(right, list)):
        raise _NotUnderstoodError(
            f"{ast.unparse(node)!r}: write a name before {sign}, and a list of values after it, as "
            f"in optimizer {sign} ['sgd', 'rmsprop']"
        )
    return Comparison(left, sign, right)


def _side(node: ast.expr) -> Any:
    """Return a name or a value."""
    if isinstance(node, ast.Name):
        return WORDS[node.id] if node.id in WORDS else Name(node.id)
    return _value(node)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
        return node.value
    if isinstance(node, ast.Name) and node.id in WORDS:
        return WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [_value(one) for one in node.elts]
    if (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(number := _value(node.operand), int | float)
        and not isinstance(number, bool)
    ):
        return -number
    told = ast.unparse(node)
    if isinstance(node, ast.Name):
        raise _NotUnderstoodError(f"{told} is no value; write words in quotes: '{told}'")
    raise _NotUnderstoodError(f"{told!r} is neither a name nor a value; {HOW}")


def _comparisons(tree: Any) -> Iterator[Comparison]:
    if isinstance(tree, Comparison):
        yield tree
    else:
        for part in tree.parts:
            yield from _comparisons(part)


def _holds(tree: Any, values: Mapping[str, Any]) -> bool | None:
    if isinstance(tree, Comparison):
        return _compare(tree, values)
    found = [_holds(part, values) for part in tree.parts]
    decisive = isinstance(tree, _Either)  # one true part is enough for "or", one false for "and"
    if decisive in found:
        return decisive
    return None if None in found else not decisive


def _compare(one: Comparison, values: Mapping[str, Any]) -> bool | None:
    sides = []
    for side in (one.left, one.right):
        if isinstance(side, Name) and side.name not in values:
            return False
        sides.append(values[side.name] if isinstance(side, Name) else side)
    left, right = sides
    if left is UNKNOWN or right is UNKNOWN:
        return None
    if one.sign in ("in", "not in"):
        return is_among(left, right) == (one.sign == "in")
    if one.sign in ("==", "!="):
        return is_among(left, [right]) == (one.sign == "==")
    if not all(isinstance(s, int | float) and not isinstance(s, bool) for s in sides):
        return False
    return bool(ORDERS[one.sign](left, right))  # numpy's numbers have a truth of their own


def is_among(value: Any, options: Collection[Any]) -> bool:
    """Return whether a value equals one of the options. True and 1 are not equal."""
    return any(isinstance(value, bool) == isinstance(o, bool) and value == o for o in options)
