"""Test accuracy of a saved model: the one look at the test part, after the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from common.errors import CheckpointError, TaskError
from worker.tasks.base import Part, Task

EXAMPLES_AT_ONCE = 1024


def test_accuracy(checkpoint: Path, task: Task) -> tuple[int, int]:
    """How many examples of the test part the model in ``checkpoint`` gets right, and how many there are.

    Raises:
        CheckpointError: the file is missing, damaged, or of another model.
        TaskError: the task has no test part.
    """
    part = task.data().test
    if part is None:
        raise TaskError("the task has no test part: data() returned test=None; give it one to measure with")
    return n_correct(checkpoint, task, part), len(part)


def n_correct(checkpoint: Path, task: Task, part: Part) -> int:
    """How many examples of ``part`` the model in ``checkpoint`` gets right.

    Raises:
        CheckpointError: the file is missing, damaged, or of another model.
    """
    content = read_checkpoint(checkpoint)
    model = task.model(content["hyperparameters"])
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"{checkpoint}: does not fit the task's model ({error}); was the task changed since?") from error
    model.eval()
    dtype = next((tensor.dtype for tensor in content["model"].values() if tensor.is_floating_point()), torch.float32)
    model.to(dtype)
    right = 0
    with torch.no_grad():
        for x, y in zip(torch.split(part.inputs, EXAMPLES_AT_ONCE), torch.split(part.targets, EXAMPLES_AT_ONCE), strict=True):
            right += int((model(x.to(dtype)).argmax(-1) == y).sum())
    return right


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a weights file, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; `master rank` lists those there are") from None
    except Exception as error:  # a damaged archive raises whatever its damage leads to
        raise CheckpointError(f"{path}: is damaged or no checkpoint ({type(error).__name__}: {error}); remove it") from error
    if not isinstance(content, dict) or not {"model", "hyperparameters"} <= content.keys():
        raise CheckpointError(f"{path}: holds no model and hyperparameters; it is not a checkpoint of this program")
    return content
