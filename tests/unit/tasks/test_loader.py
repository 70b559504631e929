import sys

import pytest

from common.code import store
from common.errors import TaskError
from common.folder.records import SearchFolder
from common.search.hyperparameters import BUILT_IN_TASKS
from common.search.search_file import parse_search
from tests.shipped import ship
from worker.tasks import Loop, load_class, load_launched, load_task
from worker.tasks.digits import Digits
from worker.tasks.importing import activate
from worker.tasks.loader import BUILT_IN, looks_like_loop, read_code

GOOD = """
import torch
from worker.tasks.base import Data, Part
import beside

class MyTask:
    def data(self):
        part = Part(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
        return Data(part, part, None, beside.N_CLASSES)

    def model(self, hp):
        return torch.nn.Linear(2, 2)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "my_task.py").write_text(GOOD)
    (tmp_path / "tasks" / "beside.py").write_text("N_CLASSES = 2\n")
    yield tmp_path
    activate(None)


def launched(root, task, base=None):
    """A search of this task, with its code in its folder if it has any."""
    search = parse_search(
        f'name = "own"\ntask = "{task}"\n[space]\nlearning_rate = 0.1\n[stages.coarse]\n'
        "trials = 1\nepochs = 1\n"
    )
    folder = SearchFolder(root / "checkpoints", "own")
    folder.path.mkdir(parents=True)
    if search.task_file is not None:
        ship(folder, task, base)
    return search, folder


def test_a_built_in_task_is_known_by_its_name(tmp_path):
    assert isinstance(load_task("digits", tmp_path), Digits)
    assert store.task_digest(*launched(tmp_path, "digits")) == "builtin:digits"


def test_a_file_beside_the_search_file_is_loaded_with_its_neighbours(folder):
    task = load_task("tasks/my_task.py:MyTask", folder)
    assert task.data().n_classes == 2
    assert type(task).__module__ == "my_task"
    assert sys.modules["my_task"].__file__ != str(folder / "tasks" / "my_task.py")  # a copy of it
    assert (
        load_task(f"{folder}/tasks/my_task.py:MyTask", folder / "elsewhere").data().n_classes == 2
    )


def test_two_tasks_of_the_same_file_name_do_not_meet(folder):
    other = folder / "other"
    other.mkdir()
    (other / "my_task.py").write_text(
        GOOD.replace("import beside", "").replace("beside.N_CLASSES", "3")
    )
    first = load_task("tasks/my_task.py:MyTask", folder)
    assert load_task("other/my_task.py:MyTask", folder).data().n_classes == 3
    assert first.data().n_classes == 2
    assert load_task("tasks/my_task.py:MyTask", folder).data().n_classes == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "digit",
            (
                r"'digit': no built-in task of that name; use one of digits, spiral, mnist, "
                r"fashion_mnist, cifar10, or path/to/my_task"
            ),
        ),
        ("tasks/my_task.py", "no built-in task"),
        (
            "tasks/none.py:MyTask",
            r"none\.py: no such file; the path is taken from the folder of the search file",
        ),
        ("tasks/my_task.py:Other", "has no class or function Other; it has MyTask"),
    ],
)
def test_what_cannot_be_found_is_told(folder, spec, message):
    with pytest.raises(TaskError, match=message):
        load_task(spec, folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "x = 1\n\nraise ValueError('no luck')\n",
            r"importing it raised ValueError: no luck \(bad.py, line 3\)",
        ),
        ("x = 1\ndef f(:\n", r"importing it raised SyntaxError: .*\(bad.py, line 2\)"),
        (
            "import no_such_module_anywhere\n",
            r"ModuleNotFoundError: .*no_such_module_anywhere.* \(bad.py, line 1\); install .* ship",
        ),
        ("class MyTask:\n    def data(self): ...\n", r"MyTask has no method model"),
        (
            (
                "class MyTask:\n    def data(self): ...\n    def model(self, hp): ...\n"
                "    def __init__(self, x): ...\n"
            ),
            r"MyTask\(\) raised TypeError",
        ),
    ],
)
def test_a_task_that_cannot_be_used_is_told_with_its_line(folder, content, message):
    (folder / "tasks" / "bad.py").write_text(content)
    with pytest.raises(TaskError, match=message):
        load_task("tasks/bad.py:MyTask", folder)


LOOP = """
STEPS = 3

def train(trial):
    pass

def two(trial, more):
    pass
"""


def test_a_function_is_a_loop_of_its_own(folder):
    (folder / "tasks" / "my_loop.py").write_text(LOOP)
    found = load_task("tasks/my_loop.py:train", folder)
    assert (
        isinstance(found, Loop)
        and found.name == "tasks/my_loop.py:train"
        and found.train(None) is None
    )
    with pytest.raises(
        TaskError, match="a loop of its own measures itself; this command needs a class"
    ):
        load_class(*launched(folder, "tasks/my_loop.py:train", folder))
    assert load_class(*launched(folder / "more", "digits")).data().n_classes == 10
    for spec, is_loop in (
        ("tasks/my_loop.py:train", True),
        ("tasks/my_loop.py:STEPS", False),
        ("tasks/my_task.py:MyTask", False),
    ):
        assert looks_like_loop(spec, read_code(spec, folder)) is is_loop


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", r"cannot be called with one argument, the trial .*; write def train\(trial\)"),
        ("STEPS", "is a int; name a class with data.* or a function"),
        ("fit", "has no class or function fit; it has train, two"),
    ],
)
def test_a_loop_that_cannot_be_called_is_told(folder, name, message):
    (folder / "tasks" / "my_loop.py").write_text(LOOP)
    with pytest.raises(TaskError, match=message):
        load_task(f"tasks/my_loop.py:{name}", folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "preprocess = 'norm'",
            "MyTask.preprocess = 'norm': use one of none, centre, normalise, pca, whiten",
        ),
        (
            "image_shape = 8",
            r"MyTask.image_shape = 8: \(height, width\) or \(channels, height, width\) is needed",
        ),
        ("loss = 'mse'", "MyTask.loss is a str; a method loss"),
        ("metrics = ['f1']", "metrics is a list; write metrics = "),
        ("metrics = {'F-1': max}", "'F-1' cannot be part of a file name"),
        ("metrics = {'val_acc': max}", "'val_acc' is measured already"),
        ("metrics = {'f1': 0.5}", "metrics: f1 is a float; a function of"),
    ],
)
def test_an_attribute_that_cannot_be_used_is_told(folder, line, message):
    (folder / "tasks" / "odd.py").write_text(
        GOOD.replace("class MyTask:", f"class MyTask:\n    {line}")
    )
    with pytest.raises(TaskError, match=message):
        load_task("tasks/odd.py:MyTask", folder)


def test_a_digest_needs_its_code(folder):
    search, own = launched(folder, "tasks/my_task.py:MyTask", folder)
    assert load_launched(search, own).data().n_classes == 2
    own.task_file.unlink()
    with pytest.raises(TaskError, match=r"has no task\.json.*launch with the search file again"):
        load_launched(search, own)


def test_built_in_tasks_are_those_of_the_search_file():
    assert list(BUILT_IN) == list(BUILT_IN_TASKS)


def test_a_data_folder_reaches_the_tasks_that_read_files(tmp_path):
    assert load_task("mnist", tmp_path, tmp_path / "images").data_dir == tmp_path / "images"
    assert not hasattr(load_task("spiral", tmp_path, tmp_path / "images"), "data_dir")
