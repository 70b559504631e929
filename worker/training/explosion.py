"""When to leave a trial: its cost is not finite, or has passed a multiple of its first value.

Source: CS231n notes, "Hyperparameter optimization": leave when the cost exceeds, say, three times the original one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOW = 10  # steps whose mean is compared where the first loss says little
SMALL_SHARE = 0.1  # of the loss of guessing: below it, one unlucky batch may triple the loss of a good model
LOOK_EVERY = 16  # steps between the host's looks at the device


def small_loss(chance: float | None) -> float:
    """Below it a first loss says little; ``chance`` is the loss of guessing, None where there is no such thing."""
    return SMALL_SHARE * chance if chance is not None else 0.0


def first_explosions(costs: Tensor, first: Tensor, recent: Tensor, factor: float, small: float) -> Tensor:
    """Where each slot exploded, judged on the device.

    Args:
        costs: (m, K) data loss plus regularisation of the last m steps, each before its update.
        first: (K,) the slots' first cost.
        recent: (WINDOW - 1, K) the costs before those, zero where there were none.
        factor: of the first cost that is too much.
        small: of ``small_loss``.

    Returns:
        (K,) int64: row of ``costs``, or m where none exploded.
    """
    limit = first + (factor - 1) * first.abs()  # factor times the first; a loss of the task's own may be negative
    means = torch.cat([recent, costs]).unfold(0, WINDOW, 1).mean(-1)  # (m, K)
    compared = torch.where(first < small, means, costs)
    bad = ~(compared <= limit) | ~torch.isfinite(costs)
    rows = torch.arange(len(costs), device=costs.device).unsqueeze(-1)
    return torch.where(bad, rows, len(costs)).amin(0)


def explained(window: list[float], first: float, factor: float, step: int, per_epoch: int, small: float) -> str:
    """The sentence for the record.

    Args:
        window: the last WINDOW costs, ending with the one that was too much.
        first: the first cost.
        factor: of it that is too much.
        step: counted from 0 over the whole trial.
        per_epoch: steps in an epoch.
        small: of ``small_loss``.
    """
    where = f"at step {step % per_epoch + 1} of epoch {step // per_epoch + 1}"
    if not math.isfinite(window[-1]):
        return f"loss is not finite ({window[-1]}) {where}"
    if first < small:
        return f"mean of {WINDOW} losses {sum(window) / len(window):.4g} above {factor:g} x its first loss {first:.4g} {where}"
    return f"loss {window[-1]:.4g} above {factor:g} x its first loss {first:.4g} {where}"
