"""Every promise in docs/guarantees.md names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")
COLUMNS = 4


def rows(text: str) -> list[list[str]]:
    """The cells of each row of the table, the header and the headings within it left out."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in lines[1:]]
    return [row for row in cells if not row[0].startswith("**")]


@cache
def names_in(path: Path) -> frozenset[str]:
    """``test_name``, or ``TestClass::test_name``, of each test in a file."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + one.name for one in inside if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")}
    return frozenset(found)


def missing(text: str) -> list[str]:
    """The named tests that do not exist."""
    named = NAMED.findall(text)
    return [f"{file}::{name}" for file, name in named if not (ROOT / file).is_file() or name not in names_in(ROOT / file)]


def promises() -> str:
    return (ROOT / "docs" / "guarantees.md").read_text()


def test_every_test_that_a_promise_names_exists() -> None:
    assert missing(promises()) == []


def test_every_promise_names_a_test() -> None:
    found = rows(promises())
    assert len(found) > 20
    for row in found:
        assert len(row) == COLUMNS and all(row), row
        assert NAMED.fullmatch(row[-1]) or all(NAMED.fullmatch(part) for part in row[-1].split(", ")), row


def test_a_name_that_is_not_there_is_seen() -> None:
    here = "tests/unit/test_guarantees.py"
    text = f"`{here}::test_a_name_that_is_not_there_is_seen`, `{here}::test_gone`, `tests/unit/test_gone.py::test_a`"
    assert missing(text) == [f"{here}::test_gone", "tests/unit/test_gone.py::test_a"]
