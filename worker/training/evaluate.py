"""A saved model, used as it was trained: its weights in the plain model, its preprocessing before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import CheckpointError, ConfigError, TaskError
from common.search import AVERAGED, Search
from common.space import Hyperparameters
from worker.tasks.base import Part, Task, data_of
from worker.training import archive
from worker.training.preprocess import NONE, Preprocessing

EXAMPLES_AT_ONCE = 1024
RAW, EMA = "raw", "ema"  # the weights of the last update, or their running average


@dataclass(frozen=True)
class Saved:
    """A model in evaluation mode on its device."""

    path: Path
    module: nn.Module
    preprocessing: Preprocessing
    hyperparameters: Hyperparameters
    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, ...]  # of an example as data() makes it
    floating: bool  # whether its elements are, or whole numbers
    n_classes: int | None

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """What the model gives for inputs as ``data()`` makes them, (n, ...); on the CPU.

        Raises:
            CheckpointError: the model does not take such inputs.
        """
        try:
            return torch.cat([self._batch(x) for x in torch.split(inputs, EXAMPLES_AT_ONCE)])
        except (TaskError, RuntimeError, ValueError, IndexError) as error:
            shape = tuple(inputs.shape[1:])
            raise CheckpointError(
                f"{self.path}: its model takes no examples of shape {shape} ({error}); give such as data() makes"
            ) from error

    def _batch(self, inputs: Tensor) -> Tensor:
        values = self.preprocessing.apply(inputs)
        values = values.to(self.device, self.dtype if values.is_floating_point() else values.dtype)
        outputs = self.module(values)
        assert isinstance(outputs, Tensor)  # the engine has trained it
        return outputs.cpu()


def load(path: Path, task: Task, task_name: str, device: torch.device, weights: str = RAW) -> Saved:
    """The model in a checkpoint.

    Args:
        task_name: as in the search file; a checkpoint of another task is refused.
        weights: ``raw``, or ``ema`` for their running average.

    Raises:
        CheckpointError: the file is missing, damaged, or of another task or model.
        ConfigError: there are no such weights in it.
    """
    content = read_checkpoint(path)
    if _named(content.get("task", task_name)) != _named(task_name):
        raise CheckpointError(f"{path}: is a checkpoint of task {content['task']!r}, not of {task_name!r}; give one of this search")
    state = _weights(path, content, weights)
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    try:
        module = task.model(content["hyperparameters"]).to(dtype)
        module.load_state_dict(state)
    except (RuntimeError, KeyError, TaskError) as error:
        raise CheckpointError(f"{path}: does not fit the task's model ({error}); was the task changed since?") from error
    module.to(device).eval()
    inputs = content["inputs"] if "inputs" in content else _inputs(task)
    n_classes = content["n_classes"] if "n_classes" in content else data_of(task).n_classes
    preprocessing, shape = _preprocessing(path, content), tuple(inputs["shape"])
    return Saved(path, module, preprocessing, content["hyperparameters"], device, dtype, shape, inputs["floating"], n_classes)


def ranked_weights(search: Search) -> str:
    """Those that the search's metric is measured of."""
    return EMA if search.metric.startswith(AVERAGED) else RAW


def held_out(task: Task) -> Part:
    """The part that no search looks at.

    Raises:
        TaskError: the task has none.
    """
    part = task.data().test
    if part is None:
        raise TaskError("the task has no test part: data() returned test=None; give it one to measure with")
    return part


def n_correct(saved: Saved, part: Part) -> int:
    """How many examples of ``part`` the model gets right.

    Raises:
        CheckpointError: the model does not take such examples.
    """
    return int((saved.outputs(part.inputs).argmax(-1) == part.targets).sum())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a weights file, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or holds something else.
    """
    try:
        content = archive.load(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; `master rank` lists those there are") from None
    except Exception as error:  # a damaged archive raises whatever its damage leads to
        raise CheckpointError(f"{path}: is damaged or no checkpoint ({type(error).__name__}: {error}); remove it") from error
    if not isinstance(content, dict) or not {"model", "hyperparameters"} <= content.keys():
        raise CheckpointError(f"{path}: holds no model and hyperparameters; it is not a checkpoint of a task whose model is trained here")
    return content


def _inputs(task: Task) -> dict[str, Any]:
    """What an older checkpoint does not say."""
    inputs = data_of(task).train.inputs
    return {"shape": list(inputs.shape[1:]), "floating": inputs.is_floating_point()}


def _weights(path: Path, content: dict[str, Any], weights: str) -> dict[str, Tensor]:
    if weights == EMA and "ema" not in content:
        raise ConfigError(f"--weights ema: {path.name} holds no running average; train with ema = 0.999 in [space], or use --weights raw")
    found: dict[str, Tensor] = content["ema" if weights == EMA else "model"]
    return found


def _preprocessing(path: Path, content: dict[str, Any]) -> Preprocessing:
    if content.get("preprocessing") is None:
        return Preprocessing(NONE, {})
    try:
        return Preprocessing.from_state(content["preprocessing"])
    except (TaskError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _named(task: str) -> str:
    """The task without the folder of its file, which the search's own folder holds a copy of."""
    file, colon, name = task.rpartition(":")
    return f"{Path(file).name}:{name}" if colon else task
