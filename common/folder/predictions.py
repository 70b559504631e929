"""A kept model's predictions on the validation and test parts: a ``.npz`` beside its checkpoint.

    coarse/val_acc=0.9361-trial=coarse-0042-epoch=001-try=1.pt
    coarse/val_acc=0.9361-trial=coarse-0042-epoch=001-try=1.npz

The arrays are the probabilities ``val`` (n, C) and ``test`` (m, C), float32, and the targets
``val_targets`` (n,) and ``test_targets`` (m,), int64. Without a test part, the arrays for it are
empty. Only classification tasks have predictions. Reading them needs no torch.
"""

from __future__ import annotations

import io
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common import safe_read
from common.errors import DamagedFileError
from common.folder import durable
from common.shell_command import shell_command

# A million examples of 256 classes. A file that claims to be larger, packed or unpacked, is not
# this program's.
MAX_BYTES = 1 << 30
# Tolerance for the sum of a row's probabilities. Float32 sums over thousands of classes stay far
# below it.
SUM_TOLERANCE = 1e-3
# What reading a damaged archive or array may raise; numpy parses headers as Python literals.
DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    EOFError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
ARRAYS = ("val", "val_targets", "test", "test_targets")


@dataclass(frozen=True)
class Part:
    """The predictions on one part of the data."""

    probabilities: NDArray[np.float32]  # (n, C)
    targets: NDArray[np.int64]  # (n,)

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Predictions:
    """The predictions on both parts. ``test`` is None if the task has no test part."""

    val: Part
    test: Part | None


def pack(arrays: Mapping[str, ArrayLike]) -> bytes:
    """Return the content of a file with these arrays.

    Raises:
        ValueError: they are not predictions.
    """
    kinds = {name: np.int64 if name.endswith("_targets") else np.float32 for name in ARRAYS}
    named = {name: np.asarray(arrays[name], dtype=kinds[name]) for name in ARRAYS if name in arrays}
    _predictions(named)
    buffer = io.BytesIO()
    # numpy's stub takes the names for its option allow_pickle.
    np.savez(buffer, **named)  # type: ignore[arg-type]
    return buffer.getvalue()


def read(path: Path) -> Predictions:
    """Read and check a file of predictions.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is damaged, or not a file of predictions.
        CheckpointError: it cannot be read for now.
    """
    try:
        with safe_read.open_ordinary(path, MAX_BYTES) as file:
            return _predictions(_unpack(file))
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        remedy = (
            f"remove the file or set it aside with `{shell_command('master recover')}`: its model "
            "then takes part in no ensemble"
        )
        raise DamagedFileError(f"{path}: damaged predictions ({error}); {remedy}") from None
    except OSError as error:
        explained = durable.explain_os_error(error, path)
        raise (
            DamagedFileError(str(explained)) if safe_read.is_odd(error) else explained
        ) from error


def _unpack(file: IO[bytes]) -> dict[str, NDArray[np.generic]]:
    with zipfile.ZipFile(file) as archive:
        size_bytes = sum(entry.file_size for entry in archive.infolist())
    if size_bytes > MAX_BYTES:
        raise ValueError(f"{size_bytes:,} bytes unpacked, more than {MAX_BYTES:,}")
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ARRAYS if name in arrays}


def _predictions(arrays: Mapping[str, NDArray[np.generic]]) -> Predictions:
    """Return the predictions in these arrays. Raise ValueError if they are not predictions."""
    if missing := [name for name in ("val", "val_targets") if name not in arrays]:
        raise ValueError(f"the array {missing[0]!r} is missing")
    val = _part(arrays, "val")
    if not len(val):
        raise ValueError("val holds no example")
    if "test" not in arrays or not len(arrays["test"]):
        return Predictions(val, None)
    test = _part(arrays, "test")
    if test.probabilities.shape[1] != val.probabilities.shape[1]:
        raise ValueError(
            f"{val.probabilities.shape[1]} classes in val and {test.probabilities.shape[1]} in test"
        )
    return Predictions(val, test)


def _part(arrays: Mapping[str, NDArray[np.generic]], name: str) -> Part:
    probabilities, targets = arrays[name], arrays.get(f"{name}_targets")
    if targets is None or probabilities.ndim != 2 or targets.shape != probabilities.shape[:1]:
        shape = None if targets is None else targets.shape
        raise ValueError(
            f"{name} has shape {probabilities.shape} and its targets {shape}; (n, C) and (n,) "
            "are needed"
        )
    if probabilities.dtype != np.float32 or targets.dtype != np.int64:
        raise ValueError(
            f"{name} is {probabilities.dtype} and its targets {targets.dtype}; float32 and int64 "
            "are needed"
        )
    part = Part(probabilities.view(np.ndarray), targets.view(np.ndarray))
    if (
        not np.allclose(part.probabilities.sum(axis=1), 1.0, rtol=0, atol=SUM_TOLERANCE)
        or part.probabilities.min(initial=0.0) < 0
    ):
        raise ValueError(
            f"the rows of {name} are no probabilities: each needs values of at least 0 that add "
            "up to 1"
        )
    if (
        len(part)
        and not 0 <= part.targets.min() <= part.targets.max() < part.probabilities.shape[1]
    ):
        raise ValueError(
            f"the targets of {name} are no classes of 0 to {part.probabilities.shape[1] - 1}"
        )
    return part
