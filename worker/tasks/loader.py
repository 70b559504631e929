"""From the ``task`` line of a search file to a task: a built-in name, or ``path/to/my_task.py:MyTask``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from common import task_file
from common.errors import TaskError
from common.options import DATA_FOLDER
from worker.tasks.base import Loop, Task, check_attributes, own_metrics

BUILT_IN = {  # imported when asked for: scikit-learn takes a second
    "digits": ("worker.tasks.digits", "Digits"),
    "spiral": ("worker.tasks.spiral", "Spiral"),
    "mnist": ("worker.tasks.mnist", "Mnist"),
    "fashion_mnist": ("worker.tasks.mnist", "FashionMnist"),
    "cifar10": ("worker.tasks.cifar", "Cifar10"),
}
OUR_PACKAGES = ("common", "master", "worker")  # a task folder that holds one of these would be confused with ours


def load_task(spec: str, folder: Path, data_dir: Path = DATA_FOLDER, launched: str | None = None) -> Task | Loop:
    """Loads what a search file names: an instance of a class, or a function that is a loop of its own.

    Args:
        spec: ``digits``, ``path/to/my_task.py:MyTask`` or ``path/to/my_loop.py:train``; a relative path is taken from ``folder``.
        folder: where the search file lies.
        data_dir: where built-in tasks find and download their files; nothing is read before ``data()``.
        launched: the digest of the code that may run; None: whatever is there, as its owner asks for it.

    Raises:
        TaskError: the code is another, no such task, file, class or function, or importing it raised; the message says where.
    """
    if spec in BUILT_IN:
        module_name, class_name = BUILT_IN[spec]
        task = _instance(getattr(importlib.import_module(module_name), class_name), spec)
        if hasattr(task, "data_dir"):
            task.data_dir = data_dir
        return task
    path, class_name = _parts(spec, folder)
    module = _import(path, launched)
    found = getattr(module, class_name, None)
    if found is None:
        own = [(name, value) for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        names = [name for name, value in own if isinstance(value, type) or inspect.isfunction(value)]
        raise TaskError(f"task {spec!r}: {path} has no class or function {class_name}; it has {', '.join(names) or 'none'}")
    return _instance(found, spec) if isinstance(found, type) else _loop(found, spec)


def load_class(spec: str, folder: Path, data_dir: Path = DATA_FOLDER) -> Task:
    """As ``load_task``, where a loop of its own will not do.

    Raises:
        TaskError: as ``load_task``, or it is such a loop.
    """
    found = load_task(spec, folder, data_dir)
    if isinstance(found, Loop):
        raise TaskError(f"task {spec!r}: a loop of its own measures itself; this command needs a class with data() and model(hp)")
    return found


def looks_like_loop(spec: str, folder: Path) -> bool:
    """Whether the file defines the name as a function, seen without running it; False also where that cannot be seen."""
    if spec in BUILT_IN:
        return False
    try:
        path, name = _parts(spec, folder)
        tree = ast.parse(task_file.read(path))
    except (TaskError, SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return False  # told when the task is loaded
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def task_digest(spec: str, folder: Path) -> str:
    """What a record notes of the task: the sha256 of its file, or ``builtin:NAME``.

    Raises:
        TaskError: no such task or file.
    """
    if spec in BUILT_IN:
        return f"builtin:{spec}"
    return task_file.digest(_content(_parts(spec, folder)[0]))


def _parts(spec: str, folder: Path) -> tuple[Path, str]:
    file, colon, class_name = spec.rpartition(":")
    if not colon or not file.endswith(".py") or not class_name.isidentifier():
        known = ", ".join(BUILT_IN)
        raise TaskError(f"task {spec!r}: no built-in task of that name; use one of {known}, or path/to/my_task.py:MyTask")
    path = (folder / Path(file).expanduser()).resolve()
    if not path.is_file():
        raise TaskError(f"task {spec!r}: no file {path}; the path is taken from the folder of the search file, {folder}")
    for name in OUR_PACKAGES:
        if (path.parent / name).is_dir() or (path.parent / f"{name}.py").exists():
            raise TaskError(f"task {spec!r}: its folder {path.parent} holds a module named {name}, as this program does; rename it")
    return path, class_name


def _content(path: Path) -> bytes:
    try:
        return task_file.read(path)
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


class _ThisSource(SourceFileLoader):
    """Runs the bytes that were digested: neither what has taken the file's place meanwhile, nor a compiled copy beside it."""

    def __init__(self, name: str, path: Path, content: bytes) -> None:
        super().__init__(name, str(path))
        self._content = content

    def get_code(self, fullname: str) -> CodeType:
        """Compiled here and now."""
        code: CodeType = self.source_to_code(self._content, self.path)
        return code


def _import(path: Path, launched: str | None) -> ModuleType:
    content = _content(path)
    own = task_file.digest(content)
    if launched is not None and own != launched:
        raise TaskError(
            f"{path}: the code here has digest {own}, the launched one {launched}; "
            "restore the file in the search's folder, or launch under a new name with --new-name"
        )
    name = f"coarsefine_task_{own[:16]}"  # a name of its own: it hides nothing and nothing hides it
    spec = importlib.util.spec_from_file_location(name, path, loader=_ThisSource(name, path, content))
    if spec is None or spec.loader is None:
        raise TaskError(f"{path}: cannot be imported as a Python file; check its name")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    beside = str(path.parent)
    if beside not in sys.path:
        sys.path.append(beside)  # at the end: its neighbours can be imported, but hide nothing
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TaskError(f"{path}: importing it raised {_told(error, path)}; correct the file") from error
    return module


def _instance(found: type[Task], spec: str) -> Task:
    missing = [method for method in ("data", "model") if not callable(getattr(found, method, None))]
    if missing:
        raise TaskError(f"task {spec!r}: {found.__name__} has no method {' and no method '.join(missing)}; a task has data() and model(hp)")
    try:
        task = found()
        check_attributes(found)
        own_metrics(task)
    except TaskError as error:
        raise TaskError(f"task {spec!r}: {error}") from error
    except Exception as error:
        raise TaskError(f"task {spec!r}: {found.__name__}() raised {_told(error, None)}; a task needs no arguments") from error
    return task


def _loop(found: object, spec: str) -> Loop:
    if not callable(found):
        raise TaskError(f"task {spec!r}: is a {type(found).__name__}; name a class with data() and model(hp), or a function train(trial)")
    try:
        inspect.signature(found).bind(object())
    except (TypeError, ValueError) as error:
        raise TaskError(f"task {spec!r}: cannot be called with one argument, the trial ({error}); write def train(trial)") from None
    return Loop(found, spec)


def _told(error: BaseException, path: Path | None) -> str:
    """The error and the line of the user's file that raised it."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if line is None or (path and frame.filename == str(path) and not isinstance(error, SyntaxError)):
            line = frame.lineno
    return f"{type(error).__name__}: {error} (line {line})"
