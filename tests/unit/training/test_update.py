"""A step's update in one piece equals one made parameter by parameter.

Compiled steps use the latter.
"""

import pytest
import torch

from tests.unit.training.landscape import N_DECAYED, SIZES, K, P, gradients, spread, starts, views
from worker.training.math.optimizers import RULES
from worker.training.math.update import Piece, update

LIMITS = {
    "clip_value": spread(0.0, 0.3),
    "clip_norm": spread(0.0, 1.0, stride=3),
    "max_norm": spread(0.0, 2.0, stride=5),
}
DECAYS = {
    "l2": spread(0.0, 0.1),
    "l1": spread(0.0, 0.1, stride=3),
    "shrink": spread(0.9, 1.0, stride=5),
    "ema": spread(0.0, 0.9, stride=7),
}
VALUES = {
    **{
        "learning_rate": spread(1e-3, 1.0, log=True),
        "momentum": spread(0.0, 0.9, stride=9),
        "rho": spread(0.5, 0.99),
    },
    **{
        "beta1": spread(0.0, 0.9),
        "beta2": spread(0.5, 0.99, stride=11),
        "eps": spread(1e-8, 1e-3, log=True, stride=13),
    },
}
N_STEPS = 5


def moved(name, sizes, decayed):
    """Return weights, averages (K, P) and the sums of penalties after some steps.

    The columns are split as given.
    """
    rule, flat, average = RULES[name](), starts(), starts()
    states = [torch.zeros(K, P, dtype=torch.float64) for _ in rule.states]
    planned = rule.columns(
        VALUES, torch.arange(N_STEPS, dtype=torch.float64).unsqueeze(1).expand(-1, K)
    )
    total = torch.zeros(K, dtype=torch.float64)
    for step in range(N_STEPS):
        parts = [
            tensor.split(sizes, dim=1) for tensor in (flat, gradients(flat, step), average, *states)
        ]
        pieces = [
            Piece(w, g, own, a, torch.empty_like(w), n)
            for w, g, a, *own, n in zip(*parts, decayed, strict=True)
        ]
        columns = {key: column[step] for key, column in planned.items()} | {
            key: value.unsqueeze(1) for key, value in DECAYS.items()
        }
        total += update(
            rule,
            pieces,
            views(flat),
            columns,
            {key: value.unsqueeze(1) for key, value in LIMITS.items()},
        )
    return flat, average, total


@pytest.mark.parametrize("name", RULES)
def test_pieces_together_are_the_whole(name):
    for whole, split in zip(
        moved(name, [P], [N_DECAYED]), moved(name, SIZES, [20, 24, 0]), strict=True
    ):
        assert (whole - split).abs().max() <= 1e-12
