"""Detection of explosions: a cost that is not finite or exceeds a multiple of its first value.

The multiple says something only of a first cost above zero that is not tiny. Losses that may be
negative, as of policy gradients and some adversarial nets, end by numbers that are not finite.

Source: CS231n notes, "Hyperparameter optimization": leave when the cost exceeds, say, three times
the original one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.search.stage import TINY_LOSS

WINDOW = 10  # steps whose mean cost is compared if the first loss is small
# Share of the loss of guessing. Below it, one unlucky batch may triple the loss of a good model.
SMALL_SHARE = 0.1
LOOK_EVERY = 16  # the fewest steps between two reads of their costs
# Seconds between two reads where the host waits for the device. Most epochs end sooner.
LOOK_S = 1.0


def small_loss(chance: float | None) -> float:
    """Return the limit below which a first loss is small. A small first loss says little.

    Args:
        chance: the loss of guessing, or None if there is none.
    """
    return SMALL_SHARE * chance if chance is not None else 0.0


def first_explosions(
    costs: Tensor, first: Tensor, recent: Tensor, factors: Tensor, small: float
) -> Tensor:
    """Return the first step at which each slot exploded. All is computed on the device.

    Args:
        costs: (m, K) data loss plus regularisation of the last m steps, each before its update.
        first: (K,) the slots' first cost.
        recent: (WINDOW - 1, K) the costs before those, zero where there were none.
        factors: (K,) multiple of the first cost above which a slot has exploded; infinity if only a
            cost that is not finite counts.
        small: as returned by ``small_loss``.

    Returns:
        (K,) int64: row of ``costs``, or m if the slot did not explode.
    """
    limit = torch.where(first > TINY_LOSS, factors * first, math.inf)
    means = torch.cat([recent, costs]).unfold(0, WINDOW, 1).mean(-1)  # (m, K)
    compared = torch.where(first < small, means, costs)
    bad = ~(compared <= limit) | ~torch.isfinite(costs)
    rows = torch.arange(len(costs), device=costs.device).unsqueeze(-1)
    return torch.where(bad, rows, len(costs)).amin(0)


def explain_explosion(
    window: list[float], first: float, factor: float, step: int, per_epoch: int, small: float
) -> str:
    """Return the sentence about an explosion for the record.

    Args:
        window: the last WINDOW costs, ending with the one above the limit.
        first: the first cost.
        factor: multiple of the first cost that is the limit.
        step: counted from 0 over the whole trial.
        per_epoch: steps in an epoch.
        small: as returned by ``small_loss``.
    """
    where = f"at step {step % per_epoch + 1} of epoch {step // per_epoch + 1}"
    if not math.isfinite(window[-1]):
        return f"loss is not finite ({window[-1]}) {where}"
    if first < small:
        return (
            f"mean of {WINDOW} losses {sum(window) / len(window):.4g} above {factor:g} x its "
            f"first loss {first:.4g} {where}"
        )
    return f"loss {window[-1]:.4g} above {factor:g} x its first loss {first:.4g} {where}"
