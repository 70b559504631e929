"""One training in ordinary PyTorch, as the peers do it. Imports nothing of this program.

The batches are cut from one shuffled copy of the data in memory, the step is torch's fused SGD, and
each process has one thread. Of the combinations tried, this is the fastest for these models.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

THREADS = 1
Parts = dict[str, Tensor]
Values = dict[str, float]


def load(path: Path) -> Parts:
    """Return the arrays that ``problems.prepare`` wrote, as tensors."""
    torch.set_num_threads(THREADS)
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def draw(space: dict[str, list], rng: random.Random) -> Values:
    """Return a configuration drawn at random."""
    values = {}
    for name, (kind, *ends) in space.items():
        if kind == "choice":
            values[name] = rng.choice(ends[0])
        elif kind == "log_uniform":
            values[name] = math.exp(rng.uniform(math.log(ends[0]), math.log(ends[1])))
        else:
            values[name] = rng.uniform(*ends)
    return values


class Log:
    """A file with one line per trained epoch: trial, epoch, val_acc, val_loss, test_acc, at.

    ``at`` is the wall clock. ``test_acc`` is measured when the process has a new best model, since
    that is the one that would be kept. For other epochs it is null.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)
        self._best = (-1.0, 0.0)

    def note(
        self, trial: int, epoch: int, val: tuple[float, float], test: Callable[[], float]
    ) -> None:
        """Write the line of an epoch whose validation accuracy and loss are ``val``."""
        at = time.time()  # the result is known now, before the test set is evaluated
        key = (val[0], -val[1])
        test_acc = test() if key > self._best else None
        self._best = max(self._best, key)
        line = {"trial": trial, "epoch": epoch, "val_acc": val[0], "val_loss": val[1]}
        self._file.write(json.dumps({**line, "test_acc": test_acc, "at": at}) + "\n")


def build(values: Values, parts: Parts) -> nn.Sequential:
    """Build the network that ``values`` describe, with He initialisation and zero biases."""
    shape, n_classes = parts["train_x"].shape[1:], int(parts["train_y"].max()) + 1
    hidden, drop = int(values["hidden"]), values["dropout"]
    layers: list[nn.Module] = []
    n_inputs, depth = math.prod(shape), int(values.get("depth", 1))
    if values.get("model") == "convnet":
        channels = shape[0]
        for block in range(int(values["blocks"])):
            filters = int(values["filters"]) * 2**block
            layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels = filters
        layers.append(nn.Flatten())
        n_inputs = channels * math.prod(size >> int(values["blocks"]) for size in shape[1:])
    for _ in range(depth):
        layers += [nn.Linear(n_inputs, hidden), nn.ReLU(), nn.Dropout(drop)]
        n_inputs = hidden
    layers.append(nn.Linear(n_inputs, n_classes))
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def train(
    values: Values,
    parts: Parts,
    epochs: int,
    note: Callable[[int, tuple[float, float], Callable[[], float]], bool],
) -> float:
    """Train one configuration. Return the best validation accuracy.

    A validation loss that is not finite ends the trial.

    Args:
        values: The configuration, with the fixed values.
        parts: The data from ``load``.
        epochs: The maximum number of epochs.
        note: Called after each epoch with the epoch, (val_acc, val_loss) and a function that
            measures the test accuracy. True ends the trial.
    """
    model = build(values, parts)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=values["learning_rate"],
        momentum=values["momentum"],
        nesterov=bool(values["nesterov"]),
        weight_decay=values["weight_decay"],
        fused=True,
    )
    x, y, size = parts["train_x"], parts["train_y"], int(values["batch_size"])
    best = 0.0
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(y))
        for inputs, targets in zip(x[order].split(size), y[order].split(size), strict=True):
            loss = functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        val = evaluate(model, parts["val_x"], parts["val_y"])
        best = max(best, val[0])
        if note(epoch, val, lambda: evaluate(model, parts["test_x"], parts["test_y"])[0]):
            break
        if not math.isfinite(val[1]):
            break
    return best


def evaluate(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the accuracy and the mean cross-entropy in nats."""
    model.eval()
    with torch.inference_mode():
        outputs = model(inputs)
        loss = functional.cross_entropy(outputs, targets).item()
        accuracy = int((outputs.argmax(1) == targets).sum()) / len(targets)
    model.train()
    return accuracy, loss
