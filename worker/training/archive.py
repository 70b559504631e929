"""Reads a ``.pt`` file as data and nothing else: an ordinary file, tensors and plain values, no more memory than the file is long."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from common.bounded import open_ordinary

MAX_BYTES = 64 << 30  # more than the memory of the devices that such models are trained on


def load(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        Exception: whatever the readers of a damaged, foreign or oversized file raise; it is no checkpoint then.
    """
    with open_ordinary(path, MAX_BYTES) as file:
        with zipfile.ZipFile(file) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        if packed:  # torch.save never compresses: a few bytes could stand for any amount of memory
            raise ValueError(f"holds the compressed entry {packed[0][:100]!r}")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
