"""What the sections share: the device, trials, a task, and one row of the table."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from common.search.trial import Claim, Fence, Trial, TrialState, trial_id, trial_seed
from common.search.values import Scalar
from worker.tasks.base import Data, Part
from worker.tasks.digits import Digits
from worker.training.engine.engine import Engine, Outcome, TrainingOptions
from worker.training.math.preprocess import fit

Size = TypeVar("Size")
SEED = 231
CPU = torch.device("cpu")
BASE: dict[str, Scalar] = {
    "hidden": 64,
    "depth": 2,
    "optimizer": "sgd",
    "momentum": 0.9,
    "batch_size": 64,
    "learning_rate": 0.01,
}
CONVNET: dict[str, Scalar] = {"model": "convnet", "filters": 16, "blocks": 2}


@dataclass(frozen=True)
class Setup:
    """The options of a section."""

    device: torch.device
    smoke: bool  # small, so that the program itself is known to work
    folder: Path  # for what the section writes

    def size(self, whole: Size, small: Size) -> Size:
        """Return a number or numbers of something, or small ones for a smoke run."""
        return small if self.smoke else whole


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    found: str
    wanted: str
    good: bool


def at_most(what: str, found: float, limit: float) -> Row:
    """Return the row of a number that has a limit."""
    return Row(what, f"{found:.3g}", f"at most {limit:g}", found <= limit)


def at_least(what: str, found: float, goal: float) -> Row:
    """Return the row of a number that has a goal."""
    return Row(what, f"{found:.3g}", f"at least {goal:g}", found >= goal)


class Loaded(Digits):
    """Digits, read and normalised once."""

    preprocess = "none"

    def __init__(self) -> None:
        data = super().data()
        fitted = fit("normalise", data.train.inputs)
        train, val = (
            Part(fitted.apply(part.inputs), part.targets) for part in (data.train, data.val)
        )
        self._data = Data(train, val, None, data.n_classes)

    def data(self) -> Data:
        """Return the same tensors each time."""
        return self._data


class Watch:
    """A watch that says to stop after some beats, or never."""

    def __init__(self, beats: int | None = None) -> None:
        self._left = beats

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        """See ``worker.training.types.Watch``."""
        if self._left is not None:
            self._left -= 1

    def lost(self) -> tuple[str, ...]:
        """See ``worker.training.types.Watch``."""
        return ()

    def stopping(self) -> bool:
        """See ``worker.training.types.Watch``."""
        return self._left is not None and self._left <= 0


def job(index: int, epochs: float, alone: bool = False, **hp: Scalar) -> Claim:
    """Return a trial of the base configuration with some values of its own."""
    trial = Trial(
        trial_id("bench", index),
        "bench",
        index,
        trial_seed(SEED, "bench", index),
        epochs,
        {**BASE, **hp},
        "{}",
    )
    return Claim(trial, Fence(trial.id, 1, "token"), alone)


def jobs(n: int, epochs: float, **hp: Scalar) -> list[Claim]:
    """Return trials of different learning rates, at which none explodes."""
    draw = random.Random(SEED)
    rates = [10 ** draw.uniform(-4, -1.5) for _ in range(n)]
    return [job(i, epochs, **{"learning_rate": rate, **hp}) for i, rate in enumerate(rates)]


def engine(device: torch.device, task: Any = None, **options: Any) -> Engine:
    """Return an engine that is never stopped by an explosion."""
    fixed = {"explosion": False, "metric": "val_loss", "mode": "min"}
    return Engine(
        task or Loaded(),
        TrainingOptions(device, SEED, "digits", lambda _: None, **{**fixed, **options}),
    )


def train(of: Engine, claims: Sequence[Claim]) -> dict[str, Outcome]:
    """Train trials to their end. Return their outcomes by trial.

    Raises:
        SystemExit: one has not come to its end.
    """
    ended = {
        one.trial.id: one
        for boundary in of.train(claims, lambda n: [], Watch())
        for one in boundary.ended
    }
    for one in ended.values():
        if one.state is not TrialState.COMPLETED:
            raise SystemExit(f"{one.trial.id} {dict(one.trial.hyperparameters)}: {one.reason}")
    return ended


def weights(one: Outcome) -> Tensor:
    """Return the last weights of a trial that came to its end, on the host, in double precision."""
    assert one.resume is not None  # it has COMPLETED
    flat: Tensor = one.resume()["row"]["flat"]
    return flat.double().cpu()


def distance(one: Tensor, other: Tensor) -> float:
    """Return the distance of two vectors relative to their size."""
    return float((one - other).norm() / (1e-12 + other.norm()))


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def timed(device: torch.device) -> Iterator[list[float]]:
    """Yield a list that gets the seconds of the block, and those of this process's processors."""
    passed: list[float] = []
    synchronize(device)
    began, busy = time.perf_counter(), time.process_time()
    yield passed
    synchronize(device)
    passed += [time.perf_counter() - began, time.process_time() - busy]


def resumed(claim: Claim, state: dict[str, Any]) -> Claim:
    """Return the trial, to go on from a state."""
    return replace(claim, resume=state)
