"""Parameter groups: stacked trials against the groups of torch.optim."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import TaskError
from common.search.trial import TrialState
from tests.unit.training.helpers import SEARCH_SEED, engine, job, load, outcomes
from tests.unit.training.plain import OPTIMIZERS
from worker.checks.training import Portion
from worker.tasks import Data, Part
from worker.training.model.groups import read_groups
from worker.training.stacked.batches import shuffle

N, SIZE = 64, 16
INPUTS = torch.randn(N, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CLASSES = (INPUTS[:, 0] * INPUTS[:, 1] > 0).long()
HP: dict[str, Any] = {
    "batch_size": SIZE,
    "weight_decay": 0.01,
    "schedule": "step",
    "step_epochs": 1,
    "drop": 0.5,
}
OWN = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "rmsprop": {"momentum": 0.5},
    "adagrad": {},
    "adam": {},
    "adamw": {},
}


class Grouped:
    """A head with numbers of its own, and biases of the body that do not decay."""

    def data(self) -> Data:
        part = Part(INPUTS, CLASSES)
        return Data(part, part, None, 2)

    def model(self, hp: Any) -> nn.Module:
        return nn.Sequential(
            nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)
        )

    def param_groups(self, model: Any, hp: Any) -> list[dict[str, Any]]:
        return [
            {"params": model[4].parameters(), "lr": hp["head_rate"], "weight_decay": hp["decay"]},
            {"params": model[2].weight, "learning_rate": 0.3 * hp["learning_rate"]},
        ]


class Frozen(Grouped):
    """Its first layer keeps its initial weights."""

    def param_groups(self, model: Any, hp: Any) -> list[dict[str, Any]]:
        frozen = {"params": model[0].parameters(), "requires_grad": False}
        return [frozen, *super().param_groups(model, hp)]


def jobs(name: str, n: int = 3) -> list[Any]:
    rate = 0.02 if name in ("sgd", "adagrad") else 0.005
    return [
        job(
            i,
            2,
            optimizer=name,
            learning_rate=rate * (i + 1),
            head_rate=rate / (i + 2),
            decay=0.1 * i,
            **{**HP, **OWN[name]},
        )
        for i in range(n)
    ]


def plain(of: Any, task: Any) -> dict[str, Tensor]:
    """Return the weights after two epochs with the groups of torch."""
    trial = of.trial
    hp = trial.hyperparameters
    torch.manual_seed(trial.seed)
    model = task.model(hp).double()
    head = {
        "params": list(model[4].parameters()),
        "lr": hp["head_rate"],
        "weight_decay": hp["decay"],
    }
    middle = {"params": [model[2].weight], "lr": 0.3 * hp["learning_rate"]}
    first = [model[0].weight] if type(task) is Grouped else []
    biases = [model[2].bias, *([model[0].bias] if type(task) is Grouped else [])]
    groups = [head, middle, {"params": first}, {"params": biases, "weight_decay": 0.0}]
    if type(task) is Frozen:
        model[0].requires_grad_(False)
    optimizer = OPTIMIZERS[hp["optimizer"]](
        [group for group in groups if group["params"]],
        lr=hp["learning_rate"],
        weight_decay=hp["weight_decay"],
        **OWN[hp["optimizer"]],
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, N // SIZE, gamma=0.5)
    for epoch in range(2):
        for rows in shuffle(N, SEARCH_SEED, epoch).split(SIZE):
            loss = nn.functional.cross_entropy(model(INPUTS[rows]), CLASSES[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("backend", ["eager", "traced"])
@pytest.mark.parametrize("kind", [Grouped, Frozen])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_are_those_of_torch(name: str, kind: type, backend: str) -> None:
    ones = jobs(name)
    found = outcomes(ones, task=kind(), width=3, backend=backend, metric="val_loss", mode="min")
    for one in ones:
        outcome = found[one.id]
        assert outcome.state is TrialState.COMPLETED, outcome.reason
        assert outcome.array_width == 3 and outcome.best_epoch == 2, "the last weights are the best"
        saved, reference = load(outcome.checkpoint())["model"], plain(one, kind())
        assert list(saved) == list(reference)
        for key, tensor in reference.items():
            assert torch.allclose(saved[key], tensor, atol=1e-6, rtol=0), key


def test_a_trial_resumes_with_its_groups() -> None:
    ones = jobs("adam", 2)
    how: dict[str, Any] = {"task": Grouped(), "width": 2, "metric": "val_loss", "mode": "min"}
    short = [job(i, 1, **one.trial.hyperparameters) for i, one in enumerate(ones)]
    # The schedule counts epochs, so half of the way is the same way.
    first = outcomes(short, **how)
    again = [
        job(i, 2, first[one.id].resume(), **one.trial.hyperparameters) for i, one in enumerate(ones)
    ]
    resumed = outcomes(again, **how)
    for one in ones:
        saved, reference = load(resumed[one.id].checkpoint())["model"], plain(one, Grouped())
        assert all(torch.allclose(saved[key], reference[key], atol=1e-6) for key in saved)


def test_other_groups_are_another_structure() -> None:
    class Either(Grouped):
        def param_groups(self, model: Any, hp: Any) -> list[dict[str, Any]]:
            return super().param_groups(model, hp)[: int(hp["decay"] > 0) + 1]

    builder = engine(Either(), metric="val_loss").builder
    structures = {builder.entry(one).model.structure for one in jobs("sgd")}
    assert len(structures) == 2


def test_checks_see_what_is_frozen_and_nothing_else_of_the_groups() -> None:
    one = jobs("adam", 1)[0].trial.hyperparameters
    task = Frozen()
    portion = Portion(task, task.data())
    model = portion.model(one)
    assert read_groups(portion, model, one) == []
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "0.weight",
        "0.bias",
    ]


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        (lambda m: {"params": m.parameters()}, "returned a dict; return a list of dicts"),
        (lambda m: [{"lr": 1.0}], r'param_groups\(model, hp\)\[0\] has no "params"'),
        (lambda m: [{"params": m[0].parameters(), "momentum": 1.0}], "'momentum' is the same for"),
        (
            lambda m: [{"params": torch.zeros(2), "lr": 1.0}],
            "a Tensor is no parameter of",
        ),
        (lambda m: [{"params": m[0].weight, "lr": -1.0}], r"lr = -1.0; a number of at least 0"),
        (lambda m: [{"params": m[0].weight, "lr": 1.0}] * 2, "0.weight is in a group already"),
    ],
)
def test_wrong_groups_are_told(groups: Any, told: str) -> None:
    class Wrong(Grouped):
        def param_groups(self, model: Any, hp: Any) -> Any:
            return groups(model)

    one = jobs("sgd", 1)[0]
    outcome = outcomes([one], task=Wrong(), metric="val_loss", mode="min")[one.id]
    assert outcome.state is TrialState.FAILED
    with pytest.raises(TaskError, match=told):
        raise TaskError(outcome.reason)
