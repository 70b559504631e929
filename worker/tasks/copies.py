"""Copies of the code of tasks on this machine. Processes import the code from them.

A copy is made from bytes whose digest was compared, in a folder that only this user may write. So
a file that is changed in the checkpoint folder, or a compiled file planted there, is never run.
Each process has its own folder with its copies, and removes it at its end. What killed processes
have left goes when another process makes its first copy.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from pathlib import Path

from common.code.tree import Code
from common.errors import CheckpointError, TaskError
from common.folder.filelock import FileLock

PREFIX = f"coarsefine-code-{os.getuid()}-"
LOCK = ".lock"
YOUNG_S = 60.0  # a folder that is younger may not have its lock yet
NAME_LENGTH = 16  # characters of the digest in a folder's name


class _Copies:
    def __init__(self) -> None:
        self.home: Path | None = None
        self.lock: FileLock | None = None
        self.owner = 0  # process that made the folder; a forked one must not remove it
        self.made: dict[tuple[str, str], Path] = {}

    def of(self, code: Code) -> Path:
        key = code.digest, code.module
        if key not in self.made or not self.made[key].is_dir():
            self.made[key] = self._make(code)
        return self.made[key]

    def _make(self, code: Code) -> Path:
        try:
            home = self._own_folder()
            folder = Path(tempfile.mkdtemp(prefix=f"{code.digest[:NAME_LENGTH]}-", dir=home))
            for name, file in code.files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.content)
                path.chmod(0o700 if file.executable else 0o600)
        except (OSError, CheckpointError) as error:
            raise TaskError(
                f"{tempfile.gettempdir()}: the task's code cannot be copied there ({error}); free "
                "some space, or set TMPDIR to another folder"
            ) from error
        return folder

    def _own_folder(self) -> Path:
        if self.home is None or self.owner != os.getpid() or not self.home.is_dir():
            _remove_left_over(Path(tempfile.gettempdir()))
            self.home = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
            self.lock = FileLock(self.home / LOCK)
            self.lock.try_exclusive()
            self.owner = os.getpid()
            atexit.register(remove_copies)
        return self.home

    def remove(self) -> None:
        if self.home is not None and self.owner == os.getpid():
            shutil.rmtree(self.home, ignore_errors=True)
            if self.lock is not None:
                self.lock.close()
            self.home, self.lock, self.made = None, None, {}


_COPIES = _Copies()


def copy(code: Code) -> Path:
    """Return the folder of a copy of the code, which is made at the first call.

    Raises:
        TaskError: it cannot be written.
    """
    return _COPIES.of(code)


def remove_copies() -> None:
    """Remove the copies that this process has made."""
    _COPIES.remove()


def is_copied(file: str) -> bool:
    """Return whether a file lies in one of the copies of this process."""
    return _COPIES.home is not None and file.startswith(f"{_COPIES.home}/")


def _remove_left_over(parent: Path) -> None:
    """Remove the folders of processes that have ended. A process holds the lock of its folder."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            found = folder.lstat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < YOUNG_S:
                continue
            lock = FileLock(folder / LOCK)
        except (OSError, CheckpointError):  # gone, or not ours
            continue
        if lock.try_exclusive():
            shutil.rmtree(folder, ignore_errors=True)
        lock.close()
