"""The tests that a page of docs/ names.

They must exist, be collected, and run wherever they are collected.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/(?:\w+/)*test_\w+\.py)::((?:Test\w+::)?test_\w+)`")
LOOKS_NAMED = re.compile(r"`tests/[^`]*::[^`]*`")
TURNED_OFF = {"skip", "xfail"}


def rows(text: str, heading: str) -> list[list[str]]:
    """Return the cells of each row of the table under ``## heading``.

    The header row and inner headings are left out.
    """
    section = re.split(rf"^## {heading}$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [
        [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
        for line in lines[2:]
    ]
    return [row for row in cells if not (row[0].startswith("**") and not any(row[1:]))]


def named_in(cell: str) -> bool:
    """Whether a cell is a list of tests and nothing else."""
    return all(NAMED.fullmatch(part) for part in cell.split(", "))


def wrong_names(text: str) -> list[str]:
    """Return the test names in a text that do not run.

    They do not exist, are not collected, or are turned off on every machine.
    """
    wrong = [name for name in LOOKS_NAMED.findall(text) if not NAMED.fullmatch(name)]
    named = NAMED.findall(text)
    return wrong + [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).is_file() or name not in names_in(ROOT / file)
    ]


@cache
def names_in(path: Path) -> frozenset[str]:
    """``test_name``, or ``TestClass::test_name``, of each test of a file that is not turned off."""
    return names_of(path.read_text())


def names_of(source: str) -> frozenset[str]:
    """As ``names_in``, of a source text."""
    return frozenset(_tests(ast.parse(source).body, ""))


def _tests(body: Sequence[ast.stmt], prefix: str) -> dict[str, None]:
    found: dict[str, None] = {}
    marks = [_assigned(node, "pytestmark") for node in body]
    if _leaves_at_once(body) or any(_off(mark) for mark in marks if mark is not None):
        return found
    for node in body:
        if (
            isinstance(node, ast.ClassDef)
            and not prefix
            and node.name.startswith("Test")
            and not any(map(_off, node.decorator_list))
        ):
            found |= _tests(node.body, f"{node.name}::")
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found.pop(
                prefix + node.name, None
            )  # of two of one name, the later is the one that runs
            if not any(map(_off, node.decorator_list)) and not _leaves_at_once(node.body):
                found[prefix + node.name] = None
    return found


def _assigned(node: ast.stmt, name: str) -> ast.expr | None:
    """What a statement gives to this name."""
    targets: Iterable[ast.expr] = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    return (
        value
        if any(isinstance(target, ast.Name) and target.id == name for target in targets)
        else None
    )


def _off(mark: ast.expr) -> bool:
    """Return whether a mark, or one of a list, turns its test off on every machine."""
    if isinstance(mark, ast.List | ast.Tuple):
        return any(map(_off, mark.elts))
    call = mark if isinstance(mark, ast.Call) else None
    name = ast.unparse(call.func if call else mark).rpartition(".")[2]
    conditions = [
        *(call.args if call else ()),
        *(word.value for word in (call.keywords if call else ()) if word.arg == "condition"),
    ]
    conditional = (
        name != "skip" and bool(conditions) and not isinstance(conditions[0], ast.Constant)
    )
    return name in {*TURNED_OFF, "skipif"} and not conditional


def _leaves_at_once(body: Sequence[ast.stmt]) -> bool:
    """Return whether one of these statements calls ``pytest.skip`` or ``pytest.xfail``.

    Statements under an ``if`` do not count.
    """
    calls = [
        node.value
        for node in body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]
    return any(
        ast.unparse(call.func) in {f"pytest.{word}" for word in TURNED_OFF} for call in calls
    )
