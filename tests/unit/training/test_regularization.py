"""Penalties and limits of 16 slots with different strengths, against 16 plain loops of torch."""

import pytest
import torch
from torch import nn

from tests.unit.training.landscape import (
    N_DECAYED,
    N_STEPS,
    K,
    P,
    Plain,
    agree,
    gradients,
    spread,
    starts,
    views,
)
from tests.unit.training.references import covers
from worker.training.math import regularization

RATE = 0.3
L2 = torch.cat([torch.zeros(2), spread(1e-7, 1.0, log=True)[2:]]).double()
L1 = torch.cat([spread(1e-7, 1.0, log=True, stride=3)[:-2], torch.zeros(2)]).double()
OFF = torch.zeros(K, 1, dtype=torch.float64)


@covers("weight_decay", "l1")
@pytest.mark.parametrize(
    ("l2", "l1"), [(L2, None), (None, L1), (L2, L1)], ids=["l2", "l1", "elastic net"]
)
def test_sixteen_penalties_are_those_of_sixteen_losses(l2, l1):
    columns = [None if strength is None else strength.unsqueeze(1) for strength in (l2, l1)]
    flat, expected = starts(), []
    first = regularization.penalties([flat[:, :2], flat[:, 2:N_DECAYED]], *columns)
    for step in range(N_STEPS):
        gradient = gradients(flat, step)
        regularization.add_gradients(gradient[:, :N_DECAYED], flat[:, :N_DECAYED], *columns)
        flat -= RATE * gradient
    for slot in range(K):
        strengths = [0.0 if strength is None else float(strength[slot]) for strength in (l2, l1)]

        def penalty(model, strengths=strengths):
            weights = [model.matrix, model.filters]
            return sum(
                0.5 * strengths[0] * w.square().sum() + strengths[1] * w.abs().sum()
                for w in weights
            )

        model = Plain(starts()[slot])
        assert float(first[slot]) == pytest.approx(float(penalty(model).detach()), rel=1e-12)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for step in range(N_STEPS):
            model.backward(step, penalty)
            optimizer.step()
        expected.append(model.weights())
    agree(flat, expected)


@covers("clip_norm", "clip_value")
@pytest.mark.parametrize("kind", ["norm", "value", "both"])
def test_sixteen_gradients_are_clipped_as_sixteen_are(kind):
    norms, values = spread(1e-3, 10.0, log=True), spread(1e-3, 1.0, log=True, stride=3)
    norms[5], values[6] = 0.0, 0.0
    flat, expected = starts(), []
    for step in range(N_STEPS):
        gradient = gradients(flat, step)
        if kind != "norm":
            regularization.clip_value(gradient, values.unsqueeze(1))
        if kind != "value":
            regularization.clip_norm(gradient, norms.unsqueeze(1))
        flat -= RATE * gradient
    for slot in range(K):
        model = Plain(starts()[slot])
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for step in range(N_STEPS):
            model.backward(step)
            if kind != "norm" and values[slot]:
                nn.utils.clip_grad_value_(model.parameters(), float(values[slot]))
            if kind != "value" and norms[slot]:
                nn.utils.clip_grad_norm_(model.parameters(), float(norms[slot]))
            optimizer.step()
        expected.append(model.weights())
    agree(flat, expected)


@covers("max_norm")
def test_sixteen_models_are_limited_as_by_renorm():
    limits = spread(0.1, 5.0)
    limits[5] = 0.0
    flat, expected = starts(), []
    for step in range(N_STEPS):
        flat -= RATE * gradients(flat, step)
        regularization.max_norm(views(flat), limits.unsqueeze(1))
    for slot in range(K):
        model = Plain(starts()[slot])
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for step in range(N_STEPS):
            model.backward(step)
            optimizer.step()
            for weight in (model.matrix, model.filters) if limits[slot] else ():
                weight.data = torch.renorm(weight.data, p=2, dim=0, maxnorm=float(limits[slot]))
        expected.append(model.weights())
    agree(flat, expected)
    assert views(flat)["matrix"][0].norm(dim=1).max() <= float(limits[0])


def test_what_is_off_changes_nothing():
    flat, gradient = (
        starts(),
        torch.randn(K, P, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
    )
    before = flat.clone(), gradient.clone()
    regularization.add_gradients(gradient[:, :N_DECAYED], flat[:, :N_DECAYED], OFF, OFF)
    regularization.clip_value(gradient, OFF)
    regularization.clip_norm(gradient, OFF)
    regularization.max_norm(views(flat), OFF)
    assert torch.equal(flat, before[0])
    assert torch.equal(gradient, before[1])


def test_a_slot_without_a_penalty_adds_nothing_even_where_its_weights_are_beyond_numbers():
    flat = starts()
    flat[3] = torch.inf
    assert torch.equal(
        regularization.penalties([flat], OFF, OFF), torch.zeros(K, dtype=torch.float64)
    )


def test_one_slot_that_is_not_finite_leaves_its_neighbours_alone():
    gradient = gradients(starts(), 0)
    alone = gradient.clone()
    gradient[4] = torch.nan
    for one in (gradient, alone):
        regularization.clip_value(one, OFF + 0.01)
        regularization.clip_norm(one, OFF + 0.01)
    assert gradient[4].isnan().all()
    others = [slot for slot in range(K) if slot != 4]
    assert torch.equal(gradient[others], alone[others])
