"""Random nonsense, and how much of it to try.

`make test` tries a little, the same each time. `make fuzz` tries as much as asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from common.errors import LONGEST

EXAMPLES = "FUZZ_EXAMPLES"
QUICK = 40  # examples a test in `make test`
asked = int(os.environ.get(EXAMPLES, "0"))
fuzzed = settings(
    max_examples=asked or QUICK,
    derandomize=not asked,  # `make test` must not fail for a change that is somebody else's
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
LONGEST_MESSAGE = LONGEST + 100  # characters: more than a screen is no clear message

NUMBERS = (
    st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([0, -1, 1, 2**53 + 1, 1e308, 5e-324, -0.0])
)
ODD_TEXT = st.sampled_from(
    [
        "",
        ".",
        "..",
        "../../x",
        "/etc/passwd",
        "a\0b",
        "\x1b[2J",
        "\n",
        "{cf}",
        "$float",
        "nan",
        "Infinity",
        "ü" * 300,
        "%s%n",
        "[red]x[/]",
    ]
)
TEXT = st.text(max_size=30) | ODD_TEXT
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(TEXT, x, max_size=4), max_leaves=12
)
BYTES = st.binary(max_size=300) | st.sampled_from(
    [b"", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 10_000, b"\xff\xfe", b"null", b"NaN"]
)


def places(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where something else could stand in a nested value."""
    found = [at]
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in inner:
        found += places(item, (*at, key))
    return found


def with_changes(value: Any, most: int = 3) -> st.SearchStrategy[Any]:
    """A valid nested value in which up to ``most`` places hold something else, or nothing."""

    def change(changes: list[tuple[tuple[str | int, ...], Any, bool]]) -> Any:
        copy = json.loads(json.dumps(value))
        for at, other, remove in changes:
            copy = _changed(copy, at, other, remove)
        return copy

    return st.lists(
        st.tuples(st.sampled_from(places(value)), JSON, st.booleans()), min_size=1, max_size=most
    ).map(change)


def _changed(value: Any, at: tuple[str | int, ...], other: Any, remove: bool) -> Any:
    if not at:
        return other
    try:
        if len(at) > 1:
            value[at[0]] = _changed(value[at[0]], at[1:], other, remove)
        elif remove:
            del value[at[0]]
        else:
            value[at[0]] = other
    except (KeyError, IndexError, TypeError):
        pass  # an earlier change has taken this place away
    return value


def with_flips(content: bytes) -> st.SearchStrategy[bytes]:
    """A valid file with some bytes changed, left out or doubled, or cut off."""
    spots = st.integers(0, max(len(content) - 1, 0))

    def damage(changes: list[tuple[int, int, str]]) -> bytes:
        made = bytearray(content)
        for spot, byte, how in changes:
            place = min(spot, len(made))
            if how == "flip" and place < len(made):
                made[place] = byte
            elif how == "cut":
                del made[place:]
            elif how == "drop":
                del made[place : place + 1 + byte % 8]
            else:
                made[place:place] = made[place : place + 1 + byte % 64]
        return bytes(made)

    return st.lists(
        st.tuples(spots, st.integers(0, 255), st.sampled_from(["flip", "cut", "drop", "double"])),
        min_size=1,
        max_size=4,
    ).map(damage)


def refusal(kinds: type[Exception] | tuple[type[Exception], ...], call: Callable[[], Any]) -> Any:
    """Return the call's result, or None if it refuses with one clear message of these kinds.

    Any other exception is a find.
    """
    try:
        return call()
    except kinds as error:
        assert 0 < len(str(error)) < LONGEST_MESSAGE, str(error)[:LONGEST_MESSAGE]
        return None
