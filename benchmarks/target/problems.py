"""The data, the space and the search file of each task. All methods get the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MAX_EPOCHS = 20  # of one trial, for every method
LEARNING_RATE = ("log_uniform", 1e-6, 1e1)  # these three ranges are those of the built-in search
WEIGHT_DECAY = ("log_uniform", 1e-7, 1e0)
DROPOUT = ("uniform", 0.0, 0.8)
SGD = {"optimizer": "sgd", "momentum": 0.9, "nesterov": True}

Range = tuple[str, float, float]  # sampling scale, low, high
Choice = tuple[str, Sequence[int]]  # "choice" and the options


@dataclass(frozen=True)
class Problem:
    """One task of the benchmark.

    Attributes:
        name: The task's name in this benchmark.
        task: The task in the search file: a built-in task, or FILE:CLASS beside that file.
        space: The sampled hyperparameters.
        fixed: The other hyperparameters.
        preprocess: Preprocessing of the inputs: "normalise", "centre" or "none".
        budget: The end of this program's search file, after `[space]`: how much it may train.
        limit_s: Seconds that each peer gets, counted from its command.
        targets: Validation accuracies. If there are none, the target is what the best peer reaches
            at the limit: the largest of the peers' medians over the seeds.
    """

    name: str
    task: str
    space: Mapping[str, Range | Choice]
    fixed: Mapping[str, object]
    preprocess: str
    budget: str
    limit_s: float
    targets: tuple[float, ...] = ()

    def search_file(self, seed: int, budget: str | None = None) -> str:
        """Return the text of this program's search file. ``budget`` replaces the task's own."""
        lines = [f'name = "{self.name}"', f'task = "{self.task}"', f"seed = {seed}", "[space]"]
        for name, (kind, *ends) in self.space.items():
            values = list(ends[0]) if kind == "choice" else ends  # type: ignore[call-overload]
            lines.append(f"{name} = {{ {kind} = {json.dumps(values)} }}")
        lines += [f"{name} = {json.dumps(value)}" for name, value in self.fixed.items()]
        return "\n".join([*lines, budget or self.budget, ""])

    def told(self) -> str:
        """Return what a peer needs to know of the task, as JSON."""
        return json.dumps({"space": dict(self.space), "fixed": dict(self.fixed)})


def _budget(epochs: int) -> str:
    return f"[budget]\nepochs = {epochs}\nmax_epochs = {MAX_EPOCHS}"


def _perceptron(
    hidden: Sequence[int], batch_size: int
) -> tuple[dict[str, Range | Choice], dict[str, object]]:
    space: dict[str, Range | Choice] = {
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "dropout": DROPOUT,
    }
    fixed: dict[str, object] = {"depth": 2, **SGD, "batch_size": batch_size}
    if len(hidden) == 1:
        return space, {"hidden": hidden[0], **fixed}
    return {**space, "hidden": ("choice", hidden)}, fixed


DIGITS = Problem(
    "digits",
    "digits",
    *_perceptron((64, 128, 256), 16),
    preprocess="normalise",
    budget=_budget(300),
    limit_s=30,
    targets=(0.97, 0.98, 0.985),
)
MNIST_PART = Problem(
    "mnist_part",
    "task_files.py:MnistPart",
    *_perceptron((256,), 64),
    preprocess="centre",
    budget=_budget(225),
    limit_s=60,
)
TABLE = Problem(
    "table",
    "task_files.py:Table",
    *_perceptron((64, 128, 256), 64),
    preprocess="normalise",
    budget=_budget(275),
    limit_s=60,
)
CONVNET = Problem(
    "convnet",
    "digits",
    {
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "dropout": DROPOUT,
        "filters": ("choice", (8, 16)),
        "hidden": ("choice", (64, 128)),
    },
    {"model": "convnet", "blocks": 2, **SGD, "batch_size": 32},
    preprocess="normalise",
    budget=_budget(600),
    limit_s=60,
)
PROBLEMS = {problem.name: problem for problem in (DIGITS, MNIST_PART, TABLE, CONVNET)}
NEEDS_FILES = {MNIST_PART.name}  # tasks whose files --mnist names


def prepare(problem: Problem, path: Path) -> None:
    """Write the task's preprocessed data for the peers, before any clock runs.

    The split and the preprocessing are this program's own, so that all train on the same numbers.

    Args:
        problem: The task.
        path: A ``.npz`` file, with `x` (n, ...) float32 and `y` (n,) int64 for train, val and test.
    """
    import numpy as np  # imported here: --help needs neither numpy nor torch

    from worker.tasks.base import data_of
    from worker.tasks.digits import SHAPE
    from worker.training.math.preprocess import fit

    data = data_of(make_task(problem))
    done = fit(problem.preprocess, data.train.inputs)
    parts = {"train": data.train, "val": data.val, "test": data.test}
    arrays = {}
    for name, part in parts.items():
        assert part is not None
        inputs = done.apply(part.inputs)
        if problem.fixed.get("model") == "convnet":
            inputs = inputs.unflatten(1, SHAPE)
        arrays |= {f"{name}_x": inputs.numpy(), f"{name}_y": part.targets.numpy()}
    np.savez(path, **arrays)


def make_task(problem: Problem) -> Any:
    """Return the task as this program loads it."""
    from benchmarks.target import task_files
    from worker.tasks.digits import Digits

    kind = problem.task.partition(":")[2]
    return getattr(task_files, kind)() if kind else Digits()


def quick(problem: Problem) -> Problem:
    """Return the task with a third of the time, and a budget of 100 epochs for this program."""
    return replace(problem, limit_s=problem.limit_s / 3, budget=_budget(100))
