"""A loop's ``state`` as a file can hold it and give it back without running any code: tensors, arrays, and plain values. No pickle."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import CheckpointError, TaskError
from worker.training import archive

ARRAY, BYTES = "$array", "$bytes"  # the only key of a dict that stands for one; both hold a tensor of uint8
MARK = "$"  # a user's own keys must not begin with it
MOST_NESTED = 64  # a state is seldom deeper than ten; one that holds itself has no end
REMEDY = "a state holds tensors, numpy arrays, numbers, strings, bytes, lists, tuples and dicts of these"


def frozen(value: Any, place: str = "state", depth: int = 0) -> Any:
    """A copy in a form that ``torch.save`` writes as plain data; nothing that the loop does later changes it.

    Args:
        value: the state or a part of it.
        place: where in the state it is, for the message.
        depth: how deep.

    Raises:
        TaskError: it cannot be saved; the message names the key.
    """
    if depth > MOST_NESTED:
        raise TaskError(f"{place}: nested more than {MOST_NESTED} deep; does the state hold itself?")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.generic):
        return frozen(value.item(), place, depth + 1) if not isinstance(value.item(), np.generic) else _array(np.asarray(value), place)
    if isinstance(value, np.ndarray):
        return _array(value, place)
    if isinstance(value, bytes | bytearray):
        return {BYTES: _as_tensor(bytes(value))}
    if isinstance(value, Mapping):
        return {_key(key, place): frozen(item, f"{place}[{key!r}]", depth + 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(frozen(item, f"{place}[{number}]", depth + 1) for number, item in enumerate(value))
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    raise TaskError(f"{place} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be saved; {REMEDY}")


def thawed(value: Any) -> Any:
    """The inverse of ``frozen``, a copy of its own: tensors on the CPU, arrays as arrays."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        if value.keys() == {ARRAY}:
            return np.load(io.BytesIO(value[ARRAY].numpy().tobytes()), allow_pickle=False)
        if value.keys() == {BYTES}:
            return value[BYTES].numpy().tobytes()
        return {key: thawed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(thawed(item) for item in value)
    return value


def packed(content: dict[str, Any]) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load_state(path: Path | str) -> Any:
    """The ``state`` in a checkpoint of a loop: what was reported with its best epoch.

    Raises:
        CheckpointError: the file is missing, damaged, or of a task that the engine trained.
    """
    try:
        content = archive.load(Path(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; `master rank` lists those there are") from None
    except Exception as error:  # a damaged archive raises whatever its damage leads to
        raise CheckpointError(f"{path}: is damaged or no checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict) or "state" not in content:
        raise CheckpointError(f"{path}: holds no state of a loop; `worker test` and `worker predict` read what the engine trained")
    try:
        return thawed(content["state"])
    except (ValueError, TypeError, AttributeError, SyntaxError, EOFError, tokenize.TokenError) as error:
        raise CheckpointError(f"{path}: its state is damaged ({type(error).__name__}: {error})") from error


def _key(key: object, place: str) -> str | int:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TaskError(f"{place} has the key {key!r}; keys are strings or whole numbers")
    if isinstance(key, str) and key.startswith(MARK):
        raise TaskError(f"{place} has the key {key!r}; keys must not begin with {MARK}")
    return str(key) if isinstance(key, str) else int(key)


def _array(value: np.ndarray[Any, Any], place: str) -> dict[str, Tensor]:
    buffer = io.BytesIO()
    try:
        np.save(buffer, value, allow_pickle=False)
    except ValueError:
        raise TaskError(f"{place} is an array of Python objects ({value.dtype}), which cannot be saved; {REMEDY}") from None
    return {ARRAY: _as_tensor(buffer.getvalue())}


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
