"""Each update rule: 16 slots with different hyperparameters against 16 references."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from common.search.hyperparameters import UPDATES
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
)
from tests.unit.training.references import covers
from worker.training.math.optimizers import RULES, SGD, Adagrad, Adam, AdamW, RMSprop, UpdateRule

RATES = spread(1e-6, 1e1, log=True)
DECAYS = spread(1e-7, 1.0, log=True, stride=3)
MOMENTA = spread(0.0, 0.99, stride=15)
EPSILONS = spread(1e-10, 1e-2, log=True)
BETAS = {"beta1": spread(0.0, 0.99, stride=11), "beta2": spread(0.5, 0.9999)}
RHOS = spread(0.5, 0.9999)
Make = Callable[..., torch.optim.Optimizer]


def trained(rule: UpdateRule, values: dict[str, Tensor]) -> Tensor:
    """(K, P) after N_STEPS, as an array does it."""
    flat, scratch = starts(), torch.empty(K, P, dtype=torch.float64)
    states = [torch.zeros_like(flat) for _ in rule.states]
    columns = rule.columns(
        values, torch.arange(N_STEPS, dtype=torch.float64).unsqueeze(1).expand(-1, K)
    )
    decay = values["weight_decay"].unsqueeze(1)
    for step in range(N_STEPS):
        gradient = gradients(flat, step)
        if rule.decoupled:
            rates = values["learning_rate"].expand(N_STEPS, K)[step].unsqueeze(1)
            flat[:, :N_DECAYED] *= 1 - rates * decay
        else:
            gradient[:, :N_DECAYED] += decay * flat[:, :N_DECAYED]
        rule.apply(
            flat,
            gradient,
            states,
            {name: column[step] for name, column in columns.items()},
            scratch,
        )
    return flat


def by_torch(make: Make, values: dict[str, Tensor], slot: int, **options: Any) -> Tensor:
    of_slot = {name: float(value[slot]) for name, value in values.items()}
    model = Plain(starts()[slot])
    optimizer = make(model.groups(of_slot.pop("weight_decay")), **translated(of_slot), **options)
    for step in range(N_STEPS):
        model.backward(step)
        optimizer.step()
    return model.weights()


def translated(values: dict[str, float]) -> dict[str, Any]:
    """Our names as torch's."""
    names = {"learning_rate": "lr", "rho": "alpha"}
    plain = {
        names.get(name, name): value
        for name, value in values.items()
        if not name.startswith("beta")
    }
    return plain | ({"betas": (values["beta1"], values["beta2"])} if "beta1" in values else {})


CASES = {
    "sgd": (SGD(), torch.optim.SGD, {"momentum": MOMENTA}, {}),
    "nesterov": (
        SGD(nesterov=True),
        torch.optim.SGD,
        {"momentum": MOMENTA.clamp(min=0.1)},
        {"nesterov": True},
    ),
    "adagrad": (Adagrad(), torch.optim.Adagrad, {"eps": EPSILONS}, {}),
    "rmsprop": (
        RMSprop(),
        torch.optim.RMSprop,
        {"momentum": MOMENTA, "rho": RHOS, "eps": EPSILONS},
        {},
    ),
    "adam": (Adam(), torch.optim.Adam, {**BETAS, "eps": EPSILONS}, {}),
    "adamw": (AdamW(), torch.optim.AdamW, {**BETAS, "eps": EPSILONS}, {}),
}


@covers(
    "learning_rate",
    "weight_decay",
    "momentum",
    "rho",
    "eps",
    "beta1",
    "beta2",
    nesterov=(False, True),
)
@pytest.mark.parametrize("case", CASES)
def test_sixteen_slots_move_as_sixteen_optimizers(case):
    rule, make, own, options = CASES[case]
    values = {"learning_rate": RATES, "weight_decay": DECAYS, **own}
    agree(trained(rule, values), [by_torch(make, values, slot, **options) for slot in range(K)])


@pytest.mark.parametrize("name", RULES)
def test_the_defaults_are_those_of_the_reference(name):
    values = {
        "learning_rate": torch.full((K,), 0.05, dtype=torch.float64),
        "weight_decay": torch.zeros(K, dtype=torch.float64),
    }
    own = {
        key: torch.full((K,), value, dtype=torch.float64)
        for key, value in RULES[name].defaults.items()
    }
    make = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
    }
    expected = by_torch({**make, "adamw": torch.optim.AdamW}[name], values, 0)
    agree(trained(RULES[name](), {**values, **own})[:1], [expected])


def test_a_momentum_that_rises_from_zero_remembers_the_first_gradient():
    """torch skips its buffer while the momentum is exactly 0.

    With the least momentum above 0 it follows the same formula.
    """
    momenta = torch.linspace(0, 0.9, N_STEPS, dtype=torch.float64)
    rates = torch.full((K,), 0.1, dtype=torch.float64)
    values = {
        "learning_rate": rates,
        "weight_decay": DECAYS,
        "momentum": momenta.unsqueeze(1).expand(-1, K),
    }
    expected = []
    for slot in range(K):
        model = Plain(starts()[slot])
        optimizer = torch.optim.SGD(model.groups(float(DECAYS[slot])), lr=0.1, momentum=0.5)
        for step in range(N_STEPS):
            for group in optimizer.param_groups:
                group["momentum"] = max(float(momenta[step]), 1e-300)
            model.backward(step)
            optimizer.step()
        expected.append(model.weights())
    agree(trained(SGD(), values), expected)


def test_the_rules_are_those_that_the_search_file_names():
    assert set(RULES) == set(UPDATES["optimizer"].options)
    for name, rule in RULES.items():
        assert rule.name == name
        assert set(rule.defaults) <= set(UPDATES)
