"""Losses of stacked outputs against torch's own, with another number in every slot."""

import math

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from common.errors import TaskError
from tests.unit.training.references import covers
from worker.training.math.losses import (
    OBJECTIVES,
    CrossEntropy,
    Hinge,
    Own,
    average,
    cross_entropy,
)

K, B, C = 16, 12, 5
SPREAD = torch.linspace(0, 1, K + 1, dtype=torch.float64)[:K].unsqueeze(-1)  # (K, 1), from 0 on


@pytest.fixture
def outputs():
    return torch.randn(
        K, B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ) * torch.linspace(0.1, 30, K).view(K, 1, 1)


def targets(shared):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(C, (B,) if shared else (K, B), generator=generator)


def references(outputs, targets, loss_of):
    """Loss and gradient of each slot by torch.autograd."""
    means, gradients = [], []
    for slot, one in enumerate(outputs):
        leaf = one.clone().requires_grad_()
        loss = loss_of(slot)(leaf, targets if targets.ndim == 1 else targets[slot])
        gradients += torch.autograd.grad(loss, leaf)
        means.append(loss.detach())
    return torch.stack(means), torch.stack(gradients)


def close(found, expected):
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@covers("label_smoothing", loss="cross_entropy")
@pytest.mark.parametrize("shared", [True, False])
def test_cross_entropy_with_a_smoothing_of_each_slot(outputs, shared):
    y = targets(shared)
    found = CrossEntropy()(outputs, y, {"label_smoothing": SPREAD})
    mean, gradient = references(
        outputs, y, lambda slot: nn.CrossEntropyLoss(label_smoothing=float(SPREAD[slot]))
    )
    close(found.mean, mean)
    close(found.gradient, gradient)
    assert torch.equal(found.correct, (outputs.argmax(-1) == y).sum(-1))


def test_a_slot_without_smoothing_is_untouched_by_neighbours_that_smooth(outputs):
    plain, smoothed = (
        cross_entropy(outputs, targets(True)),
        CrossEntropy()(outputs, targets(True), {"label_smoothing": SPREAD}),
    )
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain[:3], smoothed[:3], strict=True))
    outputs[0, :, 4] = -math.inf  # a class that the model rules out
    found = CrossEntropy()(outputs, targets(True).clamp(max=3), {"label_smoothing": SPREAD})
    assert found.mean[0].isfinite() and found.gradient[0].isfinite().all()


@covers("margin", loss="hinge")
@pytest.mark.parametrize("shared", [True, False])
def test_hinge_is_that_of_torch_times_the_number_of_classes(outputs, shared):
    y, margins = targets(shared), 10 * SPREAD
    found = Hinge()(outputs, y, {"margin": margins})
    mean, gradient = references(
        outputs,
        y,
        lambda slot: (
            lambda s, t: C * nn.functional.multi_margin_loss(s, t, margin=float(margins[slot]))
        ),
    )
    close(found.mean, mean)
    close(found.gradient, gradient)


def test_evaluation_sums_the_losses_of_all_examples(outputs):
    y = targets(True)
    values = {"label_smoothing": SPREAD, "margin": SPREAD}
    total, correct, _ = CrossEntropy().evaluate(outputs, y, values)
    close(total, references(outputs, y, lambda slot: nn.CrossEntropyLoss(reduction="sum"))[0])
    assert torch.equal(correct, (outputs.argmax(-1) == y).sum(-1))
    total, *_ = Hinge().evaluate(outputs, y, values)
    close(total, B * Hinge()(outputs, y, values).mean)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_chance_is_the_loss_of_equal_outputs(kind):
    objective, margin = OBJECTIVES[kind](C), 0.5
    columns = {"margin": torch.full((1, 1), margin), "label_smoothing": torch.full((1, 1), 0.3)}
    loss = objective(torch.zeros(1, B, C), targets(True), columns).mean
    assert float(loss) == pytest.approx(objective.chance({"margin": margin}))
    assert OBJECTIVES[kind]().chance({}) is None


def focal(outputs, targets, hp):
    """Cross-entropy that looks away from what is easy."""
    log_p = outputs.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return -(hp["sign"] * (1 - log_p.exp()) ** hp["gamma"] * log_p).mean()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("width", [1, K])
def test_a_loss_of_ones_own_with_a_number_of_each_slot(outputs, shared, width):
    outputs, y, gammas = outputs[:width], targets(shared)[..., :B], 3 * SPREAD[:width]
    y = y if shared else y[:width]
    objective = Own(focal, {"sign": 1})
    found = objective(outputs, y, {"gamma": gammas})
    mean, gradient = references(
        outputs, y, lambda slot: lambda s, t: focal(s, t, {"gamma": float(gammas[slot]), "sign": 1})
    )
    close(found.mean, mean)
    close(found.gradient, gradient)
    total, correct, _ = objective.evaluate(outputs, y, {"gamma": gammas})
    close(total, B * mean)
    assert torch.equal(correct, (outputs.argmax(-1) == y).sum(-1))


def test_a_loss_of_ones_own_without_classes():
    def squared(outputs, targets, hp):
        return (outputs - targets).square().mean()

    outputs, y = (
        torch.randn(K, K, K),
        torch.randn(K, K),
    )  # as many slots as examples and numbers: nothing may be guessed from sizes
    found = Own(squared, classes=False, target_dims=2)(outputs, y, {})
    assert torch.allclose(found.mean, (outputs - y).square().mean((1, 2)))
    assert torch.allclose(found.gradient, 2 * (outputs - y) / K**2)
    assert found.correct.tolist() == [0] * K


@pytest.mark.parametrize("width", [1, 2])
def test_a_loss_of_the_wrong_shape_is_told(width):
    with pytest.raises(TaskError, match="as a 0-d tensor is needed"):
        Own(lambda outputs, targets, hp: outputs.sum(-1))(
            torch.randn(width, B, C), targets(True), {}
        )


def test_averaged_passes_are_the_mean_of_their_probabilities():
    passes = torch.randn(7, K, B, C, dtype=torch.float64)
    assert torch.allclose(average(passes).softmax(-1), passes.softmax(-1).mean(0))


@pytest.mark.parametrize(
    "objective",
    [CrossEntropy(), Hinge(), Own(focal, {"sign": 1})],
    ids=lambda objective: objective.name,
)
def test_losses_can_be_traced(outputs, objective):
    def both(outputs, y, column):
        values = {"label_smoothing": column, "margin": column, "gamma": column}
        losses, sums = objective(outputs, y, values), objective.evaluate(outputs, y, values)
        return [*losses[:3], *sums[:2]]

    y, small = targets(True), outputs / 30  # at a probability of 1 the focal loss has no gradient
    traced = make_fx(both)(outputs, y, SPREAD)
    for found, expected in zip(
        traced(small, y, SPREAD / 2), both(small, y, SPREAD / 2), strict=True
    ):
        close(found.double(), expected.double())
