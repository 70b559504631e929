"""Which slots of an array are compared with their own modules, and that none is missed by it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from common.search.trial import TrialState
from tests.unit.training.helpers import SmallDigits, job, outcomes
from worker.training.engine import array
from worker.training.stacked.agreement import COMPARED, SHARING, Sampling

WIDTH = 24


def test_of_an_array_whose_numbers_are_drawn_the_first_slots_are_compared() -> None:
    sampling = Sampling()
    drawn = {slot: {"learning_rate": 0.1 / (slot + 1), "hidden": 64} for slot in range(WIDTH)}
    assert sampling.choose(drawn) == list(range(COMPARED))
    later = {slot: {"learning_rate": 0.3 / slot**2, "hidden": 64} for slot in range(30, 33)}
    assert sampling.choose(later) == []


def test_one_slot_with_each_value_of_a_choice_is_compared_wherever_it_is() -> None:
    sampling = Sampling()
    rare = {slot: {"learning_rate": 0.1 / (slot + 1), "slope": 0.5} for slot in range(WIDTH)}
    rare[20] |= {"slope": 0.7}
    rare[21] |= {"slope": 0.7}
    assert sampling.choose(rare) == [*range(COMPARED), 20]
    assert sampling.choose({40: {"learning_rate": 0.3, "slope": 0.9}}) == [40]
    assert sampling.choose({41: {"learning_rate": 0.4, "slope": 0.9}}) == []


@pytest.mark.parametrize("values", [("a", "b"), (True, False), (1, 2), ([1], [2])])
def test_a_value_that_only_the_last_slot_has_is_compared(values: tuple[Any, Any]) -> None:
    sampling = Sampling()
    common = {slot: {"learning_rate": 1.0 / (slot + 1), "own": values[0]} for slot in range(WIDTH)}
    assert sampling.choose(common | {WIDTH: {"learning_rate": 2.0, "own": values[1]}}) == [
        *range(COMPARED),
        WIDTH,
    ]


class Hiding(SmallDigits):
    """A model that multiplies by a number of its own, which no attribute shows."""

    def model(self, hp: Any) -> nn.Module:
        def multiply(inputs: Tensor, by: float = hp["own"]) -> Tensor:
            return inputs * by

        class Hidden(nn.Linear):
            def forward(self, inputs: Tensor) -> Tensor:
                return multiply(super().forward(inputs))

        return Hidden(64, 10)


@pytest.mark.parametrize(
    "own",
    [
        pytest.param([0.5] * (WIDTH - 1) + [2.0], id="one of a choice, in the last slot"),
        pytest.param([0.5 + slot / WIDTH for slot in range(WIDTH)], id="drawn"),
    ],
)
def test_a_hidden_value_is_found_beyond_the_sample(own: list[float]) -> None:
    jobs = [job(i, 1, own=value, learning_rate=0.01 + i / 1000) for i, value in enumerate(own)]
    said: list[str] = []
    ended = outcomes(jobs, task=Hiding(), log=said.append)
    alone = {name for name, one in ended.items() if one.array_width == 1}
    assert {one.id for one, value in zip(jobs, own, strict=True) if value != own[0]} <= alone
    assert len(alone) in (1, WIDTH)  # the first one is left over where all others differ
    assert {one.state for one in ended.values()} == {TrialState.COMPLETED}
    assert any("differs from its own module's" in line for line in said)


class Own(SmallDigits):
    def model(self, hp: Any) -> nn.Module:
        return super().model(hp)


@pytest.mark.parametrize(("task", "n"), [(Own, COMPARED), (SmallDigits, 1 + SHARING)])
def test_only_a_sample_is_compared_where_all_agree(
    monkeypatch: pytest.MonkeyPatch, task: type, n: int
) -> None:
    compared: list[tuple[int, int]] = []
    own = array.differences

    def counted(stack: Any, models: Any, *more: Any) -> dict[int, str]:
        compared.append((stack.width, len(models)))
        return own(stack, models, *more)

    monkeypatch.setattr(array, "differences", counted)
    outcomes([job(i, 1, learning_rate=0.01 + i / 1000) for i in range(WIDTH)], task=task())
    assert compared == [(n, n)]


def test_slots_that_share_a_module_are_compared_in_their_first_array_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[int] = []
    own = array.differences

    def counted(stack: Any, models: Any, *more: Any) -> dict[int, str]:
        compared.append(len(models))
        return own(stack, models, *more)

    monkeypatch.setattr(array, "differences", counted)
    first = [job(i, 1, learning_rate=0.01 + i / 1000) for i in range(8)]
    other = [job(i, 1, learning_rate=0.01 + i / 1000, hidden=7) for i in range(8, 16)]
    outcomes([*first, *other], task=SmallDigits(), width=2)
    assert compared == [2, 2]
