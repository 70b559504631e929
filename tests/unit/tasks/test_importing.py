"""Tasks under their own names: in this process, beside our packages, and in what they start.

What must not touch this process's modules runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from common.errors import TaskError
from worker.tasks import copies, load_task
from worker.tasks.copies import copy, remove_copies
from worker.tasks.importing import activate
from worker.tasks.loader import load_place, place_of, read_code

ROOT = Path(__file__).parents[3]
PARTS = "    def data(self): ...\n    def model(self, hp): ...\n"
DEADLINE_S = 100  # only there to stop a hang


@pytest.fixture(autouse=True)
def _inactive() -> Iterator[None]:
    yield
    activate(None)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def run(code: str, *arguments: object) -> str:
    """Run code as a worker's process runs: with our packages on the path, and no current folder."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environ,
        cwd="/",  # a program that the code starts may look for modules in its folder
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_a_package_with_relative_imports_and_a_file_beside_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "mine/__init__.py": "",
            "mine/numbers.txt": "7",
            "mine/nets/__init__.py": "from .wide import WIDTH",
            "mine/nets/wide.py": "WIDTH = 3",
            "mine/tasks.py": """
                from pathlib import Path
                from . import nets
                from mine.nets.wide import WIDTH

                class T:
                    found = nets.WIDTH, WIDTH, (Path(__file__).parent / "numbers.txt").read_text()
                    def data(self): ...
                    def model(self, hp): ...
            """,
        },
    )
    for spec in ("mine/tasks.py:T", "mine.tasks:T"):
        task = load_task(spec, tmp_path)
        assert type(task).__module__ == "mine.tasks"
        assert task.found == (3, 3, "7")  # type: ignore[union-attr]
    (tmp_path / "configs").mkdir()
    (tmp_path / ".git").mkdir()  # a module is looked for up to the root of the checkout
    assert load_task("mine.tasks:T", tmp_path / "configs").found == (3, 3, "7")  # type: ignore[union-attr]
    with pytest.raises(
        TaskError, match=r"no module mine\.nothing in .*configs, nor in the folders"
    ):
        load_task("mine.nothing:T", tmp_path / "configs")


def test_the_original_is_not_read_after_the_copy_was_made(tmp_path: Path) -> None:
    write(tmp_path, {"mine.py": f"import beside\nclass T:\n{PARTS}", "beside.py": "X = 1\n"})
    place = place_of("mine.py:T", read_code("mine.py:T", tmp_path))
    (tmp_path / "beside.py").unlink()
    load_place("mine.py:T", place)
    assert sys.modules["beside"].X == 1  # type: ignore[attr-defined]
    assert sys.path[0] == str(place.folder) == os.environ["PYTHONPATH"].split(os.pathsep)[0]
    activate(None)
    assert "beside" not in sys.modules and str(place.folder) not in sys.path
    assert str(place.folder) not in os.environ.get("PYTHONPATH", "")


def test_of_two_versions_each_keeps_its_modules(tmp_path: Path) -> None:
    places = []
    for number in (1, 2):
        write(
            tmp_path,
            {
                "mine.py": """
                    def train(trial):
                        import late
                        return late.X
                """,
                "late.py": f"X = {number}\n",
            },
        )
        places.append(place_of("mine.py:train", read_code("mine.py:train", tmp_path)))
    loops = [load_place("mine.py:train", place) for place in places]
    for number in (1, 2, 1, 2):
        activate(places[number - 1].folder)
        assert loops[number - 1].train(None) == number  # type: ignore[union-attr]


def test_a_name_that_a_loaded_library_has_is_refused_in_words(tmp_path: Path) -> None:
    write(tmp_path, {"mine.py": f"import numpy\nclass T:\n{PARTS}", "numpy.py": ""})
    with pytest.raises(
        TaskError, match=r"numpy\.py: has the name of a library that this program has loaded"
    ):
        load_task("mine.py:T", tmp_path)
    (tmp_path / "numpy.py").unlink()
    load_task("mine.py:T", tmp_path)


@pytest.mark.parametrize(
    ("file", "hidden"), [("/usr/bin/worker", True), ("/home/me/my_script.py", False)]
)
def test_the_script_of_our_program_is_hidden_from_what_a_task_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, hidden: bool
) -> None:
    main = ModuleType("__main__")
    main.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", main)
    write(tmp_path, {"mine.py": "def train(trial): ...\n"})
    load_task("mine.py:train", tmp_path)
    assert hasattr(main, "__file__") is not hidden


def test_copies_go_at_the_end_and_what_killed_processes_left_goes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    write(tmp_path, {"mine.py": "def train(trial): ...\n"})
    code = read_code("mine.py:train", tmp_path)
    left = tmp_path / "temporary" / f"{copies.PREFIX}of-a-killed-process"
    (left / "3f0c").mkdir(parents=True)
    remove_copies()
    own = copy(code)
    assert left.is_dir()  # too young to tell whether somebody lives in it
    remove_copies()
    assert not own.exists()
    os.utime(left, (0, 0))
    alive = copy(code)
    assert alive.is_dir() and not left.exists()
    os.utime(alive.parent, (0, 0))
    copies._remove_left_over(tmp_path / "temporary")  # as another process does
    assert alive.is_dir()  # its owner lives
    remove_copies()
    assert not list((tmp_path / "temporary").iterdir())


# The user's own packages are called like ours, with and without __init__.py, and have modules that
# are called like ours.
OURS = {
    "common/__init__.py": "NAME = 'their common'",
    "common/errors.py": "class TaskError(Exception): ...\nNAME = 'their errors'",
    "worker/tasks/base.py": "NAME = 'their base'",
    "master.py": "NAME = 'their master'",
    "helpers.py": """
        import common
        from common import errors

        def square(x):
            import worker.tasks.base
            return x * x, common.NAME, errors.NAME, worker.tasks.base.NAME
    """,
    "mine.py": """
        import multiprocessing
        import pickle
        import subprocess
        import sys

        from joblib import Parallel, delayed

        from coarsefine import Data, Part
        from common.errors import TaskError
        from helpers import square
        import master
        from worker.tasks import base

        def here(x):
            return square(x)

        class Kept:
            value = 5

        def train(trial):
            pickle.loads(pickle.dumps(TaskError("theirs")))
            told = [square(1), master.NAME]
            for kind, function in ("spawn", here), ("forkserver", square), ("fork", here):
                with multiprocessing.get_context(kind).Pool(1) as pool:
                    told += pool.map(function, [2])
                    told += pool.map(type, [Kept()]) if kind == "spawn" else []
            told += Parallel(n_jobs=2, backend="loky")(delayed(square)(x) for x in range(3))
            code = "import helpers, coarsefine; print(helpers.square(3)); coarsefine.Data"
            told.append(subprocess.check_output([sys.executable, "-c", code], text=True))
            told.append(TaskError.__mro__[1].__name__)
            return told
    """,
}


@pytest.mark.slow
def test_packages_called_like_ours_live_beside_ours_and_spawned_processes_find_them(
    tmp_path: Path,
) -> None:
    write(tmp_path, OURS)
    told = run(
        r"""
        import sys
        from pathlib import Path
        import worker.run.start
        from worker.tasks.importing import activate
        from worker.tasks.loader import load_task
        from common.errors import TaskError

        loop = load_task("mine.py:train", Path(sys.argv[1]))
        kept = sys.modules["mine"].Kept
        told = loop.train(None)
        names = "their common", "their errors", "their base"
        assert told[:2] == [(1, *names), "their master"], told
        assert told[2:6] == [(4, *names), kept, *[(4, *names)] * 2], told
        assert told[6:9] == [(x * x, *names) for x in range(3)], told
        assert told[9] == f"{(9, *names)}\n", told
        assert told[10] == "Exception", told

        # Ours go on, those that were loaded before and those that were not.
        from coarsefine.isolation.ours import import_ours
        assert import_ours("worker.checks.run").TaskError is TaskError
        assert import_ours("common.errors").TaskError is TaskError
        try:
            load_task("nothing.py:T", Path(sys.argv[1]))
        except TaskError as error:
            print("ours:", "no such file" in str(error))
        assert load_task("digits", Path()).data().n_classes == 10
        activate(None)
        import common
        print(hasattr(common, "NAME"))
        """,
        tmp_path,
    )
    assert told.splitlines() == ["ours: True", "False"]


@pytest.mark.slow
def test_a_spawned_process_does_not_run_our_main_module(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "worker/__init__.py": "",
            "mine.py": """
                import multiprocessing
                import sys

                import torch
                import worker

                def here(x):
                    return sorted(name for name in sys.modules if name.startswith("worker"))

                class T:
                    def data(self):
                        with multiprocessing.get_context("spawn").Pool(1) as pool:
                            raise RuntimeError(f"found {pool.map(here, [0])[0]}")
                    def model(self, hp): ...
            """,
            "search.toml": """
                name = "own"
                task = "mine.py:T"
                [space]
                learning_rate = 0.1
                [stages.coarse]
                trials = 1
                epochs = 1
            """,
        },
    )
    done = subprocess.run(
        [sys.executable, "-P", "-m", "worker", "check", "--config", tmp_path / "search.toml"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert "found ['worker']" in done.stdout, done.stdout + done.stderr
