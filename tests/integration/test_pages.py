"""The pages for notebooks and for people from other tools: what they show is run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.commands import DEADLINE_S, place

pytestmark = pytest.mark.faults  # four scripts that search: half a minute
DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)

# Runs cells as IPython does: each is in the list `In` and in linecache, under a name that is no
# file, and its last expression is shown.
NOTEBOOK = """
import ast, json, linecache, sys, __main__
space = vars(__main__)
del space["__file__"]
space["In"], space["get_ipython"] = [""], lambda: None
for number, cell in enumerate(json.loads(sys.stdin.read()), start=1):
    name = f"/tmp/ipykernel_1/{number}.py"
    space["In"].append(cell)
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), space)
    if last is not None:
        shown = eval(compile(ast.Expression(last.value), name, "eval"), space)
        print(f"cell {number}: {type(shown).__name__}: {shown!r}"[:2000])
"""


@dataclass(frozen=True)
class Move:
    """A way that the page shows: the code as it was, and the code here."""

    before: str
    here: str
    task: str  # the search's name

    @property
    def changed(self) -> int:
        """Lines here that were not there before, blank ones aside."""
        return (_lines(self.here) - _lines(self.before)).total()

    @property
    def gone(self) -> int:
        """Lines from before that are not here."""
        return (_lines(self.before) - _lines(self.here)).total()


def _lines(code: str) -> Counter[str]:
    return Counter(line.strip() for line in code.splitlines() if line.strip())


def moves() -> dict[str, Move]:
    """By their rows in the page's first table."""
    sections = {
        text.partition("\n")[0]: BLOCK.findall(text)
        for text in (DOCS / "moving-here.md").read_text().split("\n## ")[1:]
    }
    optuna, loop, own_class = sections["From Optuna"]
    return {
        "Optuna, your loop kept": Move(optuna, loop, "objective"),
        "Optuna, as a class": Move(optuna, own_class, "Digits"),
        "W&B sweeps": Move(*sections["From W&B sweeps"], "objective"),
        "Ray Tune": Move(*sections["From Ray Tune"], "objective"),
    }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, str]]]:
    """Every page's code, side by side, each in its own folder; what it printed."""
    scripts = {move.task: move.here for move in moves().values()}
    scripts["Optuna"] = moves()["Optuna, as a class"].before
    cells = BLOCK.findall((DOCS / "notebooks.md").read_text())
    processes = {}
    for title in [*scripts, "notebook"]:
        folder = tmp_path_factory.mktemp("page")
        (folder / "script.py").write_text(scripts.get(title, NOTEBOOK))
        with place(folder) as own:
            environment = own.environment
        processes[title] = (
            folder,
            subprocess.Popen(
                [sys.executable, "script.py"],
                cwd=folder,
                env=environment | {"OMP_NUM_THREADS": "1"},
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            ),
        )
    printed = {}
    try:
        for title, (folder, process) in processes.items():
            given = json.dumps(cells) if title == "notebook" else None
            out, _ = process.communicate(given, timeout=DEADLINE_S)
            assert process.returncode == 0, f"{title}: {out}"
            printed[title] = folder, out
        yield printed
    finally:
        for _, process in processes.values():
            process.kill()
            process.wait()


def test_the_notebook_s_cells_run_one_after_the_other(ran: dict[str, tuple[Path, str]]) -> None:
    folder, out = ran["notebook"]
    shown = dict(re.findall(r"^cell (\d+): (\w+):", out, re.MULTILINE))
    assert list(shown.values()) == [
        "BestTrial", "DataFrame", "DataFrame", "DataFrame", "Figure", "Figure"
    ]  # fmt: skip
    assert "checks of search 'Digits'" in out and "4 trials ended" in out
    source = (folder / "searches" / "Digits" / "task.py").read_text()
    assert "x, x_val = (images / 16)" in source and "cf.search(" not in source


def test_what_came_from_another_tool_finds_a_good_model_here(
    ran: dict[str, tuple[Path, str]],
) -> None:
    loops = {move.here for move in moves().values() if move.task == "objective"}
    assert len(loops) == 1  # so it runs once
    for move in moves().values():
        folder, out = ran[move.task]
        value = best_in(out)
        assert value > 0.85
        name = f"val_acc={value:.4f}-*.pt"
        assert list((folder / "checkpoints" / move.task).glob(f"*/{name}"))
    assert best_in(ran["Optuna"][1]) > 0.85


def best_in(out: str) -> float:
    """The value that a script printed before its configuration."""
    return float(re.findall(r"^(0\.\d+) \{'", out, re.MULTILINE)[-1])


def test_the_page_counts_the_lines_right() -> None:
    page = (DOCS / "moving-here.md").read_text()
    for title, move in moves().items():
        row = re.search(rf"\| \[{re.escape(title)}\][^|]*\| (\d+) \| (\d+) \|", page)
        assert row, title
        assert (int(row[1]), int(row[2])) == (move.changed, move.gone), title
