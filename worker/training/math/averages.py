"""The exponential moving average (EMA) of the parameters, one row per slot.

It follows ``torch.optim.swa_utils``. The average starts at the parameters after a slot's first
update, not at the initial parameters, and without a bias correction. After each later update,
average = decay x average + (1 - decay) x parameters. For a decay of 0 the average equals the
current parameters exactly. Buffers are not averaged: an averaged model uses the current running
statistics.
"""

from __future__ import annotations

from torch import Tensor


def decays(decay: Tensor, steps: Tensor) -> Tensor:
    """Return the decay of each step. It is 0 at a slot's first step, so the average starts there.

    Args:
        decay: (K,) ``ema``, in [0, 1).
        steps: (n, K) step numbers of the slots, from 0.

    Returns:
        (n, K). ``update`` takes one row of it per step, as a column.
    """
    return decay * (steps > 0)


def update(average: Tensor, flat: Tensor, decay: Tensor) -> None:
    """Move (K, P) averages towards (K, P) parameters in place.

    ``decay`` is (K, 1). A decay of 0 copies the parameters.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992, with
    exponential weights, in the form of torch.optim.swa_utils.AveragedModel with
    get_ema_multi_avg_fn(decay).
    """
    average.lerp_(flat, 1 - decay)
