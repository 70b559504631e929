"""Schedules of the learning rate, the momentum and the regularization.

They are functions of the slots' step numbers, computed for all slots at once. Time is in epochs:
t = step / steps per epoch, with steps from 0. It is fractional within an epoch, so each step has
its own rate. The schedule counts from the first step, with or without a warm-up. The warm-up is a
factor on top of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KINDS = ("constant", "step", "exponential", "inverse", "plateau", "cosine")
# A drop is due at its step, although a quotient may be rounded to just below a whole number.
ROUNDING = 1e-9

Values = Mapping[str, Tensor]


def rate_factors(
    kind: str, values: Values, steps: Tensor, per_epoch: int, totals: Tensor, drops: Tensor
) -> Tensor:
    """Return the factor of the learning rate at each step.

    With t in epochs, the factor of each kind is:

    - constant: 1
    - step: drop ** floor(t / step_epochs)
    - exponential: exp(-decay_rate t)
    - inverse: 1 / (1 + decay_rate t)
    - plateau: drop ** (drops so far)
    - cosine: final_share + (1 - final_share) (1 + cos(pi step / total)) / 2

    Each is multiplied by the warm-up, min(1, (step + 1) / (warmup_epochs x per_epoch)). The first
    step thus has a share of the rate, not 0.

    Args:
        kind: one of ``KINDS``.
        values: hyperparameters (K,) in float64: warmup_epochs, and what the kind reads.
        steps: (n, K) step numbers of the slots, from 0.
        per_epoch: steps per epoch.
        totals: (K,) steps of the longest budgets that the slots may get.
        drops: (K,) how often ``Plateau`` has asked for a drop.

    Returns:
        (n, K) in float64.

    Raises:
        ValueError: the kind does not exist.

    Source: CS231n notes, "Neural networks 3", Annealing the learning rate (step, exponential, 1/t);
    Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5 without restarts (cosine); Goyal et al.,
    "Accurate, large minibatch SGD", 2017, section 2.2 (warm-up).
    """
    steps = steps.double()
    epochs = steps / per_epoch
    if kind == "constant":
        factors = torch.ones_like(steps)
    elif kind == "step":
        factors = values["drop"] ** torch.floor(
            steps / (per_epoch * values["step_epochs"]) + ROUNDING
        )
    elif kind == "exponential":
        factors = torch.exp(-values["decay_rate"] * epochs)
    elif kind == "inverse":
        factors = 1 / (1 + values["decay_rate"] * epochs)
    elif kind == "plateau":
        factors = (values["drop"] ** drops.double()).expand_as(steps)
    elif kind == "cosine":
        share = values["final_share"]
        factors = share + (1 - share) * 0.5 * (1 + torch.cos(math.pi * steps / totals))
    else:
        raise ValueError(f"schedule = {kind!r}: no such schedule; use one of {', '.join(KINDS)}")
    return factors * _risen(steps + 1, per_epoch * values["warmup_epochs"])


def momentum_values(values: Values, steps: Tensor, per_epoch: int, off: Tensor) -> Tensor:
    """Return the momentum at each step.

    It rises linearly from momentum_start at step 0 to momentum after momentum_epochs. It is 0 where
    it is off.

    Args:
        values: hyperparameters (K,) in float64: momentum, momentum_start (-1: constant),
            momentum_epochs.
        steps: (n, K) step numbers of the slots, from 0.
        per_epoch: steps per epoch.
        off: (K,) not 0 where a plateau has turned the momentum off (plateau_momentum_off).

    Returns:
        (n, K) in float64.

    Source: CS231n notes, "Neural networks 3", Momentum update: from about 0.5 to 0.99 over several
    epochs; Sutskever et al., "On the importance of initialization and momentum", ICML 2013, section
    3, for reducing it at the end.
    """
    steps, end = steps.double(), values["momentum"]
    start = torch.where(values["momentum_start"] < 0, end, values["momentum_start"])
    present = start + (end - start) * _risen(steps, per_epoch * values["momentum_epochs"])
    return torch.where(off != 0, 0.0, present)


def fade_factors(values: Values, steps: Tensor, totals: Tensor) -> Tensor:
    """Return the factor of weight_decay and l1 at each step.

    It is 1, and falls linearly to 0 in the last share ``fade`` of the steps:
    min(1, (total - step) / (fade x total)). It is still 1 at the step where the fading begins. It
    would be 0 at the step after the last.

    Args:
        values: hyperparameters (K,) in float64: fade (0: never).
        steps: (n, K) step numbers of the slots, from 0.
        totals: (K,) steps of the longest budgets that the slots may get.

    Returns:
        (n, K) in float64.
    """
    return _risen(totals - steps.double(), values["fade"] * totals)


def _risen(numbers: Tensor, lengths: Tensor) -> Tensor:
    """Return min(1, numbers / lengths), or 1 where the length is 0."""
    return torch.where(
        lengths > 0, (numbers / torch.where(lengths > 0, lengths, 1.0)).clamp(max=1.0), 1.0
    )


@dataclass
class Plateau:
    """The record of one slot's validation losses on the host, which detects plateaus.

    A drop is due when ``patience_epochs`` have passed without a lower validation loss, counted from
    the lowest loss or the last drop, whichever came later. If evaluations are at the ends of epochs
    and the patience is a whole number P of epochs, this is
    torch.optim.lr_scheduler.ReduceLROnPlateau(factor=drop, patience=P - 1, threshold=0, eps=0,
    cooldown=0): torch drops when more than ``patience`` evaluations in a row were no better. A
    fractional P takes effect at the next evaluation, as if it were rounded up.

    Source: CS231n notes, "Neural networks 3", Annealing the learning rate: halve the rate whenever
    the validation error stops improving.
    """

    lowest: float = math.inf
    since_epoch: float = 0.0  # epoch of the lowest loss or of the last drop
    drops: int = 0

    def note(self, epoch: float, val_loss: float, patience_epochs: float) -> bool:
        """Record an evaluation. Return True if a drop is due.

        A loss that is not finite counts as no better.
        """
        if val_loss < self.lowest:
            self.lowest, self.since_epoch = val_loss, epoch
            return False
        if epoch - self.since_epoch < patience_epochs - ROUNDING:
            return False
        self.since_epoch = epoch
        self.drops += 1
        return True

    def state(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {"lowest": self.lowest, "since_epoch": self.since_epoch, "drops": self.drops}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state`` returned.

        Raises:
            KeyError: a value is missing.
        """
        self.lowest, self.since_epoch, self.drops = (
            state["lowest"],
            state["since_epoch"],
            state["drops"],
        )
