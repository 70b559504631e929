"""Each schedule: 16 slots with different hyperparameters against 16 torch schedulers.

The torch schedulers are stepped once a step.
"""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import lr_scheduler as torch_schedulers

from common.search.hyperparameters import SCHEDULES
from tests.unit.training.landscape import N_STEPS, PER_EPOCH, K, spread
from tests.unit.training.references import covers
from worker.training.math.schedules import (
    KINDS,
    Plateau,
    fade_factors,
    momentum_values,
    rate_factors,
)

STEPS = torch.arange(N_STEPS).unsqueeze(1).expand(-1, K)  # (n, K)
TOTALS = torch.full((K,), N_STEPS)
NO_DROPS = torch.zeros(K, dtype=torch.int64)
OWN = {
    "constant": {},
    "step": {"step_epochs": spread(0.1, 5.0), "drop": spread(0.05, 1.0, stride=3)},
    "exponential": {"decay_rate": spread(1e-3, 10.0, log=True)},
    "inverse": {"decay_rate": spread(1e-3, 10.0, log=True)},
    "cosine": {"final_share": spread(0.0, 1.0)},
}
WARMUPS = torch.tensor(
    [0.0, 0.05, 0.1, 0.2, 0.5, 0.7, 0.9, 1.0, 1.3, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5],
    dtype=torch.float64,
)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def by_torch(make: Callable[[torch.optim.Optimizer], object]) -> Tensor:
    """(n,) rates from 1 on."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(N_STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


def scheduler_of(kind: str, own: dict[str, float]) -> Callable[[torch.optim.Optimizer], object]:
    return {
        "constant": lambda o: torch_schedulers.ConstantLR(o, factor=1.0),
        "step": lambda o: torch_schedulers.LambdaLR(
            o, lambda step: own["drop"] ** n_drops(step, own["step_epochs"])
        ),
        "exponential": lambda o: torch_schedulers.ExponentialLR(
            o, gamma=math.exp(-own["decay_rate"] / PER_EPOCH)
        ),
        "inverse": lambda o: torch_schedulers.LambdaLR(
            o, lambda step: 1 / (1 + own["decay_rate"] * step / PER_EPOCH)
        ),
        "cosine": lambda o: torch_schedulers.CosineAnnealingLR(
            o, T_max=N_STEPS, eta_min=own["final_share"]
        ),
    }[kind]


def n_drops(step: int, step_epochs: float) -> int:
    """Drops before this step, counted one by one."""
    n = 0
    while (n + 1) * step_epochs * PER_EPOCH <= step + 1e-9:
        n += 1
    return n


def warmed(warmup_epochs: float) -> Tensor:
    """(n,) by torch, from whole numbers of steps on; else written out."""
    length = warmup_epochs * PER_EPOCH
    if length >= 2 and length == round(length):
        return by_torch(
            lambda o: torch_schedulers.LinearLR(
                o, start_factor=1 / length, total_iters=round(length) - 1
            )
        )
    return torch.tensor(
        [min(1.0, (step + 1) / length) if length else 1.0 for step in range(N_STEPS)],
        dtype=torch.float64,
    )


@covers("step_epochs", "drop", "decay_rate", "final_share", "warmup_epochs")
@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("warm", [False, True])
def test_sixteen_slots_have_the_rates_of_sixteen_schedulers(kind, warm):
    warmups = WARMUPS if warm else torch.zeros(K, dtype=torch.float64)
    found = rate_factors(
        kind, {"warmup_epochs": warmups, **OWN[kind]}, STEPS, PER_EPOCH, TOTALS, NO_DROPS
    )
    for slot in range(K):
        own = {name: float(value[slot]) for name, value in OWN[kind].items()}
        expected = by_torch(scheduler_of(kind, own)) * warmed(float(warmups[slot]))
        assert torch.allclose(found[:, slot], expected, rtol=1e-8, atol=1e-12), (slot, own)


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_steps_of_whole_epochs_drop_where_steplr_drops(every):
    values = {"warmup_epochs": one(0.0), "step_epochs": one(every), "drop": one(0.5)}
    found = rate_factors("step", values, STEPS[:, :1], PER_EPOCH, TOTALS[:1], NO_DROPS[:1])
    expected = by_torch(
        lambda o: torch_schedulers.StepLR(o, step_size=every * PER_EPOCH, gamma=0.5)
    )
    assert torch.allclose(found[:, 0], expected, rtol=1e-12)


def test_slots_at_different_steps_have_their_own_times():
    values = {"warmup_epochs": torch.zeros(K).double(), **OWN["cosine"]}
    together = rate_factors("cosine", values, STEPS, PER_EPOCH, TOTALS, NO_DROPS)
    apart = rate_factors("cosine", values, STEPS[:4] + torch.arange(K), PER_EPOCH, TOTALS, NO_DROPS)
    for slot in range(K):
        assert torch.equal(apart[:, slot], together[slot : slot + 4, slot])


@covers("plateau_epochs", "drop")
def test_sixteen_slots_drop_where_reduce_on_plateau_drops():
    losses = (
        torch.rand(16, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        .cumsum(1)
        .div(torch.arange(1, 41))
        .tolist()
    )
    drops = spread(0.05, 0.99).tolist()  # torch refuses 1
    n_due = 0
    for slot in range(K):
        patience = 0.5 + 0.5 * slot  # 0.5 to 8 epochs
        memory, optimizer = Plateau(), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        reference = torch_schedulers.ReduceLROnPlateau(
            optimizer, factor=drops[slot], patience=-int(-patience // 1) - 1, threshold=0, eps=0
        )
        for epoch, loss in enumerate(losses[slot], 1):
            due = memory.note(epoch, loss, patience)
            reference.step(loss)
            values = {"warmup_epochs": one(0.0), "drop": one(drops[slot])}
            factor = rate_factors(
                "plateau",
                values,
                STEPS[:3, :1],
                PER_EPOCH,
                TOTALS[:1],
                torch.tensor([memory.drops]),
            )
            assert (
                factor.tolist() == [[pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-8)]] * 3
            ), (slot, epoch)
            n_due += due
    assert n_due > K


@given(
    losses=st.lists(st.sampled_from([0.1, 0.2, 0.3, float("nan")]), min_size=1, max_size=20),
    cut=st.integers(0, 20),
)
def test_a_plateau_goes_on_where_its_state_was_saved(losses, cut):
    whole, first = Plateau(), Plateau()
    second = Plateau()
    for epoch, loss in enumerate(losses[:cut], 1):
        assert whole.note(epoch, loss, 2) == first.note(epoch, loss, 2)
    second.restore(first.state())
    for epoch, loss in enumerate(losses[cut:], cut + 1):
        assert whole.note(epoch, loss, 2) == second.note(epoch, loss, 2)
    assert whole == second


@covers("momentum_start", "momentum_epochs", plateau_momentum_off=(False, True))
def test_momentum_rises_and_is_turned_off():
    ends, starts = spread(0.0, 0.99), spread(-1.0, 0.95, stride=5)
    lengths = spread(0.0, 6.0, stride=9)
    off = torch.tensor([slot % 4 == 3 for slot in range(K)])
    values = {"momentum": ends, "momentum_start": starts, "momentum_epochs": lengths}
    found = momentum_values(values, STEPS, PER_EPOCH, off)
    for slot in range(K):
        end, start, length = (
            float(ends[slot]),
            float(starts[slot]),
            float(lengths[slot]) * PER_EPOCH,
        )
        for step in range(N_STEPS):
            expected = end if start < 0 or step >= length else start + (end - start) * step / length
            assert float(found[step, slot]) == pytest.approx(
                0.0 if off[slot] else expected, abs=1e-12
            )


@covers("fade")
def test_fading_is_linear_over_the_last_share_of_each_budget():
    shares = spread(0.0, 1.0)
    totals = torch.tensor([N_STEPS + slot for slot in range(K)])
    found = fade_factors({"fade": shares}, STEPS, totals)
    for slot in range(K):
        total, length = int(totals[slot]), float(shares[slot]) * int(totals[slot])
        expected = [
            1.0 if step <= total - length else (total - step) / length for step in range(N_STEPS)
        ]
        assert torch.allclose(
            found[:, slot], torch.tensor(expected, dtype=torch.float64), atol=1e-12
        )


def test_the_schedules_are_those_that_the_search_file_names():
    assert set(KINDS) == set(SCHEDULES["schedule"].options)
    with pytest.raises(ValueError, match="sawtooth"):
        rate_factors("sawtooth", {}, STEPS, PER_EPOCH, TOTALS, NO_DROPS)
