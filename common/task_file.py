"""The file of a user's task, as the master launches it and each worker runs it: its bytes, and the digest that names them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from common import bounded

MAX_BYTES = 4 << 20  # of Python that a person wrote


def read(path: Path) -> bytes:
    """Its bytes.

    Raises:
        OSError: it cannot be read, is no ordinary file, or too large; ``strerror`` says which.
    """
    return bounded.read_bytes(path, MAX_BYTES)


def digest(content: bytes) -> str:
    """What a stage freezes at its launch, a worker compares with what it is about to run, and a record notes."""
    return hashlib.sha256(content).hexdigest()
