"""Import a task from its copy under its real name, so that every process that it starts can.

The copy's folder comes first in ``sys.path``, which processes started by spawn, forkserver and
joblib take over, and first in PYTHONPATH, which all others inherit. One copy is active at a time.
The modules of the others wait until their search is worked for again.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from coarsefine.isolation.ours import FILES, OURS, keep_apart
from common.errors import TaskError
from worker.tasks.copies import is_copied

PROGRAMS = ("worker", "master")
LIBRARIES = tuple(
    {f"{sysconfig.get_path(kind)}/" for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
)


@dataclass(frozen=True)
class Place:
    """Where a process finds a task."""

    folder: Path  # goes on ``sys.path``
    module: str  # to import from there
    attribute: str  # the class or function in it

    def load(self) -> ModuleType:
        """Make the folder the one that modules are imported from, and import the module.

        Raises:
            TaskError: a library that this process has loaded has the name of a module in it.
            BaseException: what the module raises.
        """
        activate(self.folder)
        return importlib.import_module(self.module)


class _Active:
    def __init__(self) -> None:
        self.folder: Path | None = None
        self.waiting: dict[Path, dict[str, ModuleType]] = {}  # modules of the other folders


_ACTIVE = _Active()


def activate(folder: Path | None) -> None:
    """Make ``folder`` the one that modules are imported from, in this process and its children.

    None means none, as for a built-in task.

    Raises:
        TaskError: a library that this process has loaded has the name of a module in it.
    """
    before = _ACTIVE.folder
    if folder == before:
        return
    if folder is not None and folder not in _ACTIVE.waiting:
        _refuse_loaded(folder, before)
    behind = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if before is not None:
        _ACTIVE.waiting[before] = _take_out(before)
        for paths in (sys.path, behind):
            if str(before) in paths:
                paths.remove(str(before))
    if folder is not None:
        sys.path.insert(0, str(folder))
        behind.insert(0, str(folder))
    if behind:
        os.environ["PYTHONPATH"] = os.pathsep.join(behind)
    else:
        os.environ.pop("PYTHONPATH", None)
    importlib.invalidate_caches()
    keep_apart()
    if folder is not None:
        sys.modules.update(_ACTIVE.waiting.pop(folder, {}))
        _hide_main()
    _ACTIVE.folder = folder


def forget(folder: Path) -> None:
    """Forget the modules of a folder, as where importing one of them has failed."""
    if folder == _ACTIVE.folder:
        _take_out(folder)
    _ACTIVE.waiting.pop(folder, None)


def _take_out(folder: Path) -> dict[str, ModuleType]:
    """Remove the modules of a folder from ``sys.modules``, and return them."""
    own = {name: module for name, module in sys.modules.items() if _is_in(module, folder)}
    for name in own:
        del sys.modules[name]
    return own


def _is_in(module: ModuleType, folder: Path) -> bool:
    # `module.__file__` would make a lazy module load itself.
    known = getattr(module, "__dict__", {})
    paths = [known.get("__file__")]
    if paths == [None]:  # a package without an __init__.py
        paths = list(known.get("__path__", ()))
    return any(isinstance(path, str) and path.startswith(f"{folder}/") for path in paths)


def find_modules(folder: Path) -> dict[str, Path]:
    """Return the modules and packages directly in a folder, but for those called like ours."""
    found = {}
    for path in folder.iterdir():
        is_package = (path / "__init__.py").is_file()
        name = path.name if is_package else path.stem
        if (is_package or path.suffix == ".py") and name not in (*OURS, "__main__", "__init__"):
            found[name] = path
    return found


def _refuse_loaded(folder: Path, before: Path | None) -> None:
    """Raise TaskError if the folder has a module that is called like one that is loaded here.

    The task would get that one, and the processes that it starts would get its own. Modules of the
    folder ``before`` do not count, since they are about to be taken out.
    """
    for name, path in find_modules(folder).items():
        loaded = sys.modules.get(name)
        if loaded is not None and not (before is not None and _is_in(loaded, before)):
            raise TaskError(
                f"{path.name}: has the name of a library that this program has loaded "
                f"({getattr(loaded, '__file__', None) or 'built into Python'}); rename it, or "
                "leave it out with code = [...] in the search file"
            )


def find_users_file(module: ModuleType | None) -> Path | None:
    """Return the source of a module that is the user's own and was not shipped; None for others.

    A launch compares the files of this program itself.
    """
    file = getattr(module, "__dict__", {}).get("__file__")
    if not isinstance(file, str) or not file.startswith("/") or not file.endswith(".py"):
        return None
    return None if file.startswith((*LIBRARIES, *FILES)) or is_copied(file) else Path(file)


def _hide_main() -> None:
    """Keep a process that is started by spawn from importing our program's main module.

    It would import it to find functions of ``__main__``, of which a task has none.
    """
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name.partition(".")[0] in PROGRAMS:
        main.__spec__ = None
        main.__dict__.pop("__file__", None)
    elif spec is None and file is not None and Path(file).name in PROGRAMS:  # a console script
        del main.__file__
