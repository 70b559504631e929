"""Use of a saved model: its weights in the plain model, with its preprocessing before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import CheckpointError, ConfigError, TaskError
from common.search.search_file import AVERAGED, Search
from common.search.values import Hyperparameters
from common.shell_command import shell_command
from worker.tasks import trees
from worker.tasks.base import Data, Part, Task, data_of, model_of
from worker.tasks.trees import Tree
from worker.training.math.precision import BF16, FP32, casting, multiplying, widen
from worker.training.math.preprocess import NONE, Preprocessing
from worker.training.outcome import archive
from worker.training.stacked.training_data import LOADED_AT_ONCE

EXAMPLES_AT_ONCE = 1024
RAW, EMA = "raw", "ema"  # names of the weights: of the last update, or the running average


@dataclass(frozen=True)
class Saved:
    """A saved model in evaluation mode on its device."""

    path: Path
    module: nn.Module
    preprocessing: Preprocessing
    hyperparameters: Hyperparameters
    device: torch.device
    dtype: torch.dtype
    form: dict[str, Any]  # of the inputs as data() returns them, see ``trees.describe``
    n_classes: int | None

    @torch.no_grad()
    def outputs(self, inputs: Tree) -> Tree:
        """Return the model's outputs (n, ...) on the CPU, for inputs as ``data()`` returns them.

        Raises:
            CheckpointError: the model does not take such inputs.
        """
        try:
            return trees.join([self._batch(x) for x in trees.split(inputs, EXAMPLES_AT_ONCE)])
        except (TaskError, RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            shapes = [str(tuple(one.shape[1:])) for one in trees.list_leaves(inputs)]
            raise CheckpointError(
                f"{self.path}: its model takes no examples of shape {', '.join(shapes)} ({error}); "
                "give examples like those of data()"
            ) from error

    def _batch(self, inputs: Tree) -> Tree:
        values = trees.move(self.preprocessing.apply(inputs), self.device, self.dtype)
        precision = str(self.hyperparameters.get("precision", FP32))
        with multiplying(precision, self.device), casting(precision, self.device, self.module):
            outputs = self.module(values)
        outputs = widen(outputs) if precision == BF16 else outputs
        return trees.map_leaves(lambda output: output.cpu(), outputs)


def load(path: Path, task: Task, task_name: str, device: torch.device, weights: str = RAW) -> Saved:
    """Load the model of a checkpoint.

    Args:
        path: the weights file.
        task: the task.
        task_name: as in the search file; a checkpoint of another task is refused.
        device: of the model.
        weights: ``raw``, or ``ema`` for the running average.

    Raises:
        CheckpointError: the file is missing, damaged, or of another task or model.
        ConfigError: the checkpoint does not have these weights.
    """
    content = read_checkpoint(path)
    if _name_task(content.get("task", task_name)) != _name_task(task_name):
        raise CheckpointError(
            f"{path}: is a checkpoint of task {content['task']!r}, not of {task_name!r}; give one "
            "of this search"
        )
    state = _weights(path, content, weights)
    dtype = next(
        (tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32
    )
    try:
        module = model_of(task, content["hyperparameters"]).to(dtype)
        module.load_state_dict(state)
    except (RuntimeError, KeyError, TaskError) as error:
        raise CheckpointError(
            f"{path}: does not fit the task's model ({error}); was the task changed since?"
        ) from error
    module.to(device).eval()
    # An older checkpoint has no form.
    form = content.get("inputs") or trees.describe(data_of(task).train.inputs)
    n_classes = content["n_classes"] if "n_classes" in content else data_of(task).n_classes
    return Saved(
        path,
        module,
        _preprocessing(path, content),
        content["hyperparameters"],
        device,
        dtype,
        form,
        n_classes,
    )


def find_ranked_weights(search: Search) -> str:
    """Return the name of the weights that the search's metric is measured on."""
    return EMA if search.metric.startswith(AVERAGED) else RAW


def read_test_part(task: Task) -> Part:
    """Return the test part, which no search uses. Of one that is loaded it is the first batch.

    Raises:
        TaskError: the task has none.
    """
    return _test_part(task.data())


def predict_test_part(saved: Saved, task: Task) -> tuple[Tree, Tree]:
    """Return the model's outputs on the whole test part, and the targets, both on the CPU.

    Raises:
        TaskError: the task has none.
        CheckpointError: the model does not take such examples.
    """
    data = task.data()
    part = _test_part(data)
    if "test" not in data.loaded:
        return saved.outputs(part.inputs), part.targets
    outputs, targets = zip(
        *((saved.outputs(x), y) for x, y in data.loaded["test"].iterate(LOADED_AT_ONCE, 0)),
        strict=True,
    )
    return trees.join(outputs), trees.join(targets)


def _test_part(data: Data) -> Part:
    if data.test is None:
        raise TaskError(
            "the task has no test part: data() returned test=None; give it one to measure with"
        )
    return data.test


def n_correct(saved: Saved, part: Part) -> int:
    """Return how many examples of ``part`` the model predicts correctly.

    Raises:
        CheckpointError: the model does not take such examples.
    """
    return int((saved.outputs(part.inputs).argmax(-1) == part.targets).sum())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a weights file, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or no checkpoint.
    """
    try:
        content = archive.load(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; `{shell_command('master rank')}` lists those there are"
        ) from None
    except Exception as error:  # a damaged archive may raise anything
        raise CheckpointError(
            f"{path}: is damaged or no checkpoint ({type(error).__name__}: {error}); remove it"
        ) from error
    if not isinstance(content, dict) or not {"model", "hyperparameters"} <= content.keys():
        raise CheckpointError(
            f"{path}: holds no model and hyperparameters; it is not a checkpoint of a task whose "
            "model is trained here"
        )
    return content


def _weights(path: Path, content: dict[str, Any], weights: str) -> dict[str, Tensor]:
    if weights == EMA and "ema" not in content:
        raise ConfigError(
            f"--weights ema: {path.name} holds no running average; train with ema = 0.999 in "
            "[space], or use --weights raw"
        )
    found: dict[str, Tensor] = content["ema" if weights == EMA else "model"]
    return found


def _preprocessing(path: Path, content: dict[str, Any]) -> Preprocessing:
    if content.get("preprocessing") is None:
        return Preprocessing(NONE, {})
    try:
        return Preprocessing.from_state(content["preprocessing"])
    except (TaskError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _name_task(task: str) -> str:
    """Return the task with the name of its file alone, since the search's folder holds a copy."""
    file, colon, name = task.rpartition(":")
    return f"{Path(file).name}:{name}" if colon else task
