"""Inputs that are numbers of an embedding's rows are in range before a device sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.search.trial import TrialState
from tests.unit.training.helpers import SmallDigits, job, outcomes
from worker.tasks.base import Data, Part

WORDS = 20


class Reader(nn.Module):
    """Looks words up and adds what it finds."""

    def __init__(self, choose: Callable[[Any], Tensor], rows: int) -> None:
        super().__init__()
        self.choose = choose
        self.words, self.out = nn.Embedding(rows, 4), nn.Linear(4, 10)

    def forward(self, inputs: Any) -> Tensor:
        return self.out(self.words(self.choose(inputs)).flatten(1, -2).mean(1))


def text(
    choose: Callable[[Any], Tensor],
    put: Callable[[Tensor], Any] = lambda words: words,
    **wrong: tuple[int, int, int],
) -> Any:
    """A task of texts of six words. ``wrong`` has a number at some example and place of a part."""

    class Text(SmallDigits):
        def data(self) -> Data:
            parts = {}
            generator = torch.Generator().manual_seed(1)
            for name in ("train", "val", "test"):
                words = torch.randint(WORDS, (200, 6), generator=generator)
                if name in wrong:
                    example, place, number = wrong[name]
                    words[example, place] = number
                parts[name] = Part(put(words), words.sum(1) % 10)
            return Data(parts["train"], parts["val"], parts["test"], 10)

        def model(self, hp: Any) -> nn.Module:
            return Reader(choose, hp.get("rows", WORDS))

    return Text()


def whole(words: Tensor) -> Tensor:
    return words


def third(words: Tensor) -> Tensor:
    return words[:, 2:3]


def clamped(words: Tensor) -> Tensor:
    return words.clamp(0, WORDS - 1)


def named(inputs: dict[str, Tensor]) -> Tensor:
    return inputs["words"]


def in_dict(words: Tensor) -> dict[str, Tensor]:
    return {"more": torch.zeros(len(words), 1), "words": words}


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (
            text(whole, train=(0, 1, WORDS)),
            "the embedding words gets numbers from 0 to 20, and has",
        ),
        (
            text(whole, train=(150, 1, -1)),
            "train inputs run from -1 to 19, and the embedding words",
        ),
        (text(whole, val=(199, 5, 99)), "val inputs run from 0 to 99, and the embedding words has"),
        (
            text(whole, test=(0, 0, WORDS)),
            "has 20 rows: they must lie in 0 to 19; give it more, or",
        ),
        (text(third, val=(70, 2, WORDS)), "val inputs run from 0 to 20"),
        (text(named, in_dict, val=(70, 2, WORDS)), "val inputs run from 0 to 20"),
    ],
)
def test_a_number_without_a_row_is_told_before_anything_is_trained(task: Any, reason: str) -> None:
    ended = outcomes([job(0, 1), job(1, 1)], task=task)
    assert {one.state for one in ended.values()} == {TrialState.FAILED}
    assert all(reason in str(one.reason) for one in ended.values()), ended


@pytest.mark.parametrize(
    "task",
    [
        text(whole),
        text(third, val=(70, 3, WORDS)),  # which no embedding takes
        text(clamped, val=(70, 2, WORDS)),
        text(named, in_dict),
    ],
)
def test_numbers_that_have_rows_and_numbers_that_no_embedding_takes_are_trained_on(
    task: Any,
) -> None:
    ended = outcomes([job(0, 1), job(1, 1)], task=task)
    assert {one.state for one in ended.values()} == {TrialState.COMPLETED}, ended


def test_a_smaller_embedding_fails_its_own_trial() -> None:
    ended = outcomes([job(0, 1, rows=WORDS), job(1, 1, rows=5)], task=text(whole))
    assert [str(one.state) for _, one in sorted(ended.items())] == ["completed", "failed"]
    assert "and has 5 rows" in str(ended["coarse-0001"].reason)
