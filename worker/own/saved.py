"""Convert a loop's ``state`` to a form that a file can hold, and back.

A state holds tensors, arrays and plain values. There is no pickle, so reading a state runs no code.
"""

from __future__ import annotations

import contextlib
import io
import tokenize
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import CheckpointError, TaskError
from common.shell_command import shell_command
from worker.training.outcome import archive

# An array, or bytes, is stored as a dict with this one key. Its value is a tensor of uint8.
ARRAY, BYTES = "$array", "$bytes"
FILE = "$file"  # a checkpoint of a program: its bytes as a tensor of uint8, beside its name
MARK = "$"  # a user's own keys must not begin with it
MOST_ABOVE = 3  # .coarsefine/kept, .coarsefine, and the attempt's folder
# ``dtype.isbuiltin`` of types that another library adds to numpy, such as JAX's bfloat16. They have
# at most 16 bits, and a file of numpy's would lose their type.
OF_LIBRARY = 2
MOST_NESTED = 64  # states are seldom nested deeper than ten; one that contains itself has no end
REMEDY = "a state holds tensors, arrays, numbers, strings, bytes, lists, tuples and dicts of these"
BY_NUMPY = ("__array__", "__array_interface__")  # what has one of these, numpy can read


def frozen(value: Any, place: str = "state", depth: int = 0) -> Any:
    """Return a copy of the state that ``torch.save`` writes as plain data.

    Later changes by the loop do not affect the copy.

    Args:
        value: the state or a part of it.
        place: where in the state it is, for error messages.
        depth: how deeply nested it is.

    Raises:
        TaskError: it cannot be saved. The message names the key.
    """
    if depth > MOST_NESTED:
        raise TaskError(
            f"{place}: nested more than {MOST_NESTED} deep; does the state hold itself?"
        )
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.generic):
        return (
            frozen(value.item(), place, depth + 1)
            if not isinstance(value.item(), np.generic)
            else _array(np.asarray(value), place)
        )
    if isinstance(value, np.ndarray):
        return _array(value, place)
    if isinstance(value, bytes | bytearray):
        return {BYTES: _as_tensor(bytes(value))}
    if isinstance(value, Mapping):
        return {
            _key(key, place): frozen(item, f"{place}[{key!r}]", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):  # a named tuple becomes a tuple
        kind = list if isinstance(value, list) else tuple
        return kind(
            frozen(item, f"{place}[{number}]", depth + 1) for number, item in enumerate(value)
        )
    if any(hasattr(type(value), name) for name in BY_NUMPY):
        return _array(_read_array(value, place), place)
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    raise TaskError(
        f"{place} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be saved; "
        f"{REMEDY}"
    )


def thaw(value: Any) -> Any:
    """Convert a frozen state back: the inverse of ``frozen``.

    The result is a copy. Tensors are on the CPU, and arrays are arrays again.
    """
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        if value.keys() == {ARRAY}:
            return np.load(io.BytesIO(value[ARRAY].numpy().tobytes()), allow_pickle=False)
        if value.keys() == {BYTES}:
            return value[BYTES].numpy().tobytes()
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(thaw(item) for item in value)
    return value


def pack(content: dict[str, Any]) -> bytes:
    """Return the bytes of a file with this content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@dataclass(frozen=True)
class Packed:
    """A frozen state as another process sent it: the bytes of a file."""

    content: bytes

    @classmethod
    def of(cls, state: Any) -> Packed:
        """Pack a frozen state."""
        return cls(pack({"state": state}))

    def unpacked(self) -> Any:
        """Return the frozen state."""
        return archive.read(io.BytesIO(self.content))["state"]


class KeptFile:
    """A checkpoint of a program, in a private copy that goes when nobody needs it any more."""

    def __init__(self, path: Path, name: str) -> None:
        """Take over a file.

        Args:
            path: the copy.
            name: what the program calls it.
        """
        self._path, self._name = path, name
        weakref.finalize(self, _remove, path)

    def unpacked(self) -> Any:
        """Return the file's content as a frozen state."""
        return {FILE: _as_tensor(self._path.read_bytes()), "name": self._name}


def unpacked(state: Any) -> Any:
    """Return a frozen state, wherever it lies."""
    return state.unpacked() if isinstance(state, Packed | KeptFile) else state


def content_of(state: Any) -> tuple[str, bytes] | None:
    """Return name and content of the file that a frozen state is; None if it is none."""
    if not isinstance(state, dict) or FILE not in state:
        return None
    return str(state.get("name", "checkpoint")), state[FILE].numpy().tobytes()


def load_state(path: Path | str) -> Any:
    """Return the ``state`` in a checkpoint of a loop: what was reported with its best epoch.

    Raises:
        CheckpointError: the file is missing or damaged, or is of a task that the engine trained.
    """
    try:
        content = archive.load(Path(path))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; `{shell_command('master rank')}` lists those there are"
        ) from None
    except Exception as error:  # a damaged archive can raise anything
        raise CheckpointError(
            f"{path}: is damaged or no checkpoint ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(content, dict) or "state" not in content:
        raise CheckpointError(
            f"{path}: holds no state of a loop; `worker test` and `worker predict` read what the "
            "engine trained"
        )
    try:
        return thaw(content["state"])
    except (
        ValueError,
        TypeError,
        AttributeError,
        SyntaxError,
        EOFError,
        tokenize.TokenError,
    ) as error:
        raise CheckpointError(
            f"{path}: its state is damaged ({type(error).__name__}: {error})"
        ) from error


def _key(key: object, place: str) -> str | int:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TaskError(f"{place} has the key {key!r}; keys are strings or whole numbers")
    if isinstance(key, str) and key.startswith(MARK):
        raise TaskError(f"{place} has the key {key!r}; keys must not begin with {MARK}")
    return str(key) if isinstance(key, str) else int(key)


def _read_array(value: Any, place: str) -> np.ndarray[Any, Any]:
    """Return an array of another library, such as JAX, as numpy reads it."""
    try:
        return np.asarray(value)
    except Exception as error:  # whatever its library says
        raise TaskError(
            f"{place} is a {type(value).__module__}.{type(value).__qualname__}, which numpy cannot "
            f"read ({error}); {REMEDY}"
        ) from error


def _array(value: np.ndarray[Any, Any], place: str) -> dict[str, Tensor]:
    buffer = io.BytesIO()
    if value.dtype.isbuiltin == OF_LIBRARY:
        value = value.astype(np.float32)
    try:
        np.save(buffer, value, allow_pickle=False)
    except ValueError:
        raise TaskError(
            f"{place} is an array of Python objects ({value.dtype}), which cannot be saved; "
            f"{REMEDY}"
        ) from None
    return {ARRAY: _as_tensor(buffer.getvalue())}


def _as_tensor(content: bytes) -> Tensor:
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if content
        else torch.empty(0, dtype=torch.uint8)
    )


def _remove(path: Path) -> None:
    """Remove a file, and the folders above it that it was the last in, up to the attempt's."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        for folder in list(path.parents)[:MOST_ABOVE]:
            folder.rmdir()
