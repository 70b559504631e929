"""What loops and programs wrote to stdout and stderr, as it lies in a stage's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from common.safe_read import open_ordinary

MOST_BYTES = 64 << 20  # a file is cut long before
MOST_READ = 1 << 20


def read_end(path: Path, most: int) -> str | None:
    """Return the last bytes of an output as text; None if there is no file that can be read."""
    try:
        with open_ordinary(path, MOST_BYTES) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most))
            return file.read(most).decode(errors="replace")
    except OSError:
        return None


class Follower:
    """Reads a file that grows, and that may be replaced by one whose middle is left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._inode = 0

    def read_new(self) -> Iterator[bytes]:
        """Yield what was written since the last call."""
        try:
            with open_ordinary(self._path, MOST_BYTES) as file:
                found = os.fstat(file.fileno())
                if self._inode not in (0, found.st_ino):  # cut: what is new is at its end
                    self._at = found.st_size
                self._inode = found.st_ino
                file.seek(self._at)
                while part := file.read(MOST_READ):
                    self._at += len(part)
                    yield part
        except FileNotFoundError:
            return
