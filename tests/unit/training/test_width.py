"""How many trials train together: by their size until measured, then as measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn

from worker.training.compute.width import CACHE_BYTES, CPU_DEFAULT, GPU_DEFAULT, GPU_WIDTHS, Widths
from worker.training.model.structure import Model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LONG = 10**6  # steps that make measuring worth it


def model(n_parameters: int) -> Model:
    return cast(
        Model,
        SimpleNamespace(
            structure=n_parameters,
            module=nn.Linear(2, 2),
            layout=SimpleNamespace(size=n_parameters),
        ),
    )


@pytest.mark.parametrize(
    ("n_parameters", "width"),
    [(9_000, CPU_DEFAULT), (85_000, 12), (270_000, 4), (CACHE_BYTES // 4, 1), (10**9, 1)],
)
def test_on_a_cpu_an_array_holds_what_its_cache_does(n_parameters: int, width: int) -> None:
    assert Widths(CPU, None).guess(model(n_parameters)) == width
    assert Widths(CPU, 7).guess(model(n_parameters)) == 7, "what a user asks for counts"
    assert Widths(GPU, None).guess(model(n_parameters)) == GPU_DEFAULT


def test_a_width_is_measured_once_where_as_many_wait_as_train_together() -> None:
    widths, own, tried = Widths(CPU, None), model(270_000), list[int]()

    def measure(width: int) -> float:
        tried.append(width)
        return 1 / width

    assert widths.choose(own, 2, LONG, measure) == 2
    assert (
        widths.choose(own, 4, LONG, measure) == 4
    )  # so few as before said nothing of as many as these
    assert tried == [1, 2, 2, 4]
    assert widths.choose(own, 4, LONG, measure) == widths.guess(own) == 4
    assert tried == [1, 2, 2, 4]


def test_a_narrower_array_that_was_faster_stays() -> None:
    widths, own = Widths(CPU, None), model(9_000)
    assert widths.choose(own, 32, LONG, lambda width: abs(width - 8) + 1.0) == 8
    assert widths.guess(own) == widths.to_claim(own) == 8


@pytest.mark.parametrize(
    ("n_parameters", "gain", "width"),
    [(9_000, 0.95, 64), (85_000, 0.95, 8), (85_000, 0.85, 64)],
    ids=["in the cache", "beyond it for little", "beyond it for much"],
)
def test_an_array_that_leaves_the_cache_must_gain_more(
    n_parameters: int, gain: float, width: int
) -> None:
    widths, own = Widths(CPU, None), model(n_parameters)
    assert widths.choose(own, 64, LONG, lambda n: gain if n == 64 else 8 / min(n, 8)) == width


def test_on_a_gpu_claims_climb_until_a_wider_array_is_not_faster() -> None:
    widths, own, claimed, tried = Widths(GPU, None), model(9_000), list[int](), list[int]()

    def measure(width: int) -> float:
        tried.append(width)
        return 1 / min(width, 2048)

    assert widths.guess(own) == GPU_DEFAULT
    for _ in range(6):
        claimed.append(widths.to_claim(own))
        assert widths.choose(own, claimed[-1], LONG, measure) <= claimed[-1]
    assert claimed == [512, 1024, 2048, 4096, 2048, 2048]
    assert tried == [1, 16, 64, 256, 512, 512, 1024, 1024, 2048, 2048, 4096], "each step once"
    assert widths.guess(own) == 2048


def test_the_widest_array_that_is_tried_settles_the_search() -> None:
    widths, own = Widths(GPU, None), model(9_000)
    assert widths.choose(own, 9_999, LONG, lambda width: 1 / width) == GPU_WIDTHS[-1]
    assert widths.to_claim(own) == widths.guess(own) == GPU_WIDTHS[-1]


def test_memory_that_ran_out_ends_the_climb() -> None:
    widths, own = Widths(GPU, None), model(9_000)
    assert widths.choose(own, 512, LONG, lambda width: 1 / width) == 512
    assert widths.to_claim(own) == 1024
    widths.limit(own.structure, 256)
    assert widths.to_claim(own) == widths.guess(own) == 256

    def measure(width: int) -> float:
        if width > 1024:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1 / width

    short, other = Widths(GPU, None), model(8_000)
    assert short.choose(other, 4096, LONG, measure) == short.to_claim(other) == 1024
