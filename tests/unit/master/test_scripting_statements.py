"""What of a script or notebook goes into the file of its task: all that it needs, and no more."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pytest

from common.errors import TaskError
from master.scripting.statements import Source, choose_statements, find_unbound, read_statements


def texts(*cells: str, target: str = "train") -> list[str]:
    sources = [Source(f"cell {n}", textwrap.dedent(cell)) for n, cell in enumerate(cells, 1)]
    return [own.text for own in choose_statements(read_statements(sources), target)]


def run(chosen: Sequence[str]) -> object:
    """What the function returns where only these statements have run."""
    namespace: dict[str, object] = {}
    exec("\n".join(chosen), namespace)
    return namespace["train"](None)  # type: ignore[operator]


SCRIPT = """
import json
import math
import random

WIDTH = 3
OTHER = json.dumps({})

def area(r):
    return math.pi * r * WIDTH  # of a strip

def unused():
    return OTHER

def train(trial):
    json = 1  # its own, not the module
    return area(2)

print(train(None))
random.shuffle([])
"""


def test_a_function_takes_what_it_needs_and_nothing_else() -> None:
    chosen = texts(SCRIPT)
    assert [text.split("\n")[0] for text in chosen] == [
        "import math", "WIDTH = 3", "def area(r):", "def train(trial):"
    ]  # fmt: skip
    assert "# of a strip" in chosen[2] and run(chosen) == pytest.approx(18.85, abs=0.01)


def test_a_class_takes_its_bases_decorators_and_defaults() -> None:
    chosen = texts(
        """
        from functools import cache
        SIZE, DEEP = 4, 2
        class Base: pass
        def mark(c): return c
        @mark
        class Mine(Base):
            size = SIZE
            def model(self, hp, depth=DEEP): return cache
        """,
        target="Mine",
    )
    assert [text.split("\n")[0] for text in chosen] == [
        "from functools import cache", "SIZE, DEEP = 4, 2", "class Base: pass",
        "def mark(c): return c", "@mark",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "value"),
    [
        (("x = [1]", "x.append(2)", "x[0] = 5", "x += [3]"), [5, 2, 3]),
        (("x = 1", "x = x + 1", "y = x"), 2),
        (("import random", "random.seed(3)", "x = random.random()"), 0.23796462709189137),
        (("x = 1\nif x:\n    x = 7",), 7),
        (("x = []\nfor n in range(3):\n    x.append(n)",), [0, 1, 2]),
        (("try:\n    import nowhere as x\nexcept ImportError:\n    x = 4",), 4),
        (("def f(): return g() + 1", "def g(): return 1", "x = f()"), 2),
        (("x = 0", "def grow():\n    global x\n    x += 1", "x = 5"), 5),
        (("from math import *", "x = floor(pi)"), 3),
        (("x = 1", "x: int"), 1),
        (("import os.path", "import os", "x = os.path.sep"), "/"),
        (("class Box: pass", "x = Box()", "x.y = 2", "x = x.y"), 2),
    ],
)
def test_a_name_is_what_all_that_ran_made_of_it(cells: tuple[str, ...], value: object) -> None:
    assert run(texts(*cells, "def train(trial): return x")) == value


def test_cells_that_ran_again_count_once_and_the_last_definition_counts() -> None:
    cells = ["import math", "x = math.sqrt(4)", "x = x / 2", "def train(trial): return x"]
    again = texts(*cells, cells[1], cells[2], cells[0], cells[3])
    assert run(again) == 1 and sorted(set(again)) == sorted(cells) and again.count(cells[2]) == 1
    assert run(texts(*cells, "def train(trial): return 9")) == 9
    assert run(texts(*cells, cells[2])) == 0.5  # halved twice, as in the notebook


def test_a_cell_that_is_not_python_is_skipped() -> None:
    assert run(texts("x = (", "x = 3", "!ls", "def train(trial): return x")) == 3


def test_only_what_has_run_counts() -> None:
    source = Source("s.py", "x = 1\ndef train(trial): return x\nlaunch()\nx = 2\n", lines=3)
    found = choose_statements(read_statements([source]), "train")
    assert [own.text for own in found] == ["x = 1", "def train(trial): return x"]


@pytest.mark.parametrize(
    "launching",
    [
        "import coarsefine as cf\nx = cf.search('digits', {}).launch('all')",
        "from coarsefine import load\nx = load('checkpoints/digits').best",
        "import coarsefine as cf\ndef main(): return cf.search(1, {}).launch()\nx = main()",
        "import coarsefine as cf\nfor n in range(2):\n    x = cf.search(n, {}).launch()",
    ],
)
def test_a_task_does_not_take_a_launch_with_it(launching: str) -> None:
    with pytest.raises(TaskError, match=r"train needs 'x'.*cell 1, line \d\) runs or loads a"):
        texts(launching, "def train(trial): return x")
    task = texts(launching, "import coarsefine as cf", "def train(trial): return cf.Part")
    assert task[-1] == "def train(trial): return cf.Part" and not any("x =" in t for t in task)


def test_what_no_worker_runs_is_refused() -> None:
    guarded = "if __name__ == '__main__':\n    x = 1\n    y = 2"
    with pytest.raises(TaskError, match=r"needs 'x'.*below `if __name__ == \"__main__\":`"):
        texts(guarded, "def train(trial): return x")
    assert run(texts(guarded, "def train(trial): return 4")) == 4


def test_a_name_that_nothing_sets_is_found() -> None:
    def unbound(*cells: str) -> list[str]:
        sources = [Source("s", cell) for cell in cells]
        return find_unbound(choose_statements(read_statements(sources), "train"))

    assert unbound("def train(trial): return x + len(str(display))") == ["display", "x"]
    assert unbound("from m import *", "def train(trial): return x") == []
    assert unbound("def train(trial):\n    x = 1\n    return [x for y in trial]") == []


def test_a_class_reads_its_body_at_once_and_its_methods_later() -> None:
    chosen = texts(
        "SIZES, best = [1, 2], 1",
        "class Mine:\n    sizes = [s + best for s in SIZES]\n    def model(self): return later",
        "later, best, SIZES = 3, 4, 5",
        "def train(trial): return Mine.sizes, Mine().model()",
    )
    assert run(chosen) == ([2, 3], 3)
