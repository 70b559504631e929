"""What `docs/moving-here.md` shows of these libraries is run, and its lines are counted."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.integration.commands import DEADLINE_S, Place, place
from tests.integration.test_pages import BLOCK, DOCS, Move, best_in

PAGE = (DOCS / "moving-here.md").read_text()
SECTION = PAGE.partition("\n## From a library's own loop\n")[2].partition("\n## ")[0]
MOVES = {
    text.partition("\n")[0]: Move(*BLOCK.findall(text), "objective")
    for text in SECTION.split("\n### ")[1:]
}
BACKEND = {"KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Place, str]]]:
    """Every page's search, side by side, after the training that it came from; what it printed."""
    with ExitStack() as stack:
        processes = {}
        for title, move in MOVES.items():
            here = stack.enter_context(place(tmp_path_factory.mktemp("page")))
            (here.path / "before.py").write_text(move.before)
            (here.path / "script.py").write_text(move.here)
            command = f"{sys.executable} before.py && {sys.executable} script.py"
            process = subprocess.Popen(
                ["sh", "-c", command],
                cwd=here.path,
                env=here.environment | BACKEND,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.kill)
            processes[title] = here, process
        printed = {}
        for title, (here, process) in processes.items():
            out, _ = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, f"{title}: {out}"
            printed[title] = here, out
        yield printed


def test_the_page_has_all_of_them() -> None:
    assert list(MOVES) == ["Lightning", "transformers", "Keras", "skorch", "LightGBM"]


@pytest.mark.parametrize("title", list(MOVES))
def test_the_code_of_the_page_runs_before_and_here(
    title: str, ran: dict[str, tuple[Place, str]]
) -> None:
    here, out = ran[title]
    least = 0.1 if title == "transformers" else 0.6  # a few epochs
    assert best_in(out) > least
    assert list((here.root / "objective").glob("*/val_acc=*.pt"))


@pytest.mark.parametrize("title", list(MOVES))
def test_the_page_counts_the_lines_right(title: str) -> None:
    row = re.search(rf"\| \[{title}\]\(#{title.lower()}\) \| (\d+) \| (\d+) \|", PAGE)
    assert row, title
    assert (int(row[1]), int(row[2])) == (MOVES[title].changed, MOVES[title].gone)
