"""What depends on Python's state or random numbers trains alone, and as a plain loop trains it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.search.trial import TrialState
from tests.unit.training.helpers import (
    SEARCH_SEED,
    SmallDigits,
    StopAfter,
    boundaries,
    job,
    load,
    outcomes,
    state,
)
from worker.training.math.noise import noise_keys
from worker.training.stacked.batches import shuffle

BATCH, RATE, EPOCHS = 64, 0.05, 3


class Net(nn.Module):
    """Two layers, and what a test wants to happen in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.between(self.first(inputs).tanh()))

    def between(self, h: Tensor) -> Tensor:
        return h


class Counter(Net):
    """Its scale follows the steps it has made."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def between(self, h: Tensor) -> Tensor:
        if self.training:
            self.steps += 1  # here: counts
        return h * (1 + 0.1 * self.steps)


class Running(Net):
    """Scales by what it has seen in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def between(self, h: Tensor) -> Tensor:
        if self.training:
            self.seen.append(float(h.detach().abs().mean()))  # here: appends
        return h / (sum(self.seen[-5:]) / max(1, len(self.seen[-5:])) + 1)


class LayerDrop(Net):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(16, 16)

    def between(self, h: Tensor) -> Tensor:
        if self.training and random.uniform(0, 1) < 0.5:  # here: draws
            return h
        return h + self.middle(h).tanh()


class Numpy(Net):
    def between(self, h: Tensor) -> Tensor:
        return h * float(1 + 0.2 * np.random.rand()) if self.training else h  # here: numpy


class OwnGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(3)

    def between(self, h: Tensor) -> Tensor:
        return h * self.generator.uniform(0.8, 1.2) if self.training else h  # here: own


class Carried(Net):
    """A hidden state that goes from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None

    def between(self, h: Tensor) -> Tensor:
        mean = h.mean(0)
        if self.training:
            self.hidden = (  # here: carries
                mean.detach() if self.hidden is None else 0.5 * (self.hidden + mean.detach())
            )
        return h + self.hidden if self.hidden is not None else h


MODELS: dict[str, tuple[Callable[[], Net], str]] = {
    "counter": (Counter, "its forward changes the attribute `steps`"),
    "list": (Running, "its forward changes the attribute `seen`"),
    "layer drop": (LayerDrop, "its forward draws Python's random numbers"),
    "numpy": (Numpy, "its forward draws numpy's random numbers"),
    "own generator": (OwnGenerator, "its forward changes the attribute `generator`"),
    "hidden": (Carried, "its forward changes the attribute `hidden`"),
}


def task_of(build: Callable[[], nn.Module], made: list[nn.Module] | None = None) -> Any:
    class Task(SmallDigits):
        def model(self, hp: Any) -> nn.Module:
            module = build()
            if made is not None:
                made.append(module)
            return module

    return Task()


def plain(build: Callable[[], nn.Module], of: Any, epochs: int = EPOCHS) -> nn.Module:
    """A loop as a user writes it.

    It has the trial's seed and batches. The generators are seeded before each step, as the engine
    seeds torch's.
    """
    trial, data = of.trial, SmallDigits().data()
    torch.manual_seed(trial.seed)
    module = build().double()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    inputs, targets, step = data.train.inputs.double(), data.train.targets, 0
    for epoch in range(epochs):
        module.train()
        for rows in shuffle(len(targets), SEARCH_SEED, epoch).split(BATCH):
            keys = noise_keys(torch.tensor([trial.seed]), torch.tensor([[step]]), 2)
            seed = int(keys[0, 0, 0, 1])
            random.seed(seed), np.random.seed(seed % 2**32)
            loss = nn.functional.cross_entropy(module(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        module.eval()
        with torch.no_grad():
            module(data.val.inputs.double())
    return module


def gap(found: Any, expected: nn.Module) -> float:
    weights = found["model"]
    return max(float((weights[name] - p).abs().max()) for name, p in expected.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_stateful_model_trains_as_in_a_plain_loop_and_the_reason_has_its_line(name: str) -> None:
    build, reason = MODELS[name]
    said: list[str] = []
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    jobs = [job(i, EPOCHS, learning_rate=RATE) for i in range(2)]
    made: list[nn.Module] = []
    found, last = {}, {}
    for boundary in boundaries(jobs, task=task_of(build, made), log=said.append):
        last |= {
            view.trial.id: state(view) for view in boundary.running if view.epoch == EPOCHS - 1
        }
        found |= {one.trial.id: one for one in boundary.ended}
    assert len(said) == 1 and reason in said[0] and "(test_state.py, line " in said[0], said
    assert "# here: " in said[0]
    del before
    for one, module in zip(jobs, made, strict=True):
        outcome = found[one.id]
        assert (outcome.state, outcome.array_width) == (TrialState.COMPLETED, 1)
        expected = plain(build, one)
        best = plain(build, one, int(outcome.best_epoch))
        assert gap(load(outcome.checkpoint()), best) < 1e-6
        for key in ("steps", "seen"):
            assert getattr(module, key, None) == pytest.approx(getattr(expected, key, None))


@pytest.mark.parametrize("name", MODELS)
def test_a_stateful_model_resumes_where_it_was(name: str) -> None:
    build, _ = MODELS[name]
    one = job(0, EPOCHS, learning_rate=RATE)
    (whole,) = outcomes([one], task=task_of(build)).values()
    stopped = list(boundaries([one], StopAfter(11), task=task_of(build)))[-1].running[0]
    assert 1 < stopped.epoch < EPOCHS
    said: list[str] = []
    again = job(0, EPOCHS, resume=state(stopped), learning_rate=RATE)
    (rest,) = outcomes([again], task=task_of(build), log=said.append).values()
    assert rest.curves["val_loss"] == pytest.approx(whole.curves["val_loss"], abs=1e-12)
    assert not [line for line in said if "does not fit" in line]


class Unsaved(Counter):
    """Counts in an object that no file of tensors holds."""

    class Box:
        def __init__(self) -> None:
            self.n = 0

    def __init__(self) -> None:
        super().__init__()
        self.box = self.Box()

    def between(self, h: Tensor) -> Tensor:
        self.box.n += self.training
        return h * (1 + 0.1 * self.box.n)


def test_a_state_that_cannot_be_saved_starts_anew_and_says_so() -> None:
    one, said = job(0, EPOCHS, learning_rate=RATE), []
    (whole,) = outcomes([one], task=task_of(Unsaved)).values()
    stopped = list(boundaries([one], StopAfter(11), task=task_of(Unsaved)))[-1].running[0]
    again = job(0, EPOCHS, resume=state(stopped), learning_rate=RATE)
    (rest,) = outcomes([again], task=task_of(Unsaved), log=said.append).values()
    assert rest.curves["val_loss"] == pytest.approx(whole.curves["val_loss"], abs=1e-12)
    assert [line for line in said if "changes the attribute `box`, which cannot be saved" in line]


class Clock(Net):
    def between(self, h: Tensor) -> Tensor:
        return h * (1 + time.perf_counter() % 1)


def test_what_reads_the_clock_trains_alone() -> None:
    said: list[str] = []
    found = outcomes([job(i, 1) for i in range(2)], task=task_of(Clock), log=said.append)
    assert "its forward gives other outputs at each call" in said[0]
    assert {one.array_width for one in found.values()} == {1}


class Initialised(Net):
    """Sets a scale by its first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.begun = nn.Parameter(torch.ones(16)), False

    def between(self, h: Tensor) -> Tensor:
        if not self.begun:
            self.scale.data.copy_(1 / h.detach().std(0))
            self.begun = True
        return h * self.scale


def test_what_a_first_batch_sets_is_set_by_the_trial_s_own_first_batch() -> None:
    said: list[str] = []
    one = job(0, EPOCHS, learning_rate=RATE)
    (found,) = outcomes([one], task=task_of(Initialised), log=said.append).values()
    assert "its forward changes parameters" in said[0]
    expected = plain(Initialised, one, int(found.best_epoch))
    assert gap(load(found.checkpoint()), expected) < 1e-6


class Cache(Net):
    """Keeps what it computed once, and what it saw last: neither changes what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None
        self.last_size = 0

    def between(self, h: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones(16, dtype=h.dtype)
        self.last_size = h.shape[-1]
        return h * self.mask


def test_a_cache_is_no_state() -> None:
    said: list[str] = []
    found = outcomes([job(i, 1) for i in range(2)], task=task_of(Cache), log=said.append, width=2)
    assert {one.array_width for one in found.values()} == {2} and not said


def test_a_loss_with_a_state_is_told_with_its_line() -> None:
    class Task(SmallDigits):
        def __init__(self) -> None:
            self.calls = 0

        def loss(self, outputs: Tensor, targets: Tensor, hp: Any) -> Tensor:
            self.calls += 1  # here: counts
            return nn.functional.cross_entropy(outputs, targets)

    said: list[str] = []
    found = outcomes([job(i, 1) for i in range(2)], task=Task(), log=said.append)
    assert "its loss changes the attribute `calls` of the task, which all trials share" in said[0]
    assert "# here: counts)" in said[0]
    assert {one.array_width for one in found.values()} == {1}


def test_the_engine_draws_nothing_from_python_s_generators_for_other_models() -> None:
    random.seed(5), np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    outcomes([job(i, 1) for i in range(2)], task=task_of(Net))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
