"""The ledger of looks at the test part: ``test_looks.jsonl`` in the search's folder.

It has a line for each test accuracy that was shown. Each look that guides a choice biases the next
one, so every command counts its looks here.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import safe_read
from common.folder import durable
from common.folder.records import SearchFolder

NAME = "test_looks.jsonl"
MAX_BYTES = 64 << 20  # some hundred thousand looks


@dataclass(frozen=True)
class Looks:
    """The looks that were just counted: the numbers of the first and the last, from 1."""

    search: str
    first: int
    last: int

    @property
    def told(self) -> str:
        """The message for the user.

        Such as ``look 3 at the test part of search 'digits'; only the first was unbiased``.
        """
        numbers = (
            f"look {self.first}"
            if self.first == self.last
            else f"looks {self.first} to {self.last}"
        )
        warning = "; only the first was unbiased" if self.last > 1 else ""
        return f"{numbers} at the test part of search {self.search!r}{warning}"


def note(folder: SearchFolder, entries: Sequence[Mapping[str, object]]) -> Looks:
    """Count one look for each entry, durably, before the result is shown.

    Args:
        folder: the folder of the search.
        entries: what was measured, as values that JSON can hold.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    path = folder.path / NAME
    lines = b"".join(json.dumps({**entry, "at": time.time()}).encode() + b"\n" for entry in entries)
    try:
        last = _append_lines(path, lines)
    except OSError as error:
        raise durable.explain_os_error(error, path) from error
    durable.sync_folder(folder.path)
    return Looks(folder.name, last - len(entries) + 1, last)


def count(folder: SearchFolder) -> int:
    """Return the number of looks so far.

    Raises:
        CheckpointError: the ledger cannot be read.
    """
    path = folder.path / NAME
    try:
        return safe_read.read_bytes(path, MAX_BYTES).count(b"\n")
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise durable.explain_os_error(error, path) from error


def _append_lines(path: Path, lines: bytes) -> int:
    """Append whole lines under a lock, and return how many lines the file then has."""
    descriptor = safe_read.open_to_append(path)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # released when the descriptor is closed
        before = file.read(MAX_BYTES)
        if before and not before.endswith(b"\n"):
            lines = b"\n" + lines  # a line cut short by a power cut counts as a look
        file.write(lines)
        os.fsync(descriptor)
    return (before + lines).count(b"\n")
