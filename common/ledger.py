"""The ledger of looks at the test part: ``test_looks.jsonl`` in the search's folder, a line for each accuracy that somebody saw.

Each look that guides a choice makes the next one less honest, so all of them are counted, whichever command took it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import bounded, durable
from common.records import SearchFolder

NAME = "test_looks.jsonl"
MAX_BYTES = 64 << 20  # some hundred thousand looks


@dataclass(frozen=True)
class Looks:
    """What was just counted: the numbers of its first and last look, from 1."""

    search: str
    first: int
    last: int

    @property
    def told(self) -> str:
        """``look 3 at the test part of search 'digits'; only the first was unbiased``."""
        numbers = f"look {self.first}" if self.first == self.last else f"looks {self.first} to {self.last}"
        warning = "; only the first was unbiased" if self.last > 1 else ""
        return f"{numbers} at the test part of search {self.search!r}{warning}"


def note(folder: SearchFolder, entries: Sequence[Mapping[str, object]]) -> Looks:
    """Counts one look for each entry, durably, before anybody sees what came out.

    Args:
        folder: of the search.
        entries: what was measured; plain values for JSON.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    path = folder.path / NAME
    lines = b"".join(json.dumps({**entry, "at": time.time()}).encode() + b"\n" for entry in entries)
    try:
        last = _appended(path, lines)
    except OSError as error:
        raise durable.explained(error, path) from error
    durable.sync_folder(folder.path)
    return Looks(folder.name, last - len(entries) + 1, last)


def count(folder: SearchFolder) -> int:
    """How many looks there have been.

    Raises:
        CheckpointError: the ledger cannot be read.
    """
    path = folder.path / NAME
    try:
        return bounded.read_bytes(path, MAX_BYTES).count(b"\n")
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise durable.explained(error, path) from error


def _appended(path: Path, lines: bytes) -> int:
    """Adds whole lines at the end, one look after the other; returns how many lines there are up to them."""
    descriptor = bounded.open_to_append(path)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # gone with the descriptor
        before = file.read(MAX_BYTES)
        if before and not before.endswith(b"\n"):
            lines = b"\n" + lines  # a look that a power cut left half written: it was one
        file.write(lines)
        os.fsync(descriptor)
    return (before + lines).count(b"\n")
