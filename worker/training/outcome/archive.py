"""Safe reading of ``.pt`` files.

Only ordinary files with tensors and plain values are read, and never into more memory than the file
is long.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from common.safe_read import open_ordinary

MAX_BYTES = 64 << 30  # more than the memory of the devices that train such models


def load(path: Path) -> Any:
    """Return the content of a file that ``torch.save`` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: whatever the readers raise for a damaged, foreign or oversized file.
    """
    with open_ordinary(path, MAX_BYTES) as file:
        return read(file)


def read(file: BinaryIO) -> Any:
    """Return the content of an open file that ``torch.save`` wrote, on the CPU.

    Raises:
        Exception: whatever the readers raise for a damaged or foreign file.
    """
    with zipfile.ZipFile(file) as archive:
        packed = [
            entry.filename
            for entry in archive.infolist()
            if entry.compress_type != zipfile.ZIP_STORED
        ]
    # torch.save never compresses. Compressed, a few bytes could unpack to any amount of memory.
    if packed:
        raise ValueError(f"holds the compressed entry {packed[0][:100]!r}")
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)
