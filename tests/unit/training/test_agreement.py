"""Slot by slot, an array computes what plain PyTorch computes for each trial alone."""

import pytest
import torch

from common.search.trial import TrialState
from tests.unit.training.helpers import (
    PlainRun,
    SmallDigits,
    digits,
    job,
    outcomes,
    states_at,
    weights,
)
from worker.tasks.digits import Digits

RATES = [10.0**exponent for exponent in range(-6, 2)]  # the whole default range
DECAYS = [1e-7, 1e-5, 1e-3, 1e-2, 1e-1, 1.0]
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd"},
    "momentum": {"optimizer": "sgd", "momentum": 0.9},
    "nesterov": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    "adam": {"optimizer": "adam"},
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_parameters_agree_with_torch_optim_to_rounding(kind, dropout):
    grid = [(rate, DECAYS[(2 * i + 1) % len(DECAYS)]) for i, rate in enumerate(RATES)] + [
        (1e-2, 1.0),
        (1e-1, 1e-7),
        (1e-3, 1e-1),
    ]
    jobs = [
        job(i, 4, learning_rate=r, weight_decay=d, dropout=dropout, **OPTIMIZERS[kind])
        for i, (r, d) in enumerate(grid)
    ]
    jobs.append(
        job(len(grid), 4, learning_rate=1e4, dropout=dropout, **OPTIMIZERS[kind])
    )  # the neighbour that explodes
    reached = states_at(jobs, 3, task=Digits())
    assert jobs[-1].id not in reached
    assert len(reached) >= 7
    for one in jobs:
        if one.id in reached:
            expected = PlainRun(one, digits()).weights()
            assert (
                weights(reached[one.id]) - expected
            ).abs().max() <= 1e-8 * expected.abs().max().clamp(min=1), one.trial


def test_losses_agree_in_single_precision_where_the_rate_is_small():
    kinds = [OPTIMIZERS["nesterov"], OPTIMIZERS["adam"]]
    for kind in kinds:
        jobs = [
            job(i, 3, learning_rate=rate, dropout=0.2, weight_decay=1e-4, **kind)
            for i, rate in enumerate([1e-6, 1e-4, 1e-3, 1e-2])
        ]
        ended = outcomes(jobs, task=Digits(), dtype=torch.float32)
        for one in jobs:
            losses = torch.tensor(PlainRun(one, digits(), torch.float32).losses).view(3, -1).mean(1)
            assert torch.allclose(
                torch.tensor(ended[one.id].curves["train_loss"]), losses, atol=1e-3
            )


def test_the_default_range_holds_rates_that_explode_and_rates_that_do_not():
    ended = outcomes([job(i, 1, learning_rate=rate, momentum=0.9) for i, rate in enumerate(RATES)])
    states = [ended[f"coarse-{i:04d}"].state for i in range(len(RATES))]
    assert states[:5] == [TrialState.COMPLETED] * 5
    assert states[-1] == TrialState.EXPLODED


def test_first_loss_is_data_loss_plus_l2_term_before_the_first_update():
    one = job(0, 1, weight_decay=0.5)
    ended = outcomes([one, job(1, 1)])
    torch.manual_seed(one.trial.seed)
    model = Digits().model(one.trial.hyperparameters)
    penalty = 0.25 * sum(float(p.detach().square().sum()) for p in model.parameters() if p.ndim > 1)
    data_loss = PlainRun(one, SmallDigits().data(), epochs=1).losses[0]
    assert ended[one.id].first_loss == pytest.approx(data_loss + penalty, rel=1e-6)
