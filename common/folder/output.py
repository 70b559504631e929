"""What loops and programs wrote to stdout and stderr, as it lies in a stage's folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Part:
    """A part of a file that grows.

    Attributes:
        text: What it says, whole characters only.
        begin: The number of its first byte in the file.
        end: The number of the byte after it. The next part begins there.
        size: Bytes of the file.
        file: Names the file; a file that replaces it has another name.
    """

    text: str
    begin: int
    end: int
    size: int
    file: str


def read_part(path: Path, most: int, begin: int | None = None, file: str = "") -> Part:
    """Return a part of a file.

    Args:
        path: the file.
        most: bytes at most.
        begin: the first byte. Without one, or if the file is not ``file`` or has become shorter,
            the part is the end of the file, from the beginning of a line on.
        file: the name of the file that ``begin`` counts in.

    Raises:
        OSError: there is no file, or it cannot be read.
    """
    with open_ordinary(path, sys.maxsize) as opened:
        found = os.fstat(opened.fileno())
        size, name = found.st_size, f"{found.st_dev:x}-{found.st_ino:x}"
        is_end = begin is None or begin > size or file not in ("", name)
        first = max(0, size - most) if is_end or begin is None else begin
        opened.seek(first)
        content = opened.read(most)
    if is_end and first > 0:
        skipped = content.find(b"\n") + 1 or _count_rest(content)
        first, content = first + skipped, content[skipped:]
    content = content[: len(content) - _count_begun(content)]
    return Part(
        content.decode(errors="replace"), first, first + len(content), max(size, first), name
    )


def _count_rest(content: bytes) -> int:
    """Return how many bytes at the beginning are the rest of a character of UTF-8."""
    return next((n for n in range(min(4, len(content))) if content[n] & 0xC0 != 0x80), 0)


def _count_begun(content: bytes) -> int:
    """Return how many bytes at the end are a character of UTF-8 that is not complete."""
    for n in range(1, min(4, len(content)) + 1):
        byte = content[-n]
        if byte & 0xC0 == 0x80:  # within a character
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return n if length > n else 0
    return 0


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
