"""Load the task that a search file's ``task`` line names.

The line holds the name of a built-in task, ``path/to/my_task.py:MyTask``,
``path/to/my_loop.py:train``, or a module in place of the path: ``my_package.tasks:MyTask``.

A task is always imported from a copy of the files that are shipped with it, never from the user's
own folder: so what works in the checks works in every worker.
"""

from __future__ import annotations

import ast
import inspect
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from coarsefine.isolation.ours import import_ours
from common.code import store
from common.code.choose import collect, collect_own
from common.code.tree import Code
from common.errors import CheckpointError, TaskError
from common.folder.chosen import Chosen
from common.folder.records import SearchFolder
from common.options import DATA_FOLDER
from common.search.command import is_command
from common.search.search_file import Search
from worker.tasks.base import Loop, Task, check_attributes, own_metrics
from worker.tasks.copies import copy
from worker.tasks.importing import Place, forget

BUILT_IN = {  # modules and classes, imported on demand
    "digits": ("worker.tasks.digits", "Digits"),
    "spiral": ("worker.tasks.spiral", "Spiral"),
    "mnist": ("worker.tasks.mnist", "Mnist"),
    "fashion_mnist": ("worker.tasks.mnist", "FashionMnist"),
    "cifar10": ("worker.tasks.cifar", "Cifar10"),
}


def load_task(
    spec: str,
    folder: Path,
    data_dir: Path = DATA_FOLDER,
    patterns: Sequence[str] = (),
    checkpoints: Path | None = None,
) -> Task | Loop:
    """Load the task that ``spec`` names, from the files that a launch would ship.

    Args:
        spec: ``digits``, ``path/to/my_task.py:MyTask``, ``path/to/my_loop.py:train``, or
            ``my_package.tasks:MyTask``. A relative path is relative to ``folder``.
        folder: the folder of the search file.
        data_dir: where built-in tasks find their files and download them to. Nothing is read before
            ``data()`` is called.
        patterns: ``code`` of the search file.
        checkpoints: the checkpoint folder, which is not shipped.

    Returns:
        An instance of the task's class, or a ``Loop`` if ``spec`` names a function.

    Raises:
        TaskError: the task, its file, class or function does not exist, or importing it raised. The
            message says where.
    """
    if spec in BUILT_IN or is_command(spec):
        return _built_in(spec, data_dir)
    return load_code(spec, read_code(spec, folder, patterns, checkpoints))


def load_launched(
    search: Search, folder: SearchFolder, data_dir: Path = DATA_FOLDER, digest: str | None = None
) -> Task | Loop:
    """Load the task of a search from the code in the search's folder.

    Args:
        search: the search.
        folder: its folder.
        data_dir: as for ``load_task``.
        digest: digest of the code that may run. None: the code that was launched or mended last.

    Raises:
        TaskError: as ``load_task``, or the code in the folder has another digest.
    """
    if search.task_file is None:
        return _built_in(search.task, data_dir)
    return load_code(search.task, read_launched(folder, digest))


def load_chosen(chosen: Chosen, data_dir: Path = DATA_FOLDER) -> Task | Loop:
    """Load the task of a search as a launch would ship it, or else as it was launched.

    Raises:
        TaskError: as ``load_task``.
    """
    code = code_of(chosen)
    if code is None:
        return _built_in(chosen.search.task, data_dir)
    return load_code(chosen.search.task, code)


def code_of(chosen: Chosen) -> Code | None:
    """Return the code of a search's task; None for a built-in task or a command.

    It is what a launch would ship. If the user's own files are gone, it is what was launched.

    Raises:
        TaskError: the task's files are not found, or cannot be shipped.
    """
    code = collect_own(chosen.search, chosen.base, chosen.folder)
    if code is None and chosen.search.task_file is not None:
        return read_launched(chosen.folder)
    return code


def load_class(search: Search, folder: SearchFolder, data_dir: Path = DATA_FOLDER) -> Task:
    """Load a task as ``load_launched`` does, but refuse a ``Loop``.

    Raises:
        TaskError: as ``load_launched``, or the task is a function.
    """
    found = load_launched(search, folder, data_dir)
    if isinstance(found, Loop):
        raise TaskError(
            f"task {search.task!r}: a loop of its own measures itself; this command needs a class "
            "with data() and model(hp)"
        )
    return found


def read_code(
    spec: str, folder: Path, patterns: Sequence[str] = (), checkpoints: Path | None = None
) -> Code:
    """Return the files that a launch would ship with a task.

    Raises:
        TaskError: the task is unknown, or the files cannot be shipped.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name.isidentifier():
        known = ", ".join(BUILT_IN)
        raise TaskError(
            f"task {spec!r}: no built-in task of that name; use one of {known}, or "
            "path/to/my_task.py:MyTask"
        )
    return collect(spec, folder, patterns, checkpoints)


def read_launched(folder: SearchFolder, digest: str | None = None) -> Code:
    """Return the code in a search's folder, after comparing it with its digest.

    Raises:
        TaskError: it is missing, or has another digest.
    """
    try:
        return store.read(folder, digest or store.launched_digest(folder))
    except CheckpointError as error:
        raise TaskError(str(error)) from error


def place_of(spec: str, code: Code) -> Place:
    """Return where any process of this machine can import a task: folder, module, attribute.

    The copy in that folder lasts as long as this process.

    Raises:
        TaskError: the copy cannot be written.
    """
    return Place(copy(code), code.module, spec.rpartition(":")[2])


def looks_like_loop(spec: str, code: Code) -> bool:
    """Return whether the task's file defines the name as a function, without running the file.

    Return False, too, if the file cannot be parsed.
    """
    try:
        tree = ast.parse(code.source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False  # the error is reported when the task is loaded
    name = spec.rpartition(":")[2]
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def load_code(spec: str, code: Code) -> Task | Loop:
    """Load a task from its shipped files, as ``load_task`` does."""
    return load_place(spec, place_of(spec, code))


def load_place(spec: str, place: Place) -> Task | Loop:
    """Load a task from the place where this process, or the one that started it, has copied it.

    Raises:
        TaskError: as ``load_task``.
    """
    module = _import(spec, place)
    found = getattr(module, place.attribute, None)
    if found is None:
        own = [
            (name, value)
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__
        ]
        names = [
            name for name, value in own if isinstance(value, type) or inspect.isfunction(value)
        ]
        raise TaskError(
            f"task {spec!r}: it has no class or function {place.attribute}; it has "
            f"{', '.join(names) or 'none'}"
        )
    return _instance(found, spec) if isinstance(found, type) else _loop(found, spec)


def _built_in(name: str, data_dir: Path) -> Task:
    if is_command(name):
        raise TaskError(
            f"task {name!r}: a program trains by itself; this needs a class with data() and "
            "model(hp)"
        )
    module_name, class_name = BUILT_IN[name]
    task = _instance(getattr(import_ours(module_name), class_name), name)
    if hasattr(task, "data_dir"):
        task.data_dir = data_dir
    return task


def _import(spec: str, place: Place) -> ModuleType:
    try:
        return place.load()
    except TaskError as error:
        raise TaskError(f"task {spec!r}: {error}") from None
    except (Exception, SystemExit) as error:
        forget(place.folder)
        raise TaskError(
            f"task {spec!r}: importing it raised {_explain(error, place.folder)}; {_remedy(error)}"
        ) from error


def _remedy(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"install {error.name} where the workers run, or, if it is yours, ship it: add its "
            "file to code = [...] in the search file, or move it into the task's folder"
        )
    return "correct the file"


def _instance(found: type[Task], spec: str) -> Task:
    missing = [method for method in ("data", "model") if not callable(getattr(found, method, None))]
    if missing:
        raise TaskError(
            f"task {spec!r}: {found.__name__} has no method {' and no method '.join(missing)}; a "
            "task has data() and model(hp)"
        )
    try:
        task = found()
        check_attributes(found)
        own_metrics(task)
    except TaskError as error:
        raise TaskError(f"task {spec!r}: {error}") from error
    except Exception as error:
        raise TaskError(
            f"task {spec!r}: {found.__name__}() raised {_explain(error, None)}; a task needs no "
            "arguments"
        ) from error
    return task


def _loop(found: object, spec: str) -> Loop:
    if not callable(found):
        raise TaskError(
            f"task {spec!r}: is a {type(found).__name__}; name a class with data() and model(hp), "
            "or a function train(trial)"
        )
    try:
        inspect.signature(found).bind(object())
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"task {spec!r}: cannot be called with one argument, the trial ({error}); write def "
            "train(trial)"
        ) from None
    return Loop(found, spec)


def _explain(error: BaseException, folder: Path | None) -> str:
    """Return the error as text, with the last line of the user's own files that led to it."""
    if isinstance(error, SyntaxError):
        place = f"{Path(error.filename).name}, " if error.filename else ""
        return f"{type(error).__name__}: {error.msg} ({place}line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if folder and Path(frame.filename).is_relative_to(folder)]
    last = (own or frames)[-1]
    file = Path(last.filename)
    name = file.relative_to(folder).as_posix() if own and folder else file.name
    return f"{type(error).__name__}: {error} ({name}, line {last.lineno})"
