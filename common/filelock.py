"""Locks between processes of one machine, which the system gives back whatever happens to their holder."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.durable import explained
from common.errors import CheckpointError

RETRY_S = 0.02  # between two tries for a lock that another holds; nobody notices it


class FileLock:
    """A lock (flock) on a file that is made where missing. It belongs to this object and no child process inherits it."""

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            CheckpointError: it cannot be made or opened.
        """
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise explained(error, path) from error

    def try_shared(self) -> bool:
        """Takes the lock beside others that share it; False if someone holds it alone."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Takes the lock alone; False if someone else has a part in it."""
        return self._try(fcntl.LOCK_EX)

    @contextmanager
    def exclusive(self, patience_s: float) -> Iterator[None]:
        """Holds the lock alone for the length of a block.

        Raises:
            CheckpointError: another process kept it for ``patience_s``.
        """
        deadline = time.monotonic() + patience_s
        while not self.try_exclusive():
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"{self.path}: another process holds it for {patience_s:g} s; `fuser {self.path}` shows which, end it"
                )
            time.sleep(RETRY_S)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Gives the lock back, also where a forked child has a copy of it."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Closes the file; the lock stays with a child that the file was passed to on purpose."""
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
                f"{self.path}: its file system has no file locks; pass another --checkpoints, or start a Redis server and give --redis URL"
            )
        return explained(error, self.path)
