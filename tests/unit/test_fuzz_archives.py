"""Hostile archives: weights, resume states, predictions, inputs.

They are refused and run nothing.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import CheckpointError, ConfigError
from common.folder import predictions
from tests.unit.fuzzing import BYTES, JSON, fuzzed, refusal, with_flips
from worker.commands.inputs import read_inputs
from worker.own.saved import load_state, pack
from worker.training.outcome.evaluate import read_checkpoint

HALVES = np.full((4, 2), 0.5, np.float32)
PREDICTIONS = predictions.pack(
    {"val": HALVES, "val_targets": [0, 1, 0, 1], "test": HALVES, "test_targets": [0, 1, 1, 0]}
)
WEIGHTS = pack(
    {
        "model": {"a": torch.zeros(3)},
        "hyperparameters": {"a": 1},
        "state": {"$array": torch.zeros(3, dtype=torch.uint8)},
    }
)
ARRAYS = {
    "val": st.sampled_from(
        [
            HALVES,
            HALVES.astype(np.float64),
            HALVES * np.nan,
            HALVES * 3,
            np.zeros((0, 2), np.float32),
            np.float32(1.0),
        ]
    ),
    "val_targets": st.sampled_from(
        [
            np.array([0, 1, 0, 1]),
            np.array([9, 0, 0, 0]),
            np.array(["a", "b", "c", "d"]),
            np.zeros((4, 2)),
        ]
    ),
    "test": st.sampled_from([HALVES, np.zeros((4, 3), np.float32), np.zeros(0), np.array([b"x"])]),
    "test_targets": st.sampled_from([np.array([0, 1, 0, 1]), np.array([-1, 0, 0, 0]), np.array(3)]),
}


@functools.cache
def plain(kind: str) -> bytes:
    """A valid file of inputs."""
    buffer = io.BytesIO()
    if kind == ".npy":
        np.save(buffer, HALVES)
    elif kind == ".npz":
        np.savez(buffer, inputs=HALVES)
    else:
        buffer.write(b"a,b\n1,2\n3,4\n")
    return buffer.getvalue()


def read(content: bytes, ending: str, reader: Any, kinds: Any) -> Any:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ending}"
        path.write_bytes(content)
        found = refusal(kinds, lambda: reader(path))
        assert [entry.name for entry in Path(folder).iterdir()] == [path.name]
        return found


@fuzzed
@given(with_flips(PREDICTIONS) | BYTES)
def test_damaged_predictions(content: bytes) -> None:
    read(content, ".npz", predictions.read, CheckpointError)


@fuzzed
@given(st.fixed_dictionaries({}, optional=ARRAYS))
def test_arrays_that_are_no_predictions(arrays: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    found = read(buffer.getvalue(), ".npz", predictions.read, CheckpointError)
    assert found is None or (
        found.val.probabilities.shape == HALVES.shape and found.val.targets.max() < 2
    )


@fuzzed
@given(with_flips(WEIGHTS) | BYTES)
def test_damaged_weights(content: bytes) -> None:
    for reader in (read_checkpoint, load_state):
        read(content, ".pt", reader, CheckpointError)


@fuzzed
@given(
    JSON
    | st.fixed_dictionaries(
        {
            "state": JSON
            | st.fixed_dictionaries({"$array": JSON})
            | st.fixed_dictionaries({"$bytes": JSON})
        }
    )
)
def test_weights_that_hold_something_else(content: Any) -> None:
    for reader in (read_checkpoint, load_state):
        read(pack(content), ".pt", reader, CheckpointError)


@fuzzed
@given(st.data(), st.sampled_from([".npy", ".npz", ".csv"]))
def test_damaged_inputs(data: st.DataObject, ending: str) -> None:
    content = data.draw(with_flips(plain(ending)) | BYTES)
    read(
        content,
        ending,
        lambda path: read_inputs(path, {"shape": [2], "floating": True}),
        ConfigError,
    )
