"""Locks between processes of one machine. The system releases them even if their holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import CheckpointError
from common.folder.durable import explain_os_error

RETRY_S = 0.02  # between two tries for a lock that another process holds
FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC
CREATE = os.O_CREAT | FLAGS


class FileLock:
    """A lock (flock) on a file, which is created if missing.

    It belongs to this object, and child processes do not inherit it.
    """

    def __init__(self, path: Path, everyones: bool = False) -> None:
        """Open the file.

        Args:
            path: of the file.
            everyones: whether processes of all users share the lock.

        Raises:
            CheckpointError: it cannot be created or opened.
        """
        self.path = path
        try:
            self.fd = (
                _open_everyones(path) if everyones else os.open(path, os.O_RDWR | CREATE, 0o600)
            )
        except OSError as error:
            raise explain_os_error(error, path) from error

    def try_shared(self) -> bool:
        """Take the lock shared; return False if another holds it exclusively."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Take the lock exclusively; return False if another holds it."""
        return self._try(fcntl.LOCK_EX)

    @contextmanager
    def exclusive(self, patience_s: float) -> Iterator[None]:
        """Hold the lock exclusively for the length of a block.

        Args:
            patience_s: how long to wait for the lock.

        Raises:
            CheckpointError: another process held it for ``patience_s``.
        """
        deadline = time.monotonic() + patience_s
        while not self.try_exclusive():
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"{self.path}: another process has held it for {patience_s:g} s; `fuser "
                    f"{self.path}` shows it; end that process"
                )
            time.sleep(RETRY_S)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Release the lock, even if a forked child has a copy of the descriptor."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file. A child that was given the descriptor on purpose keeps the lock."""
        os.close(self.fd)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self.fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._unusable(error) from error
        return True

    def _unusable(self, error: OSError) -> CheckpointError:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return CheckpointError(
                f"{self.path}: its file system has no file locks; pass another --checkpoints, or "
                "start a Redis server and give --redis URL"
            )
        return explain_os_error(error, self.path)


def _open_everyones(path: Path) -> int:
    """Open a file that another user may have created.

    Where everybody may create files, as in /tmp, Linux lets nobody open another user's file with
    O_CREAT, and no lock needs the right to write.
    """
    while True:
        try:
            return os.open(path, os.O_RDONLY | FLAGS)
        except FileNotFoundError:
            pass
        try:
            made = os.open(path, os.O_RDONLY | os.O_EXCL | CREATE, 0o644)
        except FileExistsError:  # another process was faster
            continue
        os.fchmod(made, 0o644)  # whatever the umask
        return made
