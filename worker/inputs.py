"""New inputs for a trained model, from a file: ``.npy``, ``.npz`` or ``.csv``. Checked before any model sees them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import ConfigError
from common.predictions import DAMAGE

NAME = "inputs"  # of the array in a .npz that holds several
UNREADABLE = (*DAMAGE, pd.errors.ParserError)


@dataclass(frozen=True)
class Expected:
    """What the model was trained on."""

    shape: tuple[int, ...]  # of one example
    floating: bool  # else whole numbers, such as the numbers of words


def read_inputs(path: Path, expected: Expected) -> Tensor:
    """The examples in a file, (n, ...) in the shape and kind that the model takes; rows of a flat table get their shape back.

    Raises:
        ConfigError: the file is missing, unreadable, empty, of another shape, or holds what is no number.
    """
    values = _numbers(path, _array(path))
    return torch.from_numpy(_kind(path, _shaped(path, values, expected), expected))


def _array(path: Path) -> NDArray[np.generic]:
    readers = {".npy": _plain, ".npz": _named, ".csv": _table}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"--inputs {path}: {path.suffix or 'no ending'} is not a known kind of file; use .npy, .npz or .csv")
    try:
        return reader(path)
    except FileNotFoundError:
        raise ConfigError(f"--inputs {path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"--inputs {path}: cannot be read ({error.strerror or error}); check the path and its permissions") from None
    except UNREADABLE as error:
        raise ConfigError(f"--inputs {path}: not a readable {path.suffix} file ({' '.join(str(error).split())})") from None


def _plain(path: Path) -> NDArray[np.generic]:
    found: NDArray[np.generic] = np.load(path, allow_pickle=False)
    return found


def _named(path: Path) -> NDArray[np.generic]:
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays)
        if NAME not in names and len(names) != 1:
            raise ConfigError(f"--inputs {path}: holds the arrays {', '.join(names) or 'none'}; name the examples {NAME!r}")
        found: NDArray[np.generic] = arrays[NAME if NAME in names else names[0]]
        return found


def _table(path: Path) -> NDArray[np.generic]:
    """Numbers separated by commas, an example a row; a first line of names is passed over."""
    try:
        found = pd.read_csv(path, header=None, skipinitialspace=True, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        raise ConfigError(f"--inputs {path}: is empty; an example a row is needed") from None
    first = found.iloc[0]
    if not all(_is_number(cell) for cell in first):
        found = found.iloc[1:]
    try:
        return found.to_numpy().astype(np.float64)
    except ValueError:
        row, column = next((r, c) for r, cells in enumerate(found.to_numpy()) for c, cell in enumerate(cells) if not _is_number(cell))
        line = int(found.index[row]) + 1
        raise ConfigError(f"--inputs {path}: line {line}, column {column + 1}: {found.iat[row, column]!r} is not a number") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(path: Path, values: NDArray[np.generic]) -> NDArray[np.generic]:
    if values.dtype.kind not in "fiub":
        raise ConfigError(f"--inputs {path}: holds {values.dtype}, not numbers")
    if not values.ndim or not len(values):
        raise ConfigError(f"--inputs {path}: holds no example; an example a row is needed")
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise ConfigError(
            f"--inputs {path}: {len(bad)} examples hold NaN or infinite values, number {bad[0] + 1} first; mend or leave them out"
        )
    return values


def _shaped(path: Path, values: NDArray[np.generic], expected: Expected) -> NDArray[np.generic]:
    if values.shape[1:] == expected.shape:
        return values
    if values.ndim == 2 and values.shape[1] == math.prod(expected.shape):
        return values.reshape(len(values), *expected.shape)
    single = "; for a single example add a first axis of length 1" if values.shape == expected.shape else ""
    raise ConfigError(
        f"--inputs {path}: examples of shape {values.shape[1:]}; the model takes {expected.shape}, or that laid flat as "
        f"{math.prod(expected.shape)} columns{single}"
    )


def _kind(path: Path, values: NDArray[np.generic], expected: Expected) -> NDArray[np.generic]:
    if expected.floating:
        return values.astype(np.float64 if values.dtype == np.float64 else np.float32)
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        raise ConfigError(f"--inputs {path}: the model takes whole numbers, and these have fractions")
    return whole
