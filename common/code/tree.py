"""The files that are shipped with a task, as values, and the digest that identifies them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

from common.errors import TaskError

MOST_FILE_BYTES = 1 << 20
MOST_BYTES = 64 << 20  # of all files together
MOST_FILES = 5000
MANY = 5  # names that a message lists


class Entry(BaseModel):
    """One file, without its content."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    executable: bool = False


class Manifest(BaseModel):
    """A list of shipped files, and where they come from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = 1
    module: str  # the name under which the task is imported from the folder
    commit: str | None = None  # of the git checkout that the files were in
    dirty: bool | None = None  # whether they differed from the commit
    files: dict[str, Entry]  # by path, with "/" between its parts

    @property
    def digest(self) -> str:
        """The sha256 of all names and contents. It does not depend on the order of the files."""
        listed = [[name, own.sha256, own.executable] for name, own in sorted(self.files.items())]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    @property
    def file(self) -> str:
        """The file of the task's module."""
        return module_file(self.module, self.files)

    def changes(self, now: Manifest) -> list[str]:
        """Return what differs in ``now``: "changed a.py", "new b.py", "gone c.py"."""
        names = sorted({*self.files, *now.files})
        return [
            f"{_kind_of_change(name in self.files, name in now.files)} {name}"
            for name in names
            if self.files.get(name) != now.files.get(name)
        ]


def _kind_of_change(before: bool, now: bool) -> str:
    return "changed" if before and now else "new" if now else "gone"


@dataclass(frozen=True)
class File:
    """The content of one file."""

    content: bytes
    executable: bool = False

    @property
    def entry(self) -> Entry:
        """The file in a manifest."""
        return Entry(sha256=hashlib.sha256(self.content).hexdigest(), executable=self.executable)


@dataclass(frozen=True)
class Code:
    """All files that are shipped with a task."""

    module: str
    files: Mapping[str, File]  # by path, with "/" between its parts
    commit: str | None = None
    dirty: bool | None = None
    left_out: tuple[str, ...] = ()  # files that the task names, but that are too large

    @cached_property
    def manifest(self) -> Manifest:
        """The files without their content."""
        return Manifest(
            module=self.module,
            commit=self.commit,
            dirty=self.dirty,
            files={name: file.entry for name, file in self.files.items()},
        )

    @property
    def told(self) -> str:
        """The files in a few words: how many, how large, of which commit."""
        n_files, n_bytes = len(self.files), sum(len(own.content) for own in self.files.values())
        told = f"{n_files} {'file' if n_files == 1 else 'files'}, {max(1, n_bytes >> 10):,} KiB"
        if self.commit is not None:
            told += f", commit {self.commit[:12]}{' and changes' if self.dirty else ''}"
        return told

    @property
    def digest(self) -> str:
        """The digest of the files, see ``Manifest``."""
        return self.manifest.digest

    @property
    def source(self) -> bytes:
        """The content of the task's own file."""
        return self.files[self.manifest.file].content


def module_file(module: str, files: Mapping[str, object]) -> str:
    """Return the path of a module among ``files``.

    Raises:
        TaskError: there is none.
    """
    path = module.replace(".", "/")
    for name in (f"{path}/__init__.py", f"{path}.py"):
        if name in files:
            return name
    raise TaskError(f"the code that was launched has no module {module}; launch it again")


def is_safe(name: str) -> bool:
    """Return whether a path from a manifest stays within its folder."""
    path = PurePosixPath(name)
    return (
        name == path.as_posix()
        and not path.is_absolute()
        and ".." not in path.parts
        and name not in ("", ".")
        and "\0" not in name
    )


def listed(names: list[str]) -> str:
    """Return names for a message, the first few of many."""
    shown = ", ".join(names[:MANY])
    return f"{shown} and {len(names) - MANY} more" if len(names) > MANY else shown
