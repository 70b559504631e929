"""Short trainings by the engine on a part of the data, without regularisation and noise."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.space import Scalar
from common.trial import Claim, Fence, Trial, trial_id, trial_seed
from worker.checks.data import rows
from worker.checks.plan import quiet
from worker.tasks.base import Data, Measure, Part, Task, model_of
from worker.training.engine import Boundary, Engine, Job, Outcome

STAGE = "check"  # of the trials' names
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # of Adam: one of them suits nearly every scaled model
SLOW_RATES = (1e-3,)  # where a model is too slow for all of them: the rate that Adam's authors advise
NO_EXPLOSION = 1e12  # a check looks for itself at what became of the loss


class Portion:
    """The task on other data, with dropout switched off."""

    def __init__(self, task: Task, data: Data, preprocess: str = "none", metrics: Mapping[str, Measure] | None = None) -> None:
        """``preprocess``: what is to be done to the data unless the configuration says otherwise; ``metrics``: what is measured besides."""
        self._task, self._data = task, data
        self.preprocess = preprocess
        self.metrics = dict(metrics or {})
        for name in ("loss", "image_shape"):  # what the engine looks for
            if (value := getattr(task, name, None)) is not None:
                setattr(self, name, value)

    def data(self) -> Data:
        """The portion."""
        return self._data

    def model(self, hp: Mapping[str, Scalar]) -> nn.Module:
        """The task's model, silenced."""
        return silenced(model_of(self._task, hp))


def silenced(module: nn.Module) -> nn.Module:
    """Sets every rate of dropout to 0, in place: of dropout layers, and of layers that have it built in (LSTM, attention)."""
    for layer in module.modules():
        for name in ("p", "rate", "dropout"):
            dropping = name == "dropout" or "dropout" in type(layer).__name__.lower()
            if dropping and isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
    return module


class UntilWatch:
    """Lets the engine go on until a moment on the monotonic clock."""

    def __init__(self, until_s: float) -> None:
        self._until_s = until_s

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        """Nobody has to hear of it."""

    def lost(self) -> Collection[str]:
        """None: there are no leases."""
        return ()

    def stopping(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._until_s


@dataclass(frozen=True)
class Trained:
    """What became of the trainings."""

    outcomes: Sequence[Outcome]  # of those that ended
    best_loss: float | None  # lowest validation loss of any, at its best epoch
    accuracy: float | None  # at that epoch
    out_of_time: bool
    steps: int  # of the one that came furthest


def engine_of(task: Task, search_seed: int) -> Engine:
    """An engine of double precision on the CPU, that says nothing and tries no explosion."""
    return Engine(
        task,
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


def job_of(values: Mapping[str, Scalar], index: int = 0, epochs: float = 1.0, seed: int = 0) -> Job:
    """A job that nobody has leased."""
    name = trial_id(STAGE, index)
    trial = Trial(name, STAGE, index, trial_seed(seed, STAGE, 0), epochs, dict(values), "{}")
    return Job(Claim(trial, Fence(name, 1, "check")))


def trained(
    task: Task,
    data: Data,
    values: Mapping[str, Scalar],
    batch_size: int,
    epochs: int,
    seed: int,
    until_s: float,
    rates: Sequence[float] = RATES,
    enough: float | None = None,
    metrics: Mapping[str, Measure] | None = None,
) -> Trained:
    """Trains one model at several rates of Adam; leaves early where one has a validation loss of at most ``enough`` and all right.

    Raises:
        TaskError: the model cannot be trained.
    """
    hp: dict[str, Scalar] = {"optimizer": "adam", "nesterov": False, "batch_size": batch_size, "preprocess": "none"}
    jobs = [job_of(quiet(values, {**hp, "learning_rate": rate}), index, epochs, seed) for index, rate in enumerate(rates)]
    watch = UntilWatch(until_s)
    ended: list[Outcome] = []
    best: tuple[float, float | None] | None = None
    furthest = 0.0
    for boundary in engine_of(Portion(task, data, metrics=metrics), seed).train(jobs, lambda n_free: [], watch):
        ended += boundary.ended
        for loss, accuracy, epoch in _seen(boundary):
            furthest = max(furthest, epoch)
            if loss is not None and (best is None or loss < best[0]):
                best = (loss, accuracy)
        if best is not None and enough is not None and best[0] <= enough and best[1] in (None, 1.0):
            break
    per_epoch = max(1, len(data.train) // min(batch_size, len(data.train)))
    loss, accuracy = best or (None, None)
    return Trained(ended, loss, accuracy, watch.stopping(), round(furthest * per_epoch))


def _seen(boundary: Boundary) -> list[tuple[float | None, float | None, float]]:
    running = [(view.value, view.val_acc, view.epoch) for view in boundary.running]
    return [*running, *((outcome.val_loss, outcome.val_acc, outcome.epochs) for outcome in boundary.ended)]


def take(part: Part, places: Tensor) -> Part:
    """Those examples of a part."""
    return Part(part.inputs[places], part.targets[places])


def repeated(part: Part, times: int) -> Part:
    """The same examples again and again."""
    return joined([part] * times)


def joined(parts: Sequence[Part]) -> Part:
    """All examples of several parts."""
    return Part(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))


def spread(part: Part, n: int, n_classes: int | None, seed: int) -> Tensor:
    """(m,) places of at most ``n`` examples, all different, drawn by seed and taken from the classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(part), generator=generator)
    if n_classes is not None:
        targets = part.targets[order]
        ranks = torch.zeros_like(targets)
        for c in range(n_classes):
            mine = targets == c
            ranks[mine] = torch.arange(int(mine.sum()))
        order = order[torch.argsort(ranks, stable=True)]
    order = order[: 4 * n]  # enough to leave repetitions out
    different: dict[bytes, int] = {}
    for place, row in zip(order.tolist(), rows(part.inputs[order]), strict=True):
        different.setdefault(row, place)
    return torch.tensor(list(different.values())[:n])
