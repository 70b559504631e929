"""What each companion reports, saves and ends, in this process and without a search."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from worker.own import TrialEnded
from worker.own.saved import frozen, thaw

EXAMPLES = Path(__file__).parents[2] / "examples"
SPACES: dict[str, dict[str, Any]] = {
    "lightning": {"learning_rate": 0.01, "hidden": 16},
    "transformers": {"learning_rate": 0.003, "width": 32},
    "keras": {"learning_rate": 0.01, "hidden": 16, "dropout": 0.0},
    "skorch": {"learning_rate": 0.01, "hidden": 16},
}
LOGGED = {
    "lightning": {"train_loss", "val_loss", "val_acc"},
    "transformers": {"train_loss", "val_loss", "val_acc", "grad_norm", "learning_rate"},
    "keras": {"train_loss", "train_acc", "val_loss", "val_acc"},
    "skorch": {"train_loss", "val_loss", "val_acc"},
}


class Trial:
    """A trial that keeps its reports, and ends after some of them or after some beats."""

    id, seed, device, max_epochs = "coarse-0000", 7, "cpu", 6.0

    def __init__(self, hp: dict[str, Any], epochs: float, epoch: float = 0, resume: Any = None):
        self.hp, self.epochs, self.epoch, self.resume = hp, epochs, epoch, resume
        self.reports: list[tuple[float, dict[str, float]]] = []
        self.state: Any = None
        self.n_beats = 0
        self.ends_at: float = math.inf
        self.most_beats: float = math.inf

    def report(self, epoch: float, *, state: Any, **values: float) -> None:
        assert epoch > self.epoch
        self.epoch, self.state = epoch, frozen(state)
        self.reports.append((epoch, values))
        if epoch >= self.ends_at:
            raise TrialEnded

    def beat(self, limit_s: float | None = None) -> None:
        self.n_beats += 1
        if self.n_beats > self.most_beats:
            raise TrialEnded


def loop(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"loop_{name}", EXAMPLES / name / "my_loop.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


libraries = pytest.mark.parametrize("name", list(SPACES))


@libraries
def test_each_epoch_is_reported_and_training_ends_with_the_budget(name: str) -> None:
    trial = Trial(SPACES[name], epochs=2)
    loop(name).train(trial)
    assert [epoch for epoch, _ in trial.reports] == [1, 2]
    assert all(set(values) == LOGGED[name] for _, values in trial.reports)
    assert trial.reports[1][1]["train_loss"] < trial.reports[0][1]["train_loss"]
    assert 0 < trial.reports[1][1]["val_acc"] <= 1 and trial.n_beats > 4


@libraries
def test_a_longer_budget_goes_on_from_the_saved_state(name: str) -> None:
    first = Trial(SPACES[name], epochs=2)
    loop(name).train(first)
    then = Trial(SPACES[name], epochs=3, epoch=2, resume=thaw(first.state))
    loop(name).train(then)
    ((epoch, values),) = then.reports
    losses = [reported["train_loss"] for _, reported in first.reports]
    assert epoch == 3 and values["train_loss"] < sum(losses) / 2


def test_a_trainer_of_transformers_ends_as_if_it_had_not_been_interrupted() -> None:
    """ViT is saved under other names than it has, and the Trainer alone does not load these."""
    whole, first = (Trial(SPACES["transformers"], epochs=epochs) for epochs in (3, 2))
    loop("transformers").train(whole)
    loop("transformers").train(first)
    then = Trial(SPACES["transformers"], epochs=3, epoch=2, resume=thaw(first.state))
    loop("transformers").train(then)
    assert first.reports + then.reports == whole.reports


@libraries
def test_a_trial_that_is_ended_at_a_report_or_between_ends_its_training(name: str) -> None:
    trial = Trial(SPACES[name], epochs=4)
    trial.ends_at = 1
    with pytest.raises(TrialEnded):
        loop(name).train(trial)
    assert trial.epoch == 1
    trial = Trial(SPACES[name], epochs=4)
    trial.most_beats = 2
    with pytest.raises(TrialEnded):
        loop(name).train(trial)
    assert trial.reports == []


@pytest.mark.parametrize("name", ["lightning", "transformers", "keras"])
def test_a_loss_that_is_not_finite_is_reported_as_it_is(name: str) -> None:
    trial = Trial(SPACES[name] | {"learning_rate": 1e30}, epochs=2)
    loop(name).train(trial)
    assert not math.isfinite(trial.reports[-1][1]["train_loss"])
