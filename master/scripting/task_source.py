"""The source of a task that a script or notebook defines, as a file of its own.

A worker imports a task's file. It must not import the script, which would launch the search again,
and it cannot import a notebook. So the file has the function or class with the statements that it
needs, and no others.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import linecache
import os
import site
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from common.errors import TaskError
from master.scripting.statements import (
    Source,
    Statement,
    choose_statements,
    find_unbound,
    read_statements,
)

MAIN = "__main__"
HEADER = "# Written by coarsefine.search(), which replaces it."
FILE = "task.py"
OF_COMMAND_LINE = {"argv", "parse_args", "parse_known_args"}
REMEDY = "write `def train(trial)` or `class MyTask` at the top of a file or of a notebook cell"


@dataclass(frozen=True)
class TaskSource:
    """A task for a search file.

    Attributes:
        task: A built-in task, or ``path:Name``. The path is absolute, or ``task.py``. Or the table
            of a command.
        text: The content of ``task.py``; None if the task has a file already.
        name: A name for the search; empty for a command.
        folders: Where ``task.py`` imports modules from that lie beside the script. Absolute.
    """

    task: str | Mapping[str, Any]
    text: str | None
    name: str
    folders: tuple[str, ...] = ()


def find_task(task: object) -> TaskSource:
    """Return the task that a user names or hands over.

    Args:
        task: A built-in task's name, ``path/to/file.py:Name``, ``module:Name``, a function or class
            at the top of a module, a script or a notebook, or ``{"command": ...}``.

    Raises:
        TaskError: It has no source that a worker could import; the message says what to do.
    """
    if isinstance(task, str | os.PathLike):
        return _named(os.fspath(task))
    if isinstance(task, Mapping):
        return TaskSource(task, None, "")
    if not (inspect.isfunction(task) or inspect.isclass(task)):
        raise TaskError(
            f"task = {task!r}: is a {type(task).__name__} and neither a function nor a class; "
            f"{REMEDY}"
        )
    name = task.__qualname__
    if "<lambda>" in name:
        raise TaskError(f"task = {task!r}: a lambda has no name to import it by; {REMEDY}")
    if "." in name:
        outer = name.rpartition(".")[0].removesuffix(".<locals>")
        raise TaskError(
            f"task = {name}: is defined within {outer}, where a worker cannot reach it; {REMEDY}"
        )
    namespace = _namespace(task)
    if namespace.get(name) is not task:
        raise TaskError(
            f"task = {name}: the name {name} stands for something else by now; hand over what it "
            "stands for, or run its definition again"
        )
    file = namespace.get("__file__")
    if task.__module__ != MAIN and file:
        return TaskSource(f"{Path(file).resolve()}:{name}", None, name)
    sources = find_sources(namespace)
    if not sources:
        raise TaskError(
            f"task = {name}: Python keeps no source of what is typed here; write it to a file, or "
            "use a notebook or IPython"
        )
    text = write_source(sources, name, namespace)
    return TaskSource(f"{FILE}:{name}", text, name, find_folders(text))


def _named(task: str) -> TaskSource:
    """Return a task that is named by a path, by a module, or as a built-in one."""
    place, colon, name = task.rpartition(":")
    if not colon:
        return TaskSource(task, None, name)
    if place.endswith(".py"):
        return TaskSource(f"{Path(place).expanduser().resolve()}:{name}", None, name)
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError) as error:
        raise TaskError(f"task = {task!r}: cannot find the module {place} ({error})") from None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise TaskError(
            f"task = {task!r}: {place} is neither a file (path/to/my_task.py) nor a module of "
            "Python source that can be imported here"
        )
    return TaskSource(f"{Path(spec.origin).resolve()}:{name}", None, name)


def _namespace(task: Any) -> Mapping[str, Any]:
    if inspect.isfunction(task):
        return task.__globals__
    module = sys.modules.get(task.__module__)
    return vars(module) if module is not None else {}


def find_sources(namespace: Mapping[str, Any]) -> list[Source]:
    """Return what has run in this namespace until now: the cells of a notebook, or a file.

    The list is empty if Python has kept no source.
    """
    line = _running_line(namespace)
    cells, file = namespace.get("In"), namespace.get("__file__")
    if isinstance(cells, list) and "get_ipython" in namespace:
        found = [Source(f"cell {n}", str(text)) for n, text in enumerate(cells)]
    elif isinstance(file, str) and (text := "".join(linecache.getlines(file))):
        found = [Source(Path(file).name, text)]
    else:  # an interpreter that keeps what was typed, under names that are no files
        typed = [name for name in linecache.cache if not Path(name).exists()]
        found = [Source(name, "".join(linecache.getlines(name))) for name in typed]
    if found and line is not None:
        found[-1] = Source(found[-1].place, found[-1].text, line)
    return found


def _running_line(namespace: Mapping[str, Any]) -> int | None:
    """Return the line of the statement that runs at the top of a script or cell."""
    frame: FrameType | None = sys._getframe()
    line = None
    while frame is not None:
        if frame.f_globals is namespace and not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            line = frame.f_lineno
        frame = frame.f_back
    return line


def write_source(sources: Sequence[Source], name: str, namespace: Mapping[str, Any]) -> str:
    """Return the content of a task's file: the function or class, and the statements it needs.

    Args:
        sources: What has run, oldest first.
        name: The function or class.
        namespace: Where it ran.

    Raises:
        TaskError: A name that it needs is set nowhere in the sources, or by what cannot run in a
            worker.
    """
    statements = read_statements(sources)
    chosen = choose_statements(statements, name)
    if not any(name in own.binds for own in chosen):
        raise TaskError(
            f"task = {name}: its source is not in what has run here; run its definition again"
        )
    _check_bound(chosen, name, namespace)
    for own in chosen:
        if isinstance(own.node, ast.ImportFrom) and own.node.level:
            raise TaskError(
                f"task = {name}: {own.place} imports relatively ({own.text}); name the module of "
                f"{name} as task = 'package.module:{name}'"
            )
    own_imports = dict.fromkeys(own.text for own in chosen if own.is_import)
    futures = dict.fromkeys(
        own.text
        for own in statements
        if isinstance(own.node, ast.ImportFrom) and own.node.module == "__future__"
    )
    lines = [HEADER, *futures, *(i for i in own_imports if i not in futures)]
    lines += _circumstances(chosen, namespace)
    text = "\n".join(lines) + "\n"
    for own in chosen:
        if not own.is_import:
            text += f"\n\n{own.text}\n\n" if own.defines else f"{own.text}\n"
    return text.rstrip("\n") + "\n"


def _check_bound(chosen: Iterable[Statement], name: str, namespace: Mapping[str, Any]) -> None:
    """Refuse a name that exists here, but that no worker could make."""
    for unbound in find_unbound(list(chosen)):
        if unbound in namespace or hasattr(builtins, unbound):
            raise TaskError(
                f"task = {name}: needs {unbound!r}, which no statement that ran here sets (magics "
                f"and what other programs set are not read); set it by a plain statement, or "
                f"within {name}"
            )


def _circumstances(chosen: Sequence[Statement], namespace: Mapping[str, Any]) -> list[str]:
    """Return lines that give a script's statements the path and command line that they had."""
    if "__file__" not in namespace:
        return []
    lines = []
    if any("__file__" in own.reads for own in chosen):
        lines.append(f"__file__ = {str(Path(namespace['__file__']).resolve())!r}")
    nodes = (node for own in chosen for node in ast.walk(own.node))
    if any(isinstance(node, ast.Attribute) and node.attr in OF_COMMAND_LINE for node in nodes):
        lines += ["import sys", f"sys.argv = {sys.argv!r}"]
    return lines


def find_folders(text: str) -> tuple[str, ...]:
    """Return the folders of modules that a source imports and that only this process finds.

    Such modules lie beside the script or notebook, or in a folder that it added to ``sys.path``.
    """
    folders = (_folder_of(root) for root in sorted(set(_imported(ast.parse(text)))))
    return tuple(dict.fromkeys(folder for folder in folders if folder is not None))


def _imported(node: ast.AST) -> Iterable[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.module.partition(".")[0]


def _folder_of(root: str) -> str | None:
    """Return the folder of a module that only this process finds; None for what is installed."""
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if spec is not None and not places and spec.has_location and spec.origin:
        places = [spec.origin]
    homes = {Path(place).resolve().parent for place in places}
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    everywhere = [*(Path(entry).resolve() for entry in inherited if entry), *_read_pth_files()]
    installed = [Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    for folder in (Path(entry or os.curdir).resolve() for entry in sys.path):
        found_by_all = folder in everywhere or any(home in folder.parents for home in installed)
        if folder in homes and not found_by_all:
            return str(folder)
    return None


def _read_pth_files() -> list[Path]:
    """Return the folders that ``.pth`` files add to ``sys.path``, as of editable installs."""
    places = [Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())]
    found = []
    for file in (file for place in places if place.is_dir() for file in place.glob("*.pth")):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            continue
        found += [
            (file.parent / line).resolve()
            for line in map(str.strip, lines)
            if line and not line.startswith(("#", "import ", "import\t"))
        ]
    return found
