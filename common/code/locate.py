"""Where the task of a search file is: the folder to import it from, and its module's name."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from common.errors import TaskError

INIT = "__init__.py"
# Python's own packages of tests. Nothing imports them, and many projects have a folder "test".
HARMLESS = frozenset({"test", "__main__"})


@dataclass(frozen=True)
class Located:
    """A task's module in the user's files."""

    task: str  # as in the search file, for messages
    root: Path  # the folder that has to be on ``sys.path``
    module: str  # such as "my_task", or "my_package.tasks"
    attribute: str  # the class or function
    path: Path  # the module's file

    @property
    def file(self) -> str:
        """The module's file, relative to ``root``, with "/" between the parts."""
        return self.path.relative_to(self.root).as_posix()

    @property
    def package(self) -> Path | None:
        """The folder of the outermost package that the module belongs to; None without one."""
        top = self.root / self.module.partition(".")[0]
        return top if top in self.path.parents else None


def locate(task: str, base: Path) -> Located:
    """Find the task's module.

    Args:
        task: ``path/to/my_task.py:MyTask``, or ``my_package.tasks:MyTask``.
        base: the folder of the search file. A path is relative to it, and a module is looked for in
            it, in its ``src``, and in the folders above it up to the root of a git checkout.

    Raises:
        TaskError: there is no such file, or it cannot be imported under its name.
    """
    source, _, attribute = task.rpartition(":")
    return (
        _locate_file(task, source, attribute, base)
        if source.endswith(".py")
        else _locate_module(task, source, attribute, base)
    )


def _locate_file(task: str, source: str, attribute: str, base: Path) -> Located:
    try:
        path = (base / Path(source).expanduser()).resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise TaskError(f"task = {task!r}: no path that a file can have ({error})") from None
    if not found:
        problem = "is no ordinary file" if path.exists() else "no such file"
        raise TaskError(
            f"task = {task!r}: {path}: {problem}; the path is taken from the folder of the search "
            f"file, {base.absolute()}"
        )
    names, root = ([] if path.name == INIT else [path.stem]), path.parent
    while (root / INIT).is_file() and "." not in root.name and root.name:
        names, root = [root.name, *names], root.parent
    located = Located(task, root, ".".join(names), attribute, path)
    if "." in path.stem or not names:
        raise TaskError(
            f"task = {task!r}: {path.name} cannot be imported by its name; a module's name has no "
            "dots, so rename the file"
        )
    check_name(located.module, task, path)
    return located


def _locate_module(task: str, source: str, attribute: str, base: Path) -> Located:
    looked: list[Path] = []
    for folder in _roots(base.resolve()):
        for root in (folder, folder / "src"):
            looked.append(root)
            stem = root.joinpath(*source.split("."))
            for path in (stem / INIT, stem.with_name(f"{stem.name}.py")):
                if path.is_file():
                    check_name(source, task, path)
                    return Located(task, root, source, attribute, path)
    raise TaskError(
        f"task = {task!r}: no module {source} in {looked[0]}"
        f"{f', nor in the folders above it up to {looked[-2]}' if len(looked) > 2 else ''}; a file "
        'is named by its path, "path/to/my_task.py:MyTask"'
    )


def _roots(base: Path) -> list[Path]:
    """Return the folders in which a module is looked for."""
    checkout = find_checkout(base)
    folders = [base, *base.parents]
    return folders[: folders.index(checkout) + 1] if checkout is not None else [base]


def find_checkout(folder: Path) -> Path | None:
    """Return the root of the git checkout that holds a folder; None without one.

    A home folder in git holds settings, not a project, so it does not count.
    """
    home = Path("~").expanduser()
    for root in (folder, *folder.parents):
        if root in (home, Path(root.anchor)):
            return None
        if (root / ".git").exists():
            return root
    return None


def check_name(module: str, task: str, path: Path) -> None:
    """Refuse a module that hides one of Python's own, or this program's, where it is shipped.

    Raises:
        TaskError: it does.
    """
    top = module.partition(".")[0]
    if top == "coarsefine":
        raise TaskError(
            f"task = {task!r}: {path} has the name of the package that tasks import Data and Part "
            "from; rename it"
        )
    if top in sys.stdlib_module_names - HARMLESS:
        raise TaskError(
            f"task = {task!r}: {path} has the name of a module of Python itself, which every "
            f"library that imports {top} would find in its place; rename it, or leave it out with "
            "code = [...]"
        )
