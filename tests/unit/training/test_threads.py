from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from worker.training.compute.width import LONG_STEP_S, Threads
from worker.training.model.structure import Structure

STRUCTURE = Structure("any", "any")


@pytest.fixture(autouse=True)
def one_thread_afterwards() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("alone_s", "together_s", "chosen"),
    [(LONG_STEP_S / 2, 0.0, 1), (0.1, 0.05, 4), (0.1, 0.09, 1), (0.1, 1.0, 1)],
)
def test_more_threads_only_where_they_pay(alone_s: float, together_s: float, chosen: int) -> None:
    asked: list[int] = []

    def step_s() -> float:
        asked.append(torch.get_num_threads())
        return alone_s if asked[-1] == 1 else together_s

    threads = Threads(4)
    assert [threads.choose(STRUCTURE, step_s) for _ in range(2)] == [chosen, chosen]
    assert asked in ([1], [1, 4])  # measured once


def test_a_step_that_raises_and_a_single_core_take_one_thread() -> None:
    def raises() -> float:
        raise RuntimeError("too wide")

    assert Threads(4).choose(STRUCTURE, raises) == 1
    assert Threads(1).choose(STRUCTURE, raises) == 1
