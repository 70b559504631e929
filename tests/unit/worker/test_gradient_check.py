"""Gradients against centred differences, on functions whose derivatives are known."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worker.checks.gradient import Compared, choose_places, compare, judge
from worker.checks.report import Status


def one(function: Callable[[Tensor], Tensor], at: float, gradient: float) -> Compared:
    """The comparison at a single number."""
    w = torch.tensor([at], dtype=torch.float64)
    (found,) = compare(
        lambda: float(function(w)),
        {"w": w},
        {"w": torch.tensor([gradient], dtype=torch.float64)},
        0,
        time.monotonic() + 5,
    )
    assert float(w) == at  # put back
    return found


@pytest.mark.parametrize(
    ("function", "at", "gradient", "kink"),
    [
        (lambda w: w.sin().sum(), 0.3, 0.955336489125606, False),
        (lambda w: w.relu().sum(), 3e-6, 1.0, True),  # the kink lies within the step
        (lambda w: w.relu().sum(), -4e-6, 0.0, True),
        (
            lambda w: w.abs().sum(),
            0.0,
            0.5,
            True,
        ),  # on the kink itself: whatever lies between the two slopes
        (
            lambda w: (1000 * w).tanh().sum() / 1000,
            1e-4,
            1 / torch.tensor(0.1, dtype=torch.float64).cosh().item() ** 2,
            False,
        ),  # bent
        (lambda w: 1e-9 * w.sum(), 1.0, 1e-9, False),  # smaller than rounding tells
    ],
)
def test_what_is_right_passes(
    function: Callable[[Tensor], Tensor], at: float, gradient: float, kink: bool
) -> None:
    found = one(function, at, gradient)
    assert found.error <= 1e-7 and found.kink is kink
    assert judge([found], "here", 1).status is Status.PASSED


@pytest.mark.parametrize(
    ("function", "at", "gradient"),
    [
        (lambda w: w.square().sum(), 0.5, 0.5),  # half of it
        (lambda w: w.square().sum(), 0.5, 0.0),
        (lambda w: w.square().sum(), 0.5, float("nan")),
        (lambda w: w.relu().sum(), 1e-6, 2.0),  # near a kink, and yet wrong
        (lambda w: w.abs().sum(), 0.0, 1.5),  # outside the two slopes
        (lambda w: w.square().sum(), 0.5, 1.02),
    ],
)
def test_what_is_wrong_fails(
    function: Callable[[Tensor], Tensor], at: float, gradient: float
) -> None:
    found = one(function, at, gradient)
    assert found.error > 1e-2 and not found.kink
    assert judge([found], "here", 1).status is Status.FAILED


def test_between_right_and_wrong_is_a_warning() -> None:
    assert (
        judge([one(lambda w: w.square().sum(), 0.5, 1.0 + 1e-5)], "here", 1).status
        is Status.WARNING
    )
    smooth, kinky = (
        one(lambda w: w.square().sum(), 0.5, 1.0 + 1e-5),
        one(lambda w: w.relu().sum(), 3e-6, 1.0),
    )
    assert (
        judge([smooth, kinky], "here", 1).status is Status.PASSED
    )  # up to 1e-4 is fine where there are kinks
    assert (
        judge([one(lambda w: w.square().sum(), 0.5, 1.0 + 1e-3), kinky], "here", 1).status
        is Status.WARNING
    )


def test_places_are_drawn_by_seed_and_some_have_a_gradient() -> None:
    gradient = torch.zeros(50, 40)
    gradient[7, 9] = 1.0
    assert choose_places(gradient, 3) == choose_places(gradient, 3) != choose_places(gradient, 4)
    assert 7 * 40 + 9 in choose_places(gradient, 3)


def test_the_time_is_kept_and_every_parameter_has_its_turn() -> None:
    parameters = {name: torch.zeros(5, dtype=torch.float64) for name in "abc"}
    ones = {name: torch.ones(5, dtype=torch.float64) for name in "abc"}
    found = compare(
        lambda: float(sum(p.sum() for p in parameters.values())),
        parameters,
        ones,
        0,
        time.monotonic() - 1,
    )
    assert len(found) == 1
    found = compare(
        lambda: float(sum(p.sum() for p in parameters.values())),
        parameters,
        ones,
        0,
        time.monotonic() + 5,
    )
    assert [c.parameter for c in found[:3]] == ["a", "b", "c"]
