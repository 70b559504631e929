"""A search that is described in Python: its search file, its task's file, and what is refused."""

from __future__ import annotations

import functools
import linecache
import os
import site
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coarsefine as cf
from common.code.choose import collect
from common.errors import ConfigError, TaskError
from common.search.search_file import load_search
from master.scripting.draft import Draft
from master.scripting.statements import Source
from master.scripting.task_source import HEADER, find_task, write_source

SPACE = {"learning_rate": {"log_uniform": [1e-3, 1e0]}, "hidden": 8}
STAGES = {"coarse": {"trials": 8, "epochs": 1}, "fine": {"trials": 2, "epochs": 3}}


def train(trial: Any) -> None:
    """A task of this module."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CHECKPOINT_DIR", "REDIS_URL", "DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Session:
    """A notebook or an interpreter: cells run one after the other in a namespace of their own."""

    def __init__(self, keeps: str) -> None:
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self._keeps = keeps
        if keeps == "In":
            self.namespace |= {"In": [""], "get_ipython": lambda: None}

    def run(self, cell: str) -> None:
        name = f"<cell-{len(linecache.cache)}>" if self._keeps != "In" else "/tmp/ipykernel_1/1.py"
        if self._keeps == "In":
            self.namespace["In"].append(cell)
        elif self._keeps == "linecache":
            linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        exec(compile(cell, name, "exec"), self.namespace)

    def __getitem__(self, name: str) -> Any:
        return self.namespace[name]


@pytest.fixture(params=["In", "linecache"])
def session(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """As IPython keeps its cells, and as the interpreter of Python 3.13 does."""
    kept = dict(linecache.cache)
    for name in [name for name in linecache.cache if not Path(name).exists()]:
        del linecache.cache[name]
    made = Session(request.param)
    module = types.ModuleType("__main__")
    module.__dict__.update(made.namespace)
    made.namespace = module.__dict__
    monkeypatch.setitem(sys.modules, "__main__", module)
    yield made
    linecache.cache.clear()
    linecache.cache.update(kept)


def described(task: object = "digits", **options: Any) -> Draft:
    return cf.search(task, SPACE, STAGES, **options)


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


# -- the search file -------------------------------------------------------------------------------


def test_the_search_file_is_what_one_writes_by_hand(here: Path) -> None:
    budget = {"epochs": np.int64(90), "max_epochs": 9}
    space = {
        "learning_rate": {"log_uniform": (np.float64(1e-3), 1.0)},
        "hidden": {"choice": np.array([8, 16])},
        "optimizer": "adam",
        "nesterov": np.True_,
    }
    draft = cf.search("digits", space, name="mine", seed=3, budget=budget, keep=5)
    path = draft.write()
    assert path == Path("searches/mine/search.toml") == draft.file
    assert read(path) == {
        "name": "mine",
        "task": "digits",
        "seed": 3,
        "keep": 5,
        "space": {
            "learning_rate": {"log_uniform": [1e-3, 1.0]},
            "hidden": {"choice": [8, 16]},
            "optimizer": "adam",
            "nesterov": True,
        },
        "budget": {"epochs": 90, "max_epochs": 9},
    }
    assert "learning_rate = {log_uniform = [0.001, 1.0]}\n" in path.read_text()
    assert load_search(path).name == "mine"


def test_stages_are_a_table_or_a_list_of_tables() -> None:
    listed = [{"name": name, **table} for name, table in STAGES.items()]
    path = cf.search("digits", SPACE, listed).write()
    assert read(path)["stages"] == STAGES and list(read(path)["stages"]) == ["coarse", "fine"]
    with pytest.raises(ConfigError, match=r"stages\[0\] = .*: has no name; write"):
        cf.search("digits", SPACE, [{"trials": 3, "epochs": 1}])
    with pytest.raises(ConfigError, match=r"a second stage 'coarse'"):
        cf.search("digits", SPACE, [*listed, listed[0]])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"space": {}}, r"\[space\]: \{\} is not a table of hyperparameters"),
        ({"space": {"a": {"log_uniform": [0, 1]}}}, r"\[space\] a: the range .* touches zero"),
        ({"space": {"a": object()}}, r"space a = <object .*: a object cannot be written"),
        ({"space": {"a": None}}, r"space a = None: a NoneType cannot be written"),
        ({"stages": None}, r"\[budget\] is missing"),
        ({"stages": {"all": {"trials": 1, "epochs": 1}}}, r"the name 'all' means every stage"),
        ({"colour": "red"}, r"colour = 'red': unknown key"),
        ({"task": {"command": "true"}}, r'task: a command has no name .*; add name="..."'),
        ({"id": "0" * 16}, r"id: is set by launch; leave it out"),
        ({"name": "a/b"}, r"name: 'a/b' cannot be a folder"),
        ({"task": "digit"}, r"task = 'digit': no built-in task of that name; use one of digits"),
        ({"task": "nowhere_at_all:f"}, r"nowhere_at_all is neither a file .* nor a module"),
        ({"task": "json.nothing:f"}, r"neither a file|cannot find the module json.nothing"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    here: Path, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(cf.SearchError, match=told):
        cf.search(**{"task": "digits", "space": SPACE, "stages": STAGES, **arguments})
    assert list(here.iterdir()) == []


def test_a_file_that_was_written_by_hand_is_not_replaced(here: Path) -> None:
    draft = described()
    draft.write()
    draft.write()  # one's own is
    draft.file.write_text(draft.file.read_text().removeprefix(HEADER))
    mine = draft.file.read_text()
    with pytest.raises(ConfigError, match=r"search\.toml: was written by hand and stays"):
        draft.write()
    assert draft.file.read_text() == mine
    assert described(folder="elsewhere").write() == Path("elsewhere/search.toml")


def test_a_program_runs_where_the_script_was_started(here: Path) -> None:
    command = {"command": ["sh", "train.sh", "{learning_rate}"]}
    path = described(command, name="program").write()
    found = load_search(path)
    assert found.is_command and found.folder == str(here)
    assert read(path)["task"] == command


# -- tasks -----------------------------------------------------------------------------------------


def test_a_task_of_a_module_is_its_file(here: Path) -> None:
    path = described(train).write()
    assert not (path.parent / "task.py").exists()
    file, _, name = load_search(path).task.rpartition(":")
    assert (path.parent / file).resolve() == Path(__file__) and name == "train"
    assert load_search(path).name == "train"
    assert find_task(f"{__name__}:train").task == f"{Path(__file__)}:train"
    relative = os.path.relpath(__file__)
    assert find_task(f"{relative}:train").task == f"{Path(__file__)}:train"


def test_a_function_of_a_notebook_is_written_with_what_it_needs(session: Session) -> None:
    session.run("from __future__ import annotations\nimport math\nimport coarsefine as cf")
    session.run("SCALE = 2.0")
    session.run("def helper(x):\n    return SCALE * math.pi * x")
    session.run("def train(trial: math.nothing):\n    return helper(1.0)  # so it is")
    draft = described(session["train"])
    path = draft.write()
    written = (path.parent / "task.py").read_text()
    assert written.startswith(HEADER) and "# so it is" in written and "coarsefine as" not in written
    assert load_search(path).task == "task.py:train" and draft.name == "train"
    namespace: dict[str, Any] = {}
    exec(compile(written, "task.py", "exec", dont_inherit=True), namespace)
    assert namespace["train"](None) == pytest.approx(6.2832, abs=1e-4)


def test_a_class_of_a_notebook_is_written_too(session: Session) -> None:
    session.run("import coarsefine as cf\nclass Mine:\n    def model(self, hp): return cf.Part")
    path = described(session["Mine"]).write()
    assert load_search(path).task == "task.py:Mine"
    assert "import coarsefine as cf" in (path.parent / "task.py").read_text()


def test_cells_that_ran_again_in_another_order_are_the_same_task(session: Session) -> None:
    cells = ["import math", "x = math.pi", "def other(): return x", "def train(trial): other()"]
    for cell in cells:
        session.run(cell)
    path = described(session["train"]).write()
    before = (path.parent / "task.py").read_text()
    for cell in (cells[2], cells[1], cells[0], cells[3]):
        session.run(cell)
    described(session["train"]).write()
    assert (path.parent / "task.py").read_text() == before
    session.run("x = math.e")
    described(session["train"]).write()
    assert (path.parent / "task.py").read_text() != before


def test_a_cell_that_describes_its_own_task_counts_up_to_there(session: Session) -> None:
    session.run("def train(trial): return x")
    session.namespace["described"] = described
    session.run("x = 1\ndraft = described(train)\nx = 2")
    written = (session["draft"].write().parent / "task.py").read_text()
    assert "x = 1" in written and "x = 2" not in written


def test_modules_beside_the_notebook_are_shipped(
    session: Session, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "my_helper_of_tests.py").write_text("VALUE = 3\n")
    (here / "other.py").touch()
    monkeypatch.syspath_prepend("")
    session.run("def train(trial):\n    import my_helper_of_tests\n    import numpy, json")
    path = described(session["train"]).write()
    search = load_search(path)
    assert search.code_from == ("../..",)
    assert "sys.path" not in (path.parent / "task.py").read_text()
    code = collect(search.task, path.parent, code_from=search.code_from)
    assert sorted(code.files) == ["my_helper_of_tests.py", "task.py"]


def test_a_module_that_every_process_finds_is_not_shipped(
    session: Session, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an editable install, or in a folder of PYTHONPATH."""
    names = ("my_first_of_tests", "my_second_of_tests")
    for name in names:
        (here / name).mkdir()
        (here / name / f"{name}.py").touch()
        monkeypatch.syspath_prepend(str(here / name))
    monkeypatch.setenv("PYTHONPATH", str(here / names[0]))
    (here / "installed.pth").write_text(f"import os\n{here / names[1]}\n")
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(here)])
    session.run(f"import {', '.join(names)}\ndef train(trial): {', '.join(names)}")
    assert not load_search(described(session["train"]).write()).code_from


def test_folders_to_import_from_are_given_as_seen_from_here(session: Session, here: Path) -> None:
    (here / "lib").mkdir()
    session.run("def train(trial): ...")
    path = described(session["train"], code_from=["lib"], code=["*.py"]).write()
    assert load_search(path).code_from == ("../../lib",) and load_search(path).code == ("*.py",)
    with pytest.raises(ConfigError, match=r"code_from = 'lib': not a list of folders; write"):
        described(session["train"], code_from="lib")


def made(trial: Any) -> Any:
    def inner(trial: Any) -> None: ...

    return inner


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (lambda trial: None, "a lambda has no name to import it by; write `def train"),
        (made(None), r"task = made.<locals>.inner: is defined within made, where a worker"),
        (functools.partial(train, 1), r"is a partial and neither a function nor a class"),
        (3, r"task = 3: is a int and neither"),
        (Session.run, r"task = Session.run: is defined within Session"),
        (len, r"is a builtin_function_or_method and neither"),
    ],
)
def test_what_has_no_source_of_its_own_is_refused(task: object, told: str) -> None:
    with pytest.raises(TaskError, match=told):
        described(task)


def test_what_only_the_notebook_has_is_refused(session: Session) -> None:
    session.run("def train(trial): return found")
    session.namespace["found"] = 1  # as a magic sets it
    with pytest.raises(TaskError, match=r"train: needs 'found', which no statement that ran here"):
        described(session["train"])
    session.run("found = 2")
    old = session["train"]
    session.run("def train(trial): return 7")
    with pytest.raises(TaskError, match=r"the name train stands for something else by now"):
        described(old)


def test_a_script_s_path_and_command_line_are_those_it_had(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--width", "7"])
    text = (
        "import argparse\nparser = argparse.ArgumentParser()\n"
        "parser.add_argument('--width', type=int)\nargs = parser.parse_args()\n"
        "def train(trial): return args.width, __file__\n"
    )
    written = write_source([Source("run.py", text)], "train", {"__file__": "run.py"})
    monkeypatch.setattr(sys, "argv", ["worker", "start"])
    namespace: dict[str, Any] = {"__file__": "task.py"}
    exec(written, namespace)
    assert namespace["train"](None) == (7, str(here / "run.py"))
    assert "argv" not in write_source([Source("a", "def train(trial): ...")], "train", {})


def test_an_import_of_a_package_s_own_is_refused() -> None:
    source = Source("run.py", "from . import helper\ndef train(trial): helper")
    with pytest.raises(TaskError, match=r"run.py, line 1 imports relatively .* task = 'package.mo"):
        write_source([source], "train", {})


def test_what_an_interpreter_keeps_no_source_of_is_refused(
    monkeypatch: pytest.MonkeyPatch, session: Session
) -> None:
    exec(compile("def train(trial): ...", "<stdin>", "exec"), session.namespace)
    session.namespace.pop("In", None)
    with pytest.raises(TaskError, match=r"Python keeps no source of what is typed here; write it"):
        described(session["train"])
