"""Read new inputs for a trained model from a ``.npy``, ``.npz`` or ``.csv`` file.

They are checked before a model sees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import ConfigError
from common.folder.predictions import DAMAGE
from worker.tasks import trees
from worker.tasks.trees import Tree

NAME = "inputs"  # name of the array in a .npz that holds several
Found = TypeVar("Found")
UNREADABLE = (*DAMAGE, pd.errors.ParserError)


@dataclass(frozen=True)
class Expected:
    """A tensor of the inputs that the model was trained on."""

    shape: tuple[int, ...]  # of one example
    floating: bool  # False for whole numbers, such as word indices


def read_inputs(path: Path, form: Mapping[str, Any]) -> Tree:
    """Return the examples in a file, (n, ...), in the form, shape and dtype that the model takes.

    Rows of a flat table are reshaped. Inputs of several tensors are the arrays of an ``.npz``, by
    the names of ``trees.name_leaves``.

    Args:
        path: the file.
        form: of the inputs, see ``trees.describe``.

    Raises:
        ConfigError: the file is missing, unreadable or empty, lacks an array, has another shape, or
            holds values that are not finite numbers.
    """
    if "shape" in form:
        return _tensor(path, _array(path), form)
    names: list[str] = []
    trees.build(form, lambda name, leaf: names.append(name))
    found = _read_arrays(path, names)
    lengths = {name: len(array) if array.ndim else 0 for name, array in found.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{n} of {name}" for name, n in lengths.items())
        raise ConfigError(f"--inputs {path}: holds {told}; all need a row for each example")
    return trees.build(form, lambda name, leaf: _tensor(path, found[name], leaf))


def _tensor(path: Path, array: NDArray[np.generic], form: Mapping[str, Any]) -> Tensor:
    expected = Expected(tuple(form["shape"]), form["floating"])
    values = _numbers(path, array)
    return torch.from_numpy(_kind(path, _check_shape(path, values, expected), expected))


def _read_arrays(path: Path, names: list[str]) -> dict[str, NDArray[np.generic]]:
    """Return the named arrays of an ``.npz`` file."""
    told = f"the model takes the arrays {', '.join(names)}"
    if path.suffix.lower() != ".npz":
        raise ConfigError(f"--inputs {path}: {told}; give a .npz file with these names")

    def read(path: Path) -> dict[str, NDArray[np.generic]]:
        with np.load(path, allow_pickle=False) as arrays:
            if missing := [name for name in names if name not in arrays]:
                raise ConfigError(f"--inputs {path}: {told}, and {missing[0]} is not in the file")
            return {name: arrays[name] for name in names}

    return _readable(path, read)


def _array(path: Path) -> NDArray[np.generic]:
    readers = {".npy": _plain, ".npz": _read_named, ".csv": _table}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(
            f"--inputs {path}: {path.suffix or 'no ending'} is not a known kind of file; use .npy, "
            ".npz or .csv"
        )
    return _readable(path, reader)


def _readable(path: Path, reader: Callable[[Path], Found]) -> Found:
    """Return what ``reader`` reads.

    Raises:
        ConfigError: the file is missing or cannot be read.
    """
    try:
        return reader(path)
    except FileNotFoundError:
        raise ConfigError(f"--inputs {path}: no such file") from None
    except OSError as error:
        raise ConfigError(
            f"--inputs {path}: cannot be read ({error.strerror or error}); check the path and its "
            "permissions"
        ) from None
    except UNREADABLE as error:
        raise ConfigError(
            f"--inputs {path}: not a readable {path.suffix} file ({' '.join(str(error).split())})"
        ) from None


def _plain(path: Path) -> NDArray[np.generic]:
    found: NDArray[np.generic] = np.load(path, allow_pickle=False)
    return found


def _read_named(path: Path) -> NDArray[np.generic]:
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays)
        if NAME not in names and len(names) != 1:
            raise ConfigError(
                f"--inputs {path}: holds the arrays {', '.join(names) or 'none'}; name the "
                f"examples {NAME!r}"
            )
        found: NDArray[np.generic] = arrays[NAME if NAME in names else names[0]]
        return found


def _table(path: Path) -> NDArray[np.generic]:
    """Read numbers separated by commas, one example per row.

    A first line of column names is skipped.
    """
    try:
        found = pd.read_csv(
            path, header=None, skipinitialspace=True, dtype=str, keep_default_na=False
        )
    except pd.errors.EmptyDataError:
        raise ConfigError(f"--inputs {path}: is empty; one row per example is needed") from None
    first = found.iloc[0]
    if not all(_is_number(cell) for cell in first):
        found = found.iloc[1:]
    try:
        return found.to_numpy().astype(np.float64)
    except ValueError:
        row, column = next(
            (r, c)
            for r, cells in enumerate(found.to_numpy())
            for c, cell in enumerate(cells)
            if not _is_number(cell)
        )
        line = int(found.index[row]) + 1
        raise ConfigError(
            f"--inputs {path}: line {line}, column {column + 1}: {found.iat[row, column]!r} is not "
            "a number"
        ) from None


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
        raise ConfigError(f"--inputs {path}: holds no example; one row per example is needed")
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise ConfigError(
            f"--inputs {path}: {len(bad)} examples hold NaN or infinite values, number "
            f"{bad[0] + 1} first; fix or remove them"
        )
    return values


def _check_shape(
    path: Path, values: NDArray[np.generic], expected: Expected
) -> NDArray[np.generic]:
    if values.shape[1:] == expected.shape:
        return values
    if values.ndim == 2 and values.shape[1] == math.prod(expected.shape):
        return values.reshape(len(values), *expected.shape)
    single = (
        "; for a single example add a first axis of length 1"
        if values.shape == expected.shape
        else ""
    )
    raise ConfigError(
        f"--inputs {path}: examples of shape {values.shape[1:]}; the model takes {expected.shape}, "
        f"or that laid flat as {math.prod(expected.shape)} columns{single}"
    )


def _kind(path: Path, values: NDArray[np.generic], expected: Expected) -> NDArray[np.generic]:
    if expected.floating:
        return values.astype(np.float64 if values.dtype == np.float64 else np.float32)
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        raise ConfigError(
            f"--inputs {path}: the model takes whole numbers, and these have fractions"
        )
    return whole
