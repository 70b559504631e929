"""A task that calls exit while it trains ends its own trial, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from torch import Tensor, nn

from common.search.trial import Claim, TrialState
from tests.unit.training.helpers import SmallDigits, job, outcomes


class Leaving(nn.Module):
    """A model whose forward calls exit: in training, in evaluation, or from the first batch on."""

    def __init__(self, inner: nn.Module, when: str) -> None:
        super().__init__()
        self.inner, self.when = inner, when

    def forward(self, inputs: Tensor) -> Tensor:
        if (
            self.when == "at once"
            or (self.when == "training" and self.training)
            or (self.when == "measured" and not self.training)
        ):
            sys.exit(0)
        outputs: Tensor = self.inner(inputs)
        return outputs


class Ending(nn.Module):
    """Calls exit in its forward once something is over."""

    def __init__(self, inner: nn.Module, over: Callable[[], bool]) -> None:
        super().__init__()
        self.inner, self.over = inner, over

    def forward(self, inputs: Tensor) -> Tensor:
        if self.over():
            sys.exit(0)
        outputs: Tensor = self.inner(inputs)
        return outputs


class InForward(SmallDigits):
    def model(self, hp: Any) -> nn.Module:
        inner = super().model(hp)
        return Leaving(inner, str(hp["when"])) if "when" in hp else inner


class InLoss(SmallDigits):
    def loss(self, outputs: Tensor, targets: Tensor, hp: Any) -> Tensor:
        if hp["depth"] == 3:
            sys.exit(0)
        return nn.functional.cross_entropy(outputs, targets)


def leaving(outputs: Tensor, targets: Tensor) -> float:
    sys.exit(0)


class InMetric(SmallDigits):
    metrics: ClassVar[dict[str, Callable[[Tensor, Tensor], float]]] = {"val_f1": leaving}


@pytest.mark.parametrize("width", [None, 3])
@pytest.mark.parametrize("when", ["at once", "training", "measured"])
def test_a_forward_that_exits_fails_its_trial_and_its_neighbours_go_on(
    when: str, width: int | None
) -> None:
    found = outcomes([job(0), job(1, when=when), job(2)], task=InForward(), width=width)
    assert found["coarse-0001"].state is TrialState.FAILED
    assert "called exit(0); raise an exception that says why instead" in str(
        found["coarse-0001"].reason
    )
    assert "sys.exit(0)" in str(found["coarse-0001"].traceback)
    assert [found[f"coarse-000{i}"].state for i in (0, 2)] == [TrialState.COMPLETED] * 2


def test_where_all_exit_all_fail_though_their_width_is_measured_first() -> None:
    class Everywhere(InLoss):
        def model(self, hp: Any) -> nn.Module:
            return Leaving(
                super().model(hp), "never"
            )  # no chain of layers, so that its width is measured

    found = outcomes([job(i, depth=3) for i in range(3)], task=Everywhere())
    assert {outcome.state for outcome in found.values()} == {TrialState.FAILED} and len(found) == 3


def test_where_one_exits_as_it_joins_an_array_the_engine_lives() -> None:
    over = list[int]()

    class Later(SmallDigits):
        def model(self, hp: Any) -> nn.Module:
            return Ending(super().model(hp), lambda: bool(over))

    def refill(_n: int) -> list[Claim]:
        over.append(1)
        return [job(1)] if len(over) == 1 else []

    found = outcomes([job(0), job(2)], task=Later(), refill=refill, width=3)
    assert [found[f"coarse-000{i}"].state for i in range(3)] == [TrialState.FAILED] * 3


def test_a_loss_that_exits_fails_its_trial() -> None:
    found = outcomes([job(0), job(1, depth=3), job(2)], task=InLoss())
    assert [found[f"coarse-000{i}"].state for i in range(3)] == [
        TrialState.COMPLETED,
        TrialState.FAILED,
        TrialState.COMPLETED,
    ]
    assert "called exit(0)" in str(found["coarse-0001"].reason)


def test_a_metric_that_exits_fails_the_trials_and_the_engine_lives() -> None:
    found = outcomes([job(i) for i in range(3)], task=InMetric())
    assert {outcome.state for outcome in found.values()} == {TrialState.FAILED}
    assert all("called exit(0)" in str(outcome.reason) for outcome in found.values())
