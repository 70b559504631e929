"""Batches that are computed in pieces: the same steps as at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.search.trial import TrialState
from tests.unit.training.helpers import PlainRun, SmallDigits, job, outcomes
from tests.unit.training.references import covers
from tests.unit.training.test_nested import HP, Branching, Nested


def jobs(n: int, **more: Any) -> list[Any]:
    return [job(i, 3, learning_rate=0.03 * (i + 1), dropout=0.25, **more) for i in range(n)]


@covers("accumulate")
@pytest.mark.parametrize(("pieces", "width"), [(4, 3), (5, 1), (64, 2), (100, 1)])
def test_a_batch_in_pieces_is_the_same_step(pieces: int, width: int) -> None:
    ones = jobs(width, accumulate=pieces)
    found = outcomes(ones, width=width, metric="val_loss", mode="min")
    data = SmallDigits().data()
    for one in ones:
        outcome, plain = found[one.id], PlainRun(one, data)
        assert outcome.state is TrialState.COMPLETED and outcome.array_width == width
        row = outcome.resume()["row"]["flat"]
        weights = [p for p in plain.module.parameters() if p.ndim > 1]
        biases = [p for p in plain.module.parameters() if p.ndim == 1]
        expected = torch.cat([p.detach().flatten() for p in (*weights, *biases)])
        assert torch.allclose(row, expected, atol=1e-9)
        mean = sum(plain.losses[-5:]) / 5
        assert outcome.curves["train_loss"][-1] == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("kind", [Nested, Branching])
def test_parts_of_a_loss_and_containers_are_in_pieces_too(kind: type) -> None:
    how: dict[str, Any] = {"task": kind(), "metric": "val_loss", "mode": "min", "width": 1}
    whole = outcomes([job(0, 2, **HP)], **how)["coarse-0000"]
    pieces = outcomes([job(0, 2, **HP, accumulate=3)], **how)["coarse-0000"]
    for name in ("train_loss", "train_value", "train_kind", "val_loss", "val_right"):
        assert pieces.curves[name] == pytest.approx(whole.curves[name], rel=1e-9), name


class Turned(SmallDigits):
    """Its dropout sees the examples in the second dimension."""

    def model(self, hp: Any) -> nn.Module:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.drop = nn.Linear(64, 16), nn.Dropout(hp["dropout"])
                self.out = nn.Linear(16, 10)

            def forward(self, inputs: Tensor) -> Tensor:
                h = self.body(inputs).movedim(-1, 0)
                return self.out(nn.functional.dropout(self.drop(h), 0.1, self.training).T)

        return Net()


@pytest.mark.parametrize("hp", [{"accumulate": 4}, {"val_passes": 2}, {}])
def test_noise_that_has_no_row_for_each_example_is_not_cut(hp: dict[str, Any]) -> None:
    said: list[str] = []
    ones = jobs(2, **hp)
    found = outcomes(ones, task=Turned(), log=said.append, width=2)
    for one in ones:
        outcome = found[one.id]
        assert outcome.state is TrialState.COMPLETED, outcome.reason
        assert outcome.array_width == (1 if hp else 2)
    assert ["the examples come first" in line for line in said] == ([True] if hp else [])
