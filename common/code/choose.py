"""Choose the files that are shipped with a task, and read them.

| where the task is | what is shipped |
|---|---|
| ``code`` in the search file | the files that its patterns name |
| a git checkout | the task's folder or package: tracked files, and untracked ones not ignored |
| a package outside of git | its files, without hidden ones and what tools leave behind |
| a single file outside of git | the file, what it imports from its folder, and files it names |

From each folder of ``code_from``, what the task imports from there is shipped besides, or what the
patterns of ``code`` name there.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath

from coarsefine.isolation.ours import HOME, OURS
from common import safe_read
from common.code import git
from common.code.imports import list_sources, reach, reach_from
from common.code.locate import INIT, Located, check_name, locate
from common.code.tree import MOST_BYTES, MOST_FILE_BYTES, MOST_FILES, Code, File
from common.errors import TaskError
from common.folder.records import SearchFolder
from common.search.search_file import Search

MOST_LOOKED_AT = 100_000  # files of a folder
SKIPPED = frozenset({"__pycache__", "node_modules"})
OF_TOOLS = (".pyc", ".pyo", ".egg-info")
SEARCH_KEYS = {"task", "space"}  # a TOML file with these is a search file
SEARCH_FILE_BYTES = 1 << 20
REMEDY = 'code = ["*.py", "settings"] in the search file says which files are shipped'


def collect(
    task: str,
    base: Path,
    patterns: Sequence[str] = (),
    checkpoints: Path | None = None,
    code_from: Sequence[str] = (),
) -> Code:
    """Return the files that are shipped with a task.

    Args:
        task: as in the search file.
        base: the folder of the search file.
        patterns: ``code`` of the search file; empty: by the table above.
        checkpoints: the checkpoint folder, which is never shipped.
        code_from: other folders that the task imports from, relative to ``base``. If two folders
            have a file of the same name, the first counts, and the task's own before all.

    Raises:
        TaskError: the task or a folder is not found, a file cannot be read or is too large, or all
            files together are too large.
    """
    located = locate(task, base)
    own = _Collector(located, checkpoints)
    others = [
        _Collector(replace(located, root=folder), checkpoints)
        for folder in dict.fromkeys(_find_folder(task, base, name) for name in code_from)
        if folder != located.root
    ]
    own.check_patterns(patterns, others)
    code = own.collect(patterns)
    sources, n_known = {located.root / name for name in code.files}, -1
    reached: list[tuple[set[Path], set[Path]]] = []
    while n_known != len(sources):  # the folders may import from each other
        n_known = len(sources)
        reached = [reach_from(other.root, sources) for other in others]
        sources |= {file for found, _ in reached for path in found for file in list_sources(path)}
    for other, found in zip(others, reached, strict=True):
        code = _join(code, other.collect_beside(patterns, *found))
    own.check_total(code.files)
    return code


def _find_folder(task: str, base: Path, name: str) -> Path:
    folder = (base / name).resolve()
    if not folder.is_dir():
        raise TaskError(
            f"task = {task!r}: code_from = {name!r}: there is no folder {folder}; the path is "
            "taken from the folder of the search file"
        )
    return folder


def _join(code: Code, other: Code) -> Code:
    """Return the code with the files of another folder that it lacks."""
    known = code if other.commit is None else other if code.commit is None else code
    dirty = bool(code.dirty or other.dirty) if known.commit is not None else None
    files = {**other.files, **code.files}
    return Code(code.module, files, known.commit, dirty, (*code.left_out, *other.left_out))


def collect_own(search: Search, base: Path, folder: SearchFolder) -> Code | None:
    """Return what a launch ships with the task of a search.

    Args:
        search: the search.
        base: the folder of the search file.
        folder: the search's folder.

    Returns:
        None for a built-in task or a command, or if the user's own files are gone and only the
        folder has them.

    Raises:
        TaskError: as ``collect``.
    """
    if search.task_file is None or (
        folder.task_file.exists() and not _is_there(search, base, folder)
    ):
        return None
    return collect(search.task, base, search.code, folder.root, search.code_from)


def _is_there(search: Search, base: Path, folder: SearchFolder) -> bool:
    if base.resolve() == folder.path.resolve():
        return False
    try:
        locate(search.task, base)
    except TaskError:
        return False
    return all((base / name).is_dir() for name in search.code_from)


class _Collector:
    def __init__(self, located: Located, checkpoints: Path | None) -> None:
        self._at = located
        self.root = located.root
        inside = checkpoints is not None and located.root in checkpoints.resolve().parents
        self._checkpoints = checkpoints.resolve() if checkpoints is not None and inside else None

    def collect(self, patterns: Sequence[str]) -> Code:
        unit = self._at.package or self.root
        checkout, left_out = git.look(unit), list[str]()
        if checkout is not None and (
            self._at.path.relative_to(unit).as_posix() not in checkout.files
        ):
            checkout = None  # git ignores the task
        if patterns:
            names = self._matching(patterns)
        elif checkout is not None:
            prefix = unit.relative_to(self.root)
            names = [(prefix / name).as_posix() for name in checkout.files]
        elif self._at.package is not None:
            names = [self._name(path) for path in self._walk(unit)]
        else:
            names, left_out = self._reached()
        files = self._read_all(self._with_own(self._wanted(names)))
        commit, dirty = None, None
        if checkout is not None:
            prefix = unit.relative_to(self.root)
            commit = checkout.commit
            changed = {(prefix / name).as_posix() for name in checkout.changed}
            gone = any(not (self.root / name).exists() for name in changed)
            dirty = gone or not changed.isdisjoint(files)
        return Code(self._at.module, files, commit, dirty, tuple(left_out))

    def collect_beside(
        self, patterns: Sequence[str], code: Iterable[Path], data: Iterable[Path]
    ) -> Code:
        """Return what the task imports from this folder, or what the patterns name in it.

        Args:
            patterns: as in the search file.
            code: files and packages that are imported.
            data: other files that they name.
        """
        left_out = list[str]()
        if patterns:
            names = self._matching(patterns)
        else:
            names, left_out = self._list(code, data)
        files = self._read_all(sorted({*self._wanted(names)}))
        checkout = git.look(self.root) if files else None
        if checkout is None or checkout.files == ():
            return Code(self._at.module, files, left_out=tuple(left_out))
        # A file that git ignores is in no commit.
        dirty = not checkout.changed.isdisjoint(files) or not files.keys() <= {*checkout.files}
        return Code(self._at.module, files, checkout.commit, dirty, tuple(left_out))

    def _read_all(self, names: Sequence[str]) -> dict[str, File]:
        files = self._read(names)
        files.update(self._inits(files))
        self._check_names(files)
        return files

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _walk(self, top: Path) -> Iterator[Path]:
        """Yield the files below a folder, without those that tools leave behind."""
        seen = 0
        for folder, folders, names in os.walk(top):
            here = Path(folder)
            folders[:] = sorted(
                name
                for name in folders
                if not _is_of_a_tool(here / name) and not self._is_apart(here / name)
            )
            for name in sorted(names):
                seen += 1
                if seen > MOST_LOOKED_AT:
                    raise self._error(
                        f"{top} has more than {MOST_LOOKED_AT:,} files; move the task into a "
                        "folder of its own"
                    )
                yield here / name

    def _is_apart(self, path: Path) -> bool:
        """Return whether a path is the checkpoint folder, or in it, or our own package."""
        if self._checkpoints is not None and (
            path == self._checkpoints or self._checkpoints in path.parents
        ):
            return True
        return self.root == HOME.resolve() and path.relative_to(self.root).parts[0] in (
            *OURS,
            "coarsefine",
        )

    def check_patterns(self, patterns: Sequence[str], others: Sequence[_Collector]) -> None:
        """Refuse a pattern that names no file, here or in the other folders.

        Raises:
            TaskError: there is one.
        """
        for pattern in patterns:
            if not any(one.match(pattern) for one in (self, *others)):
                raise self._error(
                    f"code = {pattern!r}: names no file in "
                    f"{' or '.join(str(one.root) for one in (self, *others))}; a pattern is "
                    "relative to the folder that the task is imported from, such as "
                    '"*.py" or "data/**/*.csv"'
                )

    def _matching(self, patterns: Sequence[str]) -> list[str]:
        """Return the files that the patterns name."""
        found = dict.fromkeys(path for pattern in patterns for path in self.match(pattern))
        return [self._name(path) for path in found]

    def match(self, pattern: str) -> list[Path]:
        """Return the files in this folder that a pattern names."""
        try:
            matches = sorted(self.root.glob(pattern))
        except (ValueError, OSError) as error:
            raise self._error(f"code = {pattern!r}: cannot be used ({error})") from None
        return [
            file
            for path in matches
            if not any(_is_of_a_tool(folder) for folder in self._folders(path))
            for file in (self._walk(path) if path.is_dir() else [path])
        ]

    def _folders(self, path: Path) -> list[Path]:
        """Return the folders between the root and a path."""
        return [folder for folder in path.parents if self.root in folder.parents]

    def _reached(self) -> tuple[list[str], list[str]]:
        """Return the files that a single file needs, and those that it names but are too large."""
        return self._list(*reach(self.root, self._at.path))

    def _list(self, code: Iterable[Path], data: Iterable[Path]) -> tuple[list[str], list[str]]:
        names = [
            self._name(file)
            for path in sorted(code)
            for file in (self._walk(path) if path.is_dir() else [path])
        ]
        left_out = list[str]()
        for path in sorted(data):
            (left_out if path.stat().st_size > MOST_FILE_BYTES else names).append(self._name(path))
        return names, left_out

    def _wanted(self, names: Iterable[str]) -> list[str]:
        """Return the names without hidden files, search files and what is not ours to ship."""
        return [
            name
            for name in names
            if not any(_is_skipped(part) for part in PurePosixPath(name).parts)
            and not self._is_apart(self.root / name)
            and not (name.endswith(".toml") and _is_search_file(self.root / name))
        ]

    def _with_own(self, names: list[str]) -> list[str]:
        """Return the names with the task's own file, and the files that make it a package."""
        inits = [
            folder / INIT
            for folder in self._at.path.parents
            if self.root in folder.parents and (folder / INIT).is_file()
        ]
        needed = [self._name(path) for path in (self._at.path, *inits)]
        return sorted({*names, *needed})

    def _read(self, names: Sequence[str]) -> dict[str, File]:
        if len(names) > MOST_FILES:
            raise self._error(
                f"{len(names):,} files would be shipped, more than {MOST_FILES:,}; {REMEDY}"
            )
        files, total = dict[str, File](), 0
        for name in names:
            path = self.root / name
            if not path.is_file():
                continue  # removed, but still known to git; a link to a folder; a pipe
            size = path.stat().st_size
            if size > MOST_FILE_BYTES:
                raise self._error(
                    f"{path} has {size / (1 << 20):.1f} MiB, and files of up to "
                    f"{MOST_FILE_BYTES >> 20} MiB are shipped with a task; keep data in a folder "
                    f"that all workers see, and leave it out: {REMEDY}"
                )
            total += size
            if total > MOST_BYTES:
                raise self._too_large()
            try:
                name.encode()
                files[name] = File(
                    safe_read.read_bytes(path, MOST_FILE_BYTES),
                    bool(path.stat().st_mode & stat.S_IXUSR),
                )
            except UnicodeEncodeError:
                raise self._error(f"{os.fsencode(path)!r} has a name that is no text") from None
            except OSError as error:
                raise self._error(f"{path} cannot be read ({error.strerror})") from None
        return files

    def check_total(self, files: Mapping[str, File]) -> None:
        """Refuse files of several folders that are too large together.

        Raises:
            TaskError: they are.
        """
        if sum(len(file.content) for file in files.values()) > MOST_BYTES:
            raise self._too_large()

    def _too_large(self) -> TaskError:
        return self._error(
            f"the files of {self.root} have more than {MOST_BYTES >> 20} MiB together, "
            f"which is the most that is shipped with a task; {REMEDY}"
        )

    def _inits(self, files: Iterable[str]) -> dict[str, File]:
        """Return an empty ``__init__.py`` for a folder that is named like one of our packages.

        Without the file, Python would find our package in its place.
        """
        inside = {name.partition("/")[0] for name in files if name.endswith(".py") and "/" in name}
        return {
            f"{top}/{INIT}": File(b"")
            for top in OURS
            if top in inside and f"{top}/{INIT}" not in files and f"{top}.py" not in files
        }

    def _check_names(self, files: Iterable[str]) -> None:
        for name in files:
            top, _, rest = name.partition("/")
            module = top if rest == INIT else top.removesuffix(".py") if not rest else ""
            if rest == INIT or (module and module != top):
                check_name(module, self._at.task, self.root / name)

    def _error(self, problem: str) -> TaskError:
        return TaskError(f"task = {self._at.task!r}: {problem}")


def _is_skipped(part: str) -> bool:
    return part.startswith(".") or part in SKIPPED or part.endswith(OF_TOOLS)


@cache
def _is_of_a_tool(folder: Path) -> bool:
    return _is_skipped(folder.name) or (folder / "pyvenv.cfg").exists()


def _is_search_file(path: Path) -> bool:
    """Return whether a file is a search file. A change of it is no change of the code."""
    try:
        text = safe_read.read_bytes(path, SEARCH_FILE_BYTES).decode("utf-8-sig")
        return tomllib.loads(text).keys() >= SEARCH_KEYS
    except (OSError, ValueError, RecursionError):
        return False
