"""Short trainings by the engine on a few examples, without regularisation and noise."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.search.trial import Claim, Fence, Trial, trial_id, trial_seed
from common.search.values import Value
from worker.checks.data import rows
from worker.checks.plan import quiet
from worker.tasks import trees
from worker.tasks.base import Data, Measure, Part, Task, model_of
from worker.tasks.loading import Loaded
from worker.training.engine.engine import Boundary, Engine, Outcome, TrainingOptions
from worker.training.model.groups import FROZEN

LOADED_ROWS = 64  # examples that are loaded at a time
STAGE = "check"  # for the trials' ids
# Learning rates of Adam: one of them suits nearly every scaled model.
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SLOW_RATES = (1e-3,)  # for slow models: the rate that Adam's authors advise
NO_EXPLOSION = 1e12  # no trial ends as EXPLODED; each check judges the loss itself


class Portion:
    """The task with other data and without dropout."""

    def __init__(
        self,
        task: Task,
        data: Data,
        preprocess: str = "none",
        metrics: Mapping[str, Measure] | None = None,
    ) -> None:
        """Wrap a task.

        Args:
            task: the task.
            data: replaces the task's data.
            preprocess: the preprocessing unless the configuration names one.
            metrics: the metrics to measure.
        """
        self._task, self._data = task, data
        self.preprocess = preprocess
        self.metrics = dict(metrics or {})
        for name in ("loss", "image_shape"):  # attributes that the engine looks for
            if (value := getattr(task, name, None)) is not None:
                setattr(self, name, value)

    def data(self) -> Data:
        """Return the data."""
        return self._data

    def param_groups(self, model: nn.Module, hp: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the task's frozen groups. All others train with the numbers of a check."""
        ask = getattr(self._task, "param_groups", None)
        groups = [] if ask is None else ask(model, hp)
        return [group for group in groups if group.get(FROZEN, True) is False]

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        """Return the task's model without dropout."""
        return silence_dropout(model_of(self._task, hp))


def silence_dropout(module: nn.Module) -> nn.Module:
    """Set every dropout rate to 0, in place.

    This includes the rates of layers with built-in dropout (LSTM, attention).
    """
    for layer in module.modules():
        for name in ("p", "rate", "dropout"):
            dropping = name == "dropout" or "dropout" in type(layer).__name__.lower()
            if dropping and isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
    return module


class UntilWatch:
    """A watch that stops the engine at a given time on the monotonic clock."""

    def __init__(self, until_s: float) -> None:
        self._until_s = until_s

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        """Do nothing, as nobody listens."""

    def lost(self) -> Collection[str]:
        """Return nothing, as there are no leases."""
        return ()

    def stopping(self) -> bool:
        """Return whether the time is up."""
        return time.monotonic() >= self._until_s


@dataclass(frozen=True)
class Trained:
    """The result of several trainings."""

    outcomes: Sequence[Outcome]  # of the trainings that ended
    best_loss: float | None  # lowest validation loss of any training and epoch
    accuracy: float | None  # at that epoch
    out_of_time: bool
    steps: int  # of the training that came furthest

    def reaches(self, loss: float) -> bool:
        """Whether the best loss is low enough and, if there are accuracies, all is right."""
        return (
            self.best_loss is not None and self.best_loss <= loss and self.accuracy in (None, 1.0)
        )

    def better(self, other: Trained) -> Trained:
        """Return both results as one, with the lower of the two losses."""
        have = [one for one in (self, other) if one.best_loss is not None]
        best = min(have, key=lambda one: one.best_loss or 0.0, default=self)
        return Trained(
            [*self.outcomes, *other.outcomes],
            best.best_loss,
            best.accuracy,
            self.out_of_time or other.out_of_time,
            max(self.steps, other.steps),
        )


def engine_of(task: Task, search_seed: int) -> Engine:
    """Return a double-precision engine on the CPU that logs nothing and sees no explosion."""
    options = TrainingOptions(
        torch.device("cpu"),
        search_seed=search_seed,
        task_name="check",
        explosion_factor=NO_EXPLOSION,
        log=lambda message: None,
        dtype=torch.float64,
        width=len(RATES),
        metric="val_loss",
        mode="min",
        watching=False,
    )
    return Engine(task, options)


def claim_of(
    values: Mapping[str, Value], index: int = 0, epochs: float = 1.0, seed: int = 0
) -> Claim:
    """Return a trial that has no lease."""
    name = trial_id(STAGE, index)
    trial = Trial(name, STAGE, index, trial_seed(seed, STAGE, 0), epochs, dict(values), "{}")
    return Claim(trial, Fence(name, 1, "check"))


def train_model(
    task: Task,
    data: Data,
    values: Mapping[str, Value],
    batch_size: int,
    epochs: int,
    seed: int,
    until_s: float,
    rates: Sequence[float] = RATES,
    enough: float | None = None,
    metrics: Mapping[str, Measure] | None = None,
) -> Trained:
    """Train one model at several learning rates of Adam.

    The trainings end early when one has a validation loss of at most ``enough`` and, if there are
    accuracies, an accuracy of 1.

    Raises:
        TaskError: the model cannot be trained.
    """
    hp: dict[str, Value] = {
        "optimizer": "adam",
        "nesterov": False,
        "batch_size": batch_size,
        "preprocess": "none",
    }
    claims = [
        claim_of(quiet(values, {**hp, "learning_rate": rate}), index, epochs, seed)
        for index, rate in enumerate(rates)
    ]
    watch = UntilWatch(until_s)
    ended: list[Outcome] = []
    best: tuple[float, float | None] | None = None
    furthest = 0.0
    for boundary in engine_of(Portion(task, data, metrics=metrics), seed).train(
        claims, lambda n_free: [], watch
    ):
        ended += boundary.ended
        for loss, accuracy, epoch in _read_boundary(boundary):
            furthest = max(furthest, epoch)
            if loss is not None and (best is None or loss < best[0]):
                best = (loss, accuracy)
        if best is not None and enough is not None and best[0] <= enough and best[1] in (None, 1.0):
            break
    per_epoch = max(1, len(data.train) // min(batch_size, len(data.train)))
    loss, accuracy = best or (None, None)
    return Trained(ended, loss, accuracy, watch.stopping(), round(furthest * per_epoch))


def _read_boundary(boundary: Boundary) -> list[tuple[float | None, float | None, float]]:
    running = [(view.value, view.metrics.get("val_acc"), view.epoch) for view in boundary.running]
    return [
        *running,
        *((outcome.val_loss, outcome.val_acc, outcome.epochs) for outcome in boundary.ended),
    ]


def repeat(part: Part, times: int) -> Part:
    """Return the examples of a part, repeated ``times`` times."""
    return join_parts([part] * times)


def join_parts(parts: Sequence[Part]) -> Part:
    """Return all examples of several parts as one part."""
    return Part(
        trees.join([part.inputs for part in parts]), trees.join([part.targets for part in parts])
    )


def load_first(loaded: Loaded, n: int, seconds: float) -> Part:
    """Return the first examples of a part that is loaded, at most ``n``, in about that time."""
    until_s, pairs, left = time.monotonic() + seconds, [], n
    for inputs, targets in loaded.iterate(LOADED_ROWS, 0, quick=True):
        pairs.append(Part(inputs, targets))
        left -= len(pairs[-1])
        if left <= 0 or time.monotonic() > until_s:
            break
    return join_parts(pairs).take(slice(n))


def spread(part: Part, n: int, n_classes: int | None, seed: int) -> Tensor:
    """Return the indices (m,) of at most ``n`` different examples.

    They are drawn by ``seed`` and taken from the classes in turn.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(part), generator=generator)
    if n_classes is not None:
        targets = part.targets[order]
        ranks = torch.zeros_like(targets)
        for c in range(n_classes):
            mine = targets == c
            ranks[mine] = torch.arange(int(mine.sum()))
        order = order[torch.argsort(ranks, stable=True)]
    order = order[: 4 * n]  # spare examples, because repetitions are left out
    different: dict[bytes, int] = {}
    for place, row in zip(order.tolist(), rows(trees.pick(part.inputs, order)), strict=True):
        different.setdefault(row, place)
    return torch.tensor(list(different.values())[:n])
