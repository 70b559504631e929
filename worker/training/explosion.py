"""When to leave a trial: its cost is not finite, or has passed a multiple of its first value.

Source: CS231n notes, "Hyperparameter optimization": leave when the cost exceeds, say, three times the original one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOW = 10  # steps whose mean is compared where the first loss says little
SMALL_SHARE = 0.1  # of chance: below it, one unlucky batch may triple the loss of a good model
LOOK_EVERY = 8  # steps between the host's looks at the device


def first_explosions(costs: Tensor, first: Tensor, recent: Tensor, factor: float, n_classes: int) -> Tensor:
    """Where each slot exploded, judged on the device.

    Args:
        costs: (m, K) data loss plus L2 term of the last m steps, each before its update.
        first: (K,) the slots' first cost.
        recent: (WINDOW - 1, K) the costs before those, zero where there were none.
        factor: of the first cost that is too much.
        n_classes: chance is a loss of ln(n_classes).

    Returns:
        (K,) int64: row of ``costs``, or m where none exploded.
    """
    limit = factor * first
    small = first < SMALL_SHARE * math.log(n_classes)
    means = torch.cat([recent, costs]).unfold(0, WINDOW, 1).mean(-1)  # (m, K)
    compared = torch.where(small, means, costs)
    bad = ~(compared <= limit) | ~torch.isfinite(costs)
    rows = torch.arange(len(costs), device=costs.device).unsqueeze(-1)
    return torch.where(bad, rows, len(costs)).amin(0)


def explained(window: list[float], first: float, factor: float, step: int, per_epoch: int, n_classes: int) -> str:
    """The sentence for the record.

    Args:
        window: the last WINDOW costs, ending with the one that was too much.
        first: the first cost.
        factor: of it that is too much.
        step: counted from 0 over the whole trial.
        per_epoch: steps in an epoch.
        n_classes: chance is a loss of ln(n_classes).
    """
    where = f"at step {step % per_epoch + 1} of epoch {step // per_epoch + 1}"
    if not math.isfinite(window[-1]):
        return f"loss is not finite ({window[-1]}) {where}"
    if first < SMALL_SHARE * math.log(n_classes):
        return f"mean of {WINDOW} losses {sum(window) / len(window):.4g} above {factor:g} x its first loss {first:.4g} {where}"
    return f"loss {window[-1]:.4g} above {factor:g} x its first loss {first:.4g} {where}"
