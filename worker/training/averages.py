"""The running average of the parameters (EMA), a row a slot, as ``torch.optim.swa_utils`` keeps it.

The average starts at the parameters after a slot's first update (not at the initial ones, and without a correction for the start), and
then moves towards the present ones after each update: average = decay x average + (1 - decay) x parameters. A slot whose decay is 0 has
exactly the present parameters as its average. Buffers are not averaged: an averaged model runs with the present running statistics.
"""

from __future__ import annotations

from torch import Tensor


def decays(decay: Tensor, steps: Tensor) -> Tensor:
    """The decay of each step: 0 at a slot's first, so that the average starts there.

    Args:
        decay: (K,) ``ema``, in [0, 1).
        steps: (n, K) the slots' step numbers, from 0.

    Returns:
        (n, K), for ``update`` one row a step, as a column.
    """
    return decay * (steps > 0)


def update(average: Tensor, flat: Tensor, decay: Tensor) -> None:
    """Moves (K, P) averages towards (K, P) parameters in place; decay (K, 1), 0 for the parameters themselves.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992, with exponential weights, in the form of
    torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn(decay).
    """
    average.lerp_(flat, 1 - decay)
