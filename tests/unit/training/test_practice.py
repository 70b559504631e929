"""The whole practice.

An array of 16 trials by the engine agrees with 16 plain PyTorch loops to 1e-8.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.unit.training.helpers import engine, job, states_of_one_array
from tests.unit.training.landscape import K, spread
from tests.unit.training.plain import PlainLoop
from tests.unit.training.references import covers
from worker.tasks.base import Data, Part

N_EPOCHS, PER_EPOCH = 5, 10
# In epochs. At the end of the fifth the trials still run, so that their states can be compared.
BUDGET = 5.2


class Points:
    """A small perceptron and random labels.

    It settles at no rate, so that no gradient becomes a difference of almost equal numbers that an
    adaptive rule would blow up. At the highest rates torch's own rounding grows 100,000 times here,
    and far more with labels that can be learned.
    """

    def data(self):
        generator = torch.Generator().manual_seed(4)
        targets = torch.randint(5, (160,), generator=generator)
        inputs = 0.01 * torch.randn(160, 8, generator=generator)
        return Data(Part(inputs[:104], targets[:104]), Part(inputs[104:], targets[104:]), None, 5)

    def model(self, hp):
        return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5))


class Pictures:
    """Convolution (its bias would do nothing), batch normalisation, pooling."""

    def data(self):
        generator = torch.Generator().manual_seed(4)
        targets = torch.randint(4, (150,), generator=generator)
        inputs = (
            torch.randn(150, 1, 6, 6, generator=generator)
            + torch.randn(4, 1, 6, 6, generator=generator)[targets]
        )
        return Data(Part(inputs[:104], targets[:104]), Part(inputs[104:], targets[104:]), None, 4)

    def model(self, hp):
        convolution = nn.Conv2d(1, 4, 3, bias=False)
        return nn.Sequential(
            convolution,
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 4),
        )


def jobs_of(columns, **same):
    """Sixteen trials: columns (K,) of numbers, and what is the same in all of them."""
    values = {"batch_size": 10, "learning_rate": 0.1, **same}
    return [
        job(
            slot,
            BUDGET,
            **{**values, **{name: float(column[slot]) for name, column in columns.items()}},
        )
        for slot in range(K)
    ]


def trained(jobs, task):
    """Each trial's state at the end of the fifth epoch, trained in one array."""
    own = engine(task, width=len(jobs), explosion_factor=1e300)
    found = states_of_one_array(own, jobs, N_EPOCHS)
    return [found[one.id] for one in jobs]


def assert_agree(found, expected, what):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.double().isfinite().all(), (
            f"{what}: shows nothing, its reference is not finite"
        )
        difference = (found[name] - tensor).abs().max()
        assert difference <= 1e-8 * tensor.abs().max().clamp(min=1), (
            f"{what}: {name} differs by {difference}"
        )


def compare(jobs, task, n_steps=N_EPOCHS * PER_EPOCH):
    """Compare weights, running statistics, averages, losses and rates of every slot.

    Each slot is compared with its plain loop. Return the loops.
    """
    loops = [PlainLoop(one, task, n_steps) for one in jobs]
    for one, found, loop in zip(jobs, trained(jobs, task), loops, strict=True):
        hp = one.trial.hyperparameters
        assert_agree(found["model"], loop.weights(), hp)
        if "ema" in hp:
            assert_agree(found["ema"], loop.averaged(), f"average of {hp}")
        losses = torch.tensor(loop.losses, dtype=torch.float64).view(N_EPOCHS, -1).mean(1)
        assert found["history"]["curves"]["train_loss"] == pytest.approx(losses.tolist(), rel=1e-8)
        assert found["history"]["curves"]["learning_rate"] == pytest.approx(
            loop.used_rates[loop.per_epoch - 1 :: loop.per_epoch], rel=1e-8
        )
    return loops


RATES = spread(1e-6, 1e1, log=True)
DECAYS = spread(1e-7, 1.0, log=True, stride=3)
MODERATE = spread(1e-3, 0.3, log=True, stride=5)
MOMENTA = spread(
    0.0, 0.99, stride=15
)  # the least where the rate is high: beyond that rounding grows in torch as here
SQUARES = spread(0.5, 0.9999)
EPSILONS = spread(1e-10, 1e-2, log=True)
BETAS = {"beta1": spread(0.0, 0.99, stride=7), "beta2": SQUARES, "eps": EPSILONS}
RULES = {
    "momentum": ({"optimizer": "sgd"}, {"momentum": MOMENTA}),
    "nesterov": ({"optimizer": "sgd", "nesterov": True}, {"momentum": MOMENTA.clamp(min=0.1)}),
    "adagrad": ({"optimizer": "adagrad"}, {"eps": EPSILONS}),
    "rmsprop": ({"optimizer": "rmsprop"}, {"rho": SQUARES, "momentum": MOMENTA, "eps": EPSILONS}),
    "adam": ({"optimizer": "adam"}, BETAS),
    "adamw": ({"optimizer": "adamw"}, BETAS),
}


@covers(
    *("learning_rate", "weight_decay", "momentum", "rho", "eps", "beta1", "beta2"),
    optimizer={kinds["optimizer"] for kinds, _ in RULES.values()},
    nesterov=(False, True),
)
@pytest.mark.parametrize("rule", RULES)
def test_update_rules(rule):
    kinds, own = RULES[rule]
    compare(jobs_of({"learning_rate": RATES, "weight_decay": DECAYS, **own}, **kinds), Points())


WARMUPS = spread(0.0, 4.0, stride=9)
SCHEDULES = {
    "constant": {},
    "step": {"step_epochs": spread(0.1, 5.0), "drop": spread(0.05, 1.0, stride=3)},
    "exponential": {"decay_rate": spread(1e-3, 10.0, log=True)},
    "inverse": {"decay_rate": spread(1e-3, 10.0, log=True)},
    "plateau": {"plateau_epochs": spread(0.5, 4.0), "drop": spread(0.05, 0.95, stride=3)},
    "cosine": {"final_share": spread(0.0, 1.0)},
}


@covers(
    "step_epochs",
    "drop",
    "decay_rate",
    "plateau_epochs",
    "final_share",
    "warmup_epochs",
    schedule=SCHEDULES,
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule):
    columns = {
        "learning_rate": spread(1e-3, 1.0, log=True, stride=5),
        "warmup_epochs": WARMUPS,
        **SCHEDULES[schedule],
    }
    loops = compare(jobs_of(columns, schedule=schedule, momentum=0.9), Points())
    if schedule == "plateau":
        assert 3 < sum(loop.rates.dropped for loop in loops) < K


@covers("momentum_start", "momentum_epochs", "momentum", plateau_momentum_off=(False, True))
@pytest.mark.parametrize("off", [False, True])
def test_momentum_over_time(off):
    starts = spread(-1.0, 0.95, stride=3)
    columns = {
        "momentum": spread(0.1, 0.99),
        "momentum_start": starts,
        "momentum_epochs": spread(0.0, 6.0, stride=7),
    }
    columns |= {"plateau_epochs": spread(0.5, 4.0, stride=11), "learning_rate": MODERATE}
    loops = compare(jobs_of(columns, nesterov=off, plateau_momentum_off=off), Points())
    assert 3 < sum(loop.rates.dropped for loop in loops) < K


STRENGTHS = {
    "weight_decay": spread(1e-7, 1.0, log=True, stride=3),
    "l1": spread(1e-7, 0.1, log=True, stride=5),
}
SOME = {
    name: torch.where(torch.arange(K) % 4 == place, 0.0, column)
    for place, (name, column) in enumerate(STRENGTHS.items())
}
REGULARISERS = {
    "biases too": (STRENGTHS, {"decay_biases": True, "momentum": 0.9}),
    "fading": ({**STRENGTHS, "fade": spread(0.0, 1.0)}, {}),
    "decoupled and fading": ({**STRENGTHS, "fade": spread(0.0, 1.0)}, {"optimizer": "adamw"}),
    "max-norm": ({"max_norm": spread(0.0, 2.0)}, {"momentum": 0.9}),
    "clipping": (
        {"clip_norm": spread(0.0, 0.3), "clip_value": spread(0.0, 0.1, stride=3), **SOME},
        {},
    ),
}


@covers(
    "weight_decay", "l1", "max_norm", "clip_norm", "clip_value", "fade", decay_biases=(False, True)
)
@pytest.mark.parametrize("kind", REGULARISERS)
def test_regularisation(kind):
    columns, same = REGULARISERS[kind]
    compare(jobs_of({"learning_rate": MODERATE, **columns}, **same), Points())


CONVOLUTIONS = {
    "nesterov": (
        {"momentum": spread(0.1, 0.95), **STRENGTHS},
        {"nesterov": True, "schedule": "cosine"},
    ),
    "adamw": (
        {
            "ema": spread(0.0, 0.9999),
            "max_norm": spread(0.5, 2.0, stride=3),
            "weight_decay": spread(1e-3, 10.0, log=True, stride=7),
        },
        {"optimizer": "adamw", "schedule": "exponential", "warmup_epochs": 1.0},
    ),
}


@covers("ema", "max_norm", "momentum", "weight_decay", "l1")
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolution_with_batch_normalisation(kind):
    columns, same = CONVOLUTIONS[kind]
    compare(
        jobs_of({"learning_rate": spread(1e-4, 0.1, log=True, stride=5), **columns}, **same),
        Pictures(),
    )


@covers("batch_size")
def test_batch_sizes():
    for size in (8, 13, 20, 26):
        jobs = [
            job(slot, BUDGET, batch_size=size, learning_rate=float(MODERATE[slot]), momentum=0.9)
            for slot in range(4)
        ]
        compare(jobs, Points(), n_steps=N_EPOCHS * (104 // size))
