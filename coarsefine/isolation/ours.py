"""Let a user's package ``common``, ``master`` or ``worker`` live beside ours, in one process.

Both would be ``sys.modules["common"]``. Where ``sys.path`` leads to a user's package of such a
name, that package has the name, as in any Python program: processes that are started by spawn, and
pickle, find it. Ours is kept beside it, and ``import common`` in one of our own files gives ours.
The file that the import statement stands in decides.

Nothing changes as long as no name is taken.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

OURS = ("common", "master", "worker")
HOME = Path(__file__).absolute().parents[2]
FILES = tuple(
    {f"{home}/{name}/" for home in (HOME, HOME.resolve()) for name in (*OURS, "coarsefine")}
)


class _Apart:
    """What is ours, and which of its names somebody else has."""

    def __init__(self) -> None:
        self.taken: dict[str, list[Path]] = {}  # name -> folders of the other package
        self.ours: dict[str, ModuleType] = {}  # our modules below the names that are taken
        self.lock = threading.RLock()
        self.in_place = False
        self.plain_import = builtins.__import__

    def update(self) -> None:
        """Read off ``sys.path`` which names are taken."""
        taken = {name: folders for name in OURS if (folders := _find_others(name))}
        if taken == self.taken:
            return
        with self.lock:
            self._put_back()
            self.taken = taken
            if not taken:
                builtins.__import__ = self.plain_import
                return
            self._remember_ours()
            builtins.__import__ = self._import

    def _put_back(self) -> None:
        sys.modules.update(self.ours)
        self.ours = {}

    def _remember_ours(self) -> None:
        """Keep our modules, and free the names that the other package has."""
        for name, module in list(sys.modules.items()):
            if _top(name) in self.taken and _is_our_file(_file(module)):
                self.ours[name] = module
                if self._is_hidden(name):
                    del sys.modules[name]

    def _is_hidden(self, name: str) -> bool:
        """Return whether the other package has a module of this name as well."""
        top, _, rest = name.partition(".")
        part = rest.partition(".")[0]
        return not part or any(
            (folder / part).exists() or (folder / f"{part}.py").exists()
            for folder in self.taken[top]
        )

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Import as ``__import__`` does, ours in our own files."""
        absolute = name
        if level:
            package = (globals or {}).get("__package__") or ""
            absolute = f"{'.'.join(package.split('.')[: len(package.split('.')) - level + 1])}"
        if _top(absolute) not in self.taken:
            return self.plain_import(name, globals, locals, fromlist or (), level)
        with self.lock:
            if not _is_our_file((globals or {}).get("__file__")):
                return self.plain_import(name, globals, locals, fromlist or (), level)
            known = self.ours.get(name) if not level else None
            if known is not None and "*" not in (fromlist or ()):
                if not fromlist:
                    return self.ours[_top(name)]
                if all(hasattr(known, word) for word in fromlist):
                    return known
            with self._ours_in_place():
                return self.plain_import(name, globals, locals, fromlist or (), level)

    @contextmanager
    def _ours_in_place(self) -> Iterator[None]:
        if self.in_place:
            yield
            return
        theirs = {
            name: module
            for name, module in sys.modules.items()
            if _top(name) in self.taken and not _is_our_file(_file(module))
        }
        for name in theirs:
            del sys.modules[name]
        sys.modules.update(self.ours)
        self.in_place = True
        try:
            for name in self.taken:
                if name not in sys.modules:
                    _load_our_package(name)
            yield
        finally:
            self.in_place = False
            self._remember_ours()
            sys.modules.update(theirs)


def keep_apart() -> None:
    """Look whether ``sys.path`` leads to packages that have the names of ours.

    Call it after a change of ``sys.path``, and before ours are imported where it may have changed.
    """
    _APART.update()


def import_ours(name: str) -> ModuleType:
    """Import one of our modules by name, whoever has the name in ``sys.modules``."""
    __import__(name, globals())  # this file is one of ours
    return _APART.ours.get(name) or sys.modules[name]


def _load_our_package(name: str) -> None:
    folder = HOME / name
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None  # it lies beside this package
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _find_others(name: str) -> list[Path]:
    """Return the folders of the package that ``sys.path`` leads to, if it is not ours.

    A single file ``common.py`` has no submodules, so its "folder" is the file itself.
    """
    spec: ModuleSpec | None = PathFinder.find_spec(name)
    if spec is None or _is_our_file(spec.origin):
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin or name)]
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    return [folder for folder in folders if not _is_our_file(f"{folder}/")]


def _top(name: str) -> str:
    return name.partition(".")[0]


def _file(module: ModuleType | None) -> object:
    # `module.__file__` would make a lazy module load itself.
    return getattr(module, "__dict__", {}).get("__file__")


def _is_our_file(file: object) -> bool:
    return isinstance(file, str) and file.startswith(FILES)


_APART = _Apart()
