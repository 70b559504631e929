"""`worker predict`: predictions of a checkpoint, or of the mean of several, on new inputs."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import CheckpointError
from common.folder import durable
from common.search.search_file import Search
from worker.commands.chosen_models import Models, Request
from worker.commands.inputs import read_inputs
from worker.tasks import trees
from worker.tasks.base import Task
from worker.tasks.loader import load_class
from worker.training.compute.device import own_device
from worker.training.outcome.evaluate import Saved, find_ranked_weights, load


@dataclass(frozen=True)
class Predicted:
    """Predictions: probabilities (n, C), or without classes the outputs (n, ...) by name.

    An output of a model that returns a single tensor has the name "".
    """

    values: dict[str, NDArray[np.floating]]
    classes: NDArray[np.int64] | None  # (n,) the most probable class
    n_models: int

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def csv(self) -> str:
        """Return CSV with one line per example: its number from 0, its class, and all values."""
        one = "output" if self.classes is None else "probability"
        tables = []
        for name, values in self.values.items():
            flat = values.reshape(len(values), -1)
            columns = [f"{name or one}_{column}" for column in range(flat.shape[1])]
            tables.append(pd.DataFrame(flat, columns=columns))
        table = pd.concat(tables, axis=1)
        if self.classes is not None:
            table.insert(0, "class", self.classes)
        return table.to_csv(index_label="example", lineterminator="\n")

    def npz(self) -> bytes:
        """Return an npz file with the arrays ``probabilities`` and ``classes``, or ``outputs``.

        Several outputs go by their own names.
        """
        buffer = io.BytesIO()
        one = "outputs" if self.classes is None else "probabilities"
        arrays: dict[str, NDArray[np.generic]] = {
            name or one: values for name, values in self.values.items()
        }
        if self.classes is not None:
            arrays["classes"] = self.classes
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()


def predict(request: Request, models: Models) -> tuple[str, str]:
    """Run the models. Return the text for stdout and a line for stderr.

    Args:
        request: the options.
        models: the models that they name, see ``choose_models``.

    Raises:
        ConfigError: the inputs or the command line are wrong.
        CheckpointError: a checkpoint is missing, damaged or of another task.
        TaskError: the task cannot be loaded.
    """
    folder, paths = models
    search = folder.search()
    assert search is not None  # `choose_models` has read its file
    task = load_class(search, folder, request.data)
    with own_device(request.device) as device:
        found = predict_mean(
            paths,
            search,
            task,
            request.inputs,
            device.torch_device,
            request.weights or find_ranked_weights(search),
        )
        told = (
            f"{len(found)} examples, {found.n_models} "
            f"{'model' if found.n_models == 1 else 'models'}, on {device.name}"
        )
    if request.out is None:
        return found.csv().rstrip("\n"), told
    durable.replace(
        request.out, found.npz() if request.out.suffix.lower() == ".npz" else found.csv().encode()
    )
    return "", f"{told}: wrote {request.out}"


def predict_mean(
    paths: Sequence[Path],
    search: Search,
    task: Task,
    inputs: Path,
    device: torch.device,
    weights: str,
) -> Predicted:
    """Return the mean prediction of the models in ``paths``.

    A model that is named twice counts twice.

    Raises:
        ConfigError: the inputs are wrong, or a checkpoint does not hold these weights.
        CheckpointError: a checkpoint is missing, damaged or of another task, or takes other inputs
            than the first.
    """
    counted = Counter(path.resolve() for path in paths)
    models = {path: load(path, task, search.task, device, weights) for path in counted}
    first = next(iter(models.values()))
    examples = read_inputs(inputs, first.form)
    total, shape = None, None
    for path, model in models.items():
        if model.form != first.form or model.n_classes != first.n_classes:
            raise CheckpointError(
                f"{path}: takes other inputs, or has other classes, than {first.path.name}; they "
                "make no ensemble"
            )
        outputs = {
            name: output.double() * counted[path] for name, output in _outputs(model, examples)
        }
        own = ", ".join(f"{name} {tuple(output.shape)}".strip() for name, output in outputs.items())
        if shape not in (None, own):
            raise CheckpointError(
                f"{path}: gives outputs of shape {own}, {first.path.name} of {shape}; they make no "
                "ensemble"
            )
        total = {
            name: output if total is None else total[name] + output
            for name, output in outputs.items()
        }
        shape = own
    assert total is not None  # there is at least one path
    mean = {name: (output / counted.total()).float().numpy() for name, output in total.items()}
    classes = mean[""].argmax(axis=-1) if first.n_classes is not None else None
    return Predicted(mean, classes, len(models))


def _outputs(model: Saved, examples: trees.Tree) -> list[tuple[str, Tensor]]:
    """Return the outputs by name: of a model with classes the probabilities."""
    outputs = model.outputs(examples)
    if model.n_classes is not None:
        return [("", outputs.double().softmax(-1))]
    leaves, named = trees.list_leaves(outputs), trees.name_leaves(outputs)
    # A container that is not a dict, tuple or list has its leaves numbered.
    names = named if all(isinstance(one, Tensor) for one in named.values()) else range(len(leaves))
    return [(str(name), leaf) for name, leaf in zip(names, leaves, strict=True)]
