"""Which files beside a task its code names: modules that it imports, and files in its strings.

The code is read, not run. A file whose name is computed, or a module that is imported by a computed
name, is not found; ``code`` in the search file names it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from common import safe_read
from common.code.locate import INIT

LONGEST_NAME = 200  # characters of a string that may name a file
MOST_SOURCE_BYTES = 4 << 20  # of hand-written Python


def reach(root: Path, first: Path) -> tuple[set[Path], set[Path]]:
    """Follow the imports of a module through a folder.

    Args:
        root: the folder. Only files in it are found.
        first: the file of the module.

    Returns:
        The Python files and the folders of packages that are imported, and other files that are
        named in strings. All paths are absolute.
    """
    return _follow(root, {first})


def reach_from(root: Path, sources: Iterable[Path]) -> tuple[set[Path], set[Path]]:
    """Follow the imports of files that lie elsewhere through a folder.

    Returns:
        What ``reach`` does, without the files themselves.
    """
    trees = (_parse(source) for source in sources if source.suffix == ".py")
    return _follow(
        root, {path for tree in trees if tree is not None for path in _imported(tree, root)}
    )


def _follow(root: Path, first: set[Path]) -> tuple[set[Path], set[Path]]:
    code, data = set(first), set[Path]()
    waiting = [file for path in first for file in list_sources(path)]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or path.suffix != ".py":
            continue
        seen.add(path)
        tree = _parse(path)
        if tree is None:
            continue
        found = set(_imported(tree, root, path))
        code |= found
        named = set(_named(tree, {root, path.parent}, root))
        data |= {file for file in named if file.suffix != ".py"}
        code |= {file for file in named if file.suffix == ".py"}
        waiting += [*named, *(one for own in found for one in list_sources(own))]
    return code, data


def list_sources(path: Path) -> list[Path]:
    """Return the file itself, or the Python files of a package."""
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _parse(path: Path) -> ast.Module | None:
    try:
        return ast.parse(safe_read.read_bytes(path, MOST_SOURCE_BYTES))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _imported(tree: ast.Module, root: Path, path: Path | None = None) -> Iterator[Path]:
    """Yield the files of imported modules, and the folders of imported packages.

    Without the path of the file, its relative imports are left out.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _find(root, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = root
            if node.level and path is None:
                continue
            if node.level and path is not None:
                base = path.parents[min(node.level, len(path.parents)) - 1]
            names = node.module.split(".") if node.module else []
            yield from _find(base, names, within=root)
            for alias in node.names:
                yield from _find(base, [*names, alias.name], within=root)


def _find(base: Path, names: list[str], within: Path | None = None) -> Iterator[Path]:
    """Yield the package or the modules that a dotted name leads to."""
    if within is not None and base != within and within not in base.parents:
        return
    folder = base
    for name in names:
        if (folder / name / INIT).is_file():
            yield folder / name  # a package is shipped as a whole
            return
        if (folder / f"{name}.py").is_file():
            yield folder / f"{name}.py"
            return
        folder = folder / name


def _named(tree: ast.Module, folders: set[Path], root: Path) -> Iterator[Path]:
    """Yield the files that strings name, alone ("a.npy") or with a folder ("data", "a.npy")."""
    words = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and 0 < len(node.value) <= LONGEST_NAME
        and not node.value.startswith(("/", "..", "~"))
        and "\0" not in node.value
        and "\n" not in node.value
    }
    for folder in folders:
        places = [folder, *(folder / word for word in words if _is(folder / word, "is_dir"))]
        for place in places:
            for word in words:
                if _is(place / word, "is_file") and (place / word).resolve().is_relative_to(root):
                    yield place / word


def _is(path: Path, kind: str) -> bool:
    try:
        return bool(getattr(path, kind)())
    except (OSError, ValueError):  # a string that no path can be
        return False
