"""The penalty on hidden activations, against loops of plain PyTorch that write it out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.search.hyperparameters import PERCEPTRON
from common.search.trial import TrialState
from tests.unit.training.helpers import (
    SmallDigits,
    engine,
    job,
    outcomes,
    states_of_one_array,
)
from tests.unit.training.plain import NoisyLoop
from tests.unit.training.references import covers

STRENGTHS = (0.0, 1e-3, 3e-2)
PER_EPOCH = 5
BUDGET = 2.2  # in epochs; the trials still run at the end of the second
WHOLE: dict[str, Any] = {"fade": 0.8, "clip_norm": 1.0, "momentum": 0.9, "weight_decay": 1e-3}


class Of(SmallDigits):
    """The built-in perceptron, or the module that ``build`` makes."""

    def __init__(self, build: Any = None) -> None:
        self.build = build

    def model(self, hp: Any) -> nn.Module:
        return self.build(hp) if self.build is not None else super().model(hp)


class Rows(nn.Module):
    """An LSTM that reads an image row by row, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.hidden = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 7)
        self.relu, self.out = nn.ReLU(inplace=True), nn.Linear(7, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        h = self.lstm(inputs.view(-1, 8, 8))[0][:, -1]
        return self.out(self.relu(self.hidden(h)))


class Twice(nn.Module):
    """One activation layer that is used twice, whose output is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(64, 9), nn.Linear(9, 9), nn.Linear(9, 10)
        self.act = nn.GELU()

    def forward(self, inputs: Tensor) -> Tensor:
        h = self.act(self.second(self.act(self.first(inputs))))
        h += 1
        return self.out(h)


def convolutions(hp: Any) -> nn.Module:
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.MaxPool2d(3), nn.Dropout(0.2), nn.Flatten(), nn.Linear(12, 10), nn.Tanh()
    )


def jobs(*strengths: float, epochs: float = BUDGET, **more: Any) -> list[Any]:
    return [
        job(i, epochs, **{"learning_rate": 0.05 * (i + 1), **more, "activation_l1": strength})
        for i, strength in enumerate(strengths)
    ]


def agree(task: Any, ones: list[Any]) -> None:
    """Compare the weights and losses of an array with those of plain loops."""
    own = engine(task, width=len(ones))
    found = states_of_one_array(own, ones, 2)
    for one in ones:
        loop = NoisyLoop(one, task, 2 * PER_EPOCH)
        for name, expected in loop.weights().items():
            gap = (found[one.id]["model"][name] - expected).abs().max()
            assert gap <= 1e-9 * expected.abs().max().clamp(min=1), f"{name} differs by {gap}"
        losses = torch.tensor(loop.losses, dtype=torch.float64).view(2, -1).mean(1).tolist()
        curve = found[one.id]["history"]["curves"]["train_loss"]
        assert curve == pytest.approx(losses, rel=1e-9)


@covers("activation_l1", "fade", "clip_norm", activation=PERCEPTRON["activation"].options)
@pytest.mark.parametrize("activation", PERCEPTRON["activation"].options)
def test_perceptrons_are_penalised_as_three_plain_loops(activation: str) -> None:
    # Dropout overwrites the activations in place; the penalty is on those before it.
    agree(Of(), jobs(*STRENGTHS, activation=activation, dropout=0.3, **WHOLE))


def test_a_perceptron_with_batch_normalisation_is_penalised_as_by_plain_loops() -> None:
    agree(Of(), jobs(*STRENGTHS, batch_norm=True, momentum=0.9))


@covers("activation_l1")
@pytest.mark.parametrize(
    "build", [convolutions, lambda hp: Rows(), lambda hp: Twice()], ids=["conv", "lstm", "twice"]
)
def test_stacked_modules_are_penalised_as_three_plain_loops(build: Any) -> None:
    agree(Of(build), jobs(*STRENGTHS, **WHOLE))


@pytest.mark.parametrize("build", [None, convolutions, lambda hp: Rows()])
def test_a_trial_alone_and_one_in_pieces_learn_what_the_array_learns(build: Any) -> None:
    how: dict[str, Any] = {"task": Of(build), "metric": "val_loss", "mode": "min"}
    # Batch normalisation sees a piece at a time.
    accumulate = {} if build is convolutions else {"accumulate": 3}
    ones = jobs(*STRENGTHS, epochs=2)
    together = outcomes(ones, width=3, **how)
    alone = outcomes(jobs(*STRENGTHS, epochs=2, **accumulate), width=1, **how)
    for one in ones:
        assert together[one.id].first_loss == pytest.approx(alone[one.id].first_loss, rel=1e-9)
        for name in ("train_loss", "val_loss"):
            assert together[one.id].curves[name] == pytest.approx(
                alone[one.id].curves[name], rel=1e-8
            )


def test_the_first_loss_has_the_penalty_and_the_curves_do_not() -> None:
    ones = jobs(0.5, 0.0, epochs=1, learning_rate=0.0)
    found = outcomes(ones, task=Of())
    plain = NoisyLoop(ones[0], Of(), 1)
    sizes = sum(float(one.detach().abs().sum()) for one in plain.activations) / 64
    with_, without = (found[one.id] for one in ones)
    assert with_.first_loss == pytest.approx(plain.losses[0] + 0.5 * sizes, rel=1e-9)
    assert without.first_loss == pytest.approx(NoisyLoop(ones[1], Of(), 1).losses[0], rel=1e-9)
    loop = NoisyLoop(ones[0], Of(), PER_EPOCH)
    assert with_.curves["train_loss"] == pytest.approx([sum(loop.losses) / PER_EPOCH], rel=1e-9)


@pytest.mark.parametrize("build", [None, convolutions])
def test_a_neighbour_s_penalty_changes_nothing_of_a_trial_without_one(build: Any) -> None:
    both, none = (
        outcomes(jobs(0.0, strength, epochs=2), task=Of(build), width=2)["coarse-0000"]
        for strength in (0.1, 0.0)
    )
    # A convolution may add in another order.
    limit = 0.0 if build is None else 1e-12
    flat = none.resume()["row"]["flat"]
    assert torch.allclose(both.resume()["row"]["flat"], flat, rtol=0, atol=limit)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(inputs)))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 8), nn.ReLU())
        self.out = nn.Linear(8, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(checkpoint(self.body, inputs, use_reentrant=False))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (Functional, "activation_l1 = 0.1: the model has no activation layer, such as nn.ReLU"),
        (Checkpointed, "activation_l1 = 0.1: the model's forward checkpoints activations"),
    ],
)
def test_a_model_whose_activations_are_not_seen_is_refused(build: Any, says: str) -> None:
    task = Of(lambda hp: build())
    ones = jobs(0.1, 0.0, epochs=1)
    found = outcomes(ones, task=task)
    refused, trained = (found[one.id] for one in ones)
    assert refused.state is TrialState.FAILED and says in refused.reason
    assert trained.state is TrialState.COMPLETED
