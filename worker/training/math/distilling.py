"""The loss of a distillation stage: a model learns from an ensemble's outputs and the targets.

Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015
(arXiv:1503.02531), section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from common.folder.teacher import LEAST_LOG
from worker.training.math.losses import CrossEntropy, Evaluated, Hinge, Losses, Values

TEMPERATURE, MIX = "distill_temperature", "distill_mix"


@dataclass(frozen=True)
class Distilling:
    """A mix of the loss on the targets and the divergence from the teacher, in nats.

    The loss is (1 - mix) x the loss on the targets + mix x T^2 x KL(teacher at T || model at T),
    the mean over examples. "At T" is the softmax of the logits divided by the temperature T; the
    teacher's logits are its log probabilities. The factor T^2 keeps the size of the gradient about
    the same at every temperature. Each slot has its own ``distill_mix`` and T. The validation loss
    is the loss on the targets, so that these trials can be compared with all others.

    Targets come from ``pack_targets``. The teacher's output for an example is stored with its
    class, so it follows the example through any shuffling.
    """

    hard: CrossEntropy | Hinge  # the loss on the targets, with its own hyperparameters
    name: ClassVar[str] = "distilling"
    reads: ClassVar[tuple[str, ...]] = (*CrossEntropy.reads, *Hinge.reads, TEMPERATURE, MIX)

    def __call__(self, outputs: Tensor, targets: Tensor, values: Values) -> Losses:
        """See ``Objective``.

        If the targets are plain class numbers, as in validation, it is the loss on the targets.
        """
        if not targets.is_floating_point():
            return self.hard(outputs, targets, values)
        logs, classes = unpack_targets(targets)
        hard = self.hard(outputs, classes, values)
        if MIX not in values:  # it is 0 in all slots
            return hard
        temperature, mix = (values[name].unsqueeze(-1) for name in (TEMPERATURE, MIX))  # (K, 1, 1)
        own, teacher = ((scores / temperature).log_softmax(-1) for scores in (outputs, logs))
        soft = teacher.exp()
        # (K, B). A class that both rule out contributes 0.
        gap = (soft * (teacher - own.clamp(min=LEAST_LOG))).sum(-1)
        # (K,) each
        share, weight = (
            mix.squeeze(-1).squeeze(-1),
            (mix * temperature**2).squeeze(-1).squeeze(-1),
        )
        mean = hard.mean * (1 - share) + gap.mean(1) * weight
        gradient = hard.gradient * (1 - mix) + (own.exp() - soft) * (
            mix * temperature / outputs.shape[1]
        )
        return Losses(mean, hard.correct, gradient)

    def evaluate(self, outputs: Tensor, targets: Tensor, values: Values) -> Evaluated:
        """See ``Objective``."""
        return self.hard.evaluate(outputs, targets, values)

    def chance(self, values: Mapping[str, float]) -> float | None:
        """Return the chance loss on the targets."""
        return self.hard.chance(values)


def pack_targets(log_probabilities: Tensor, classes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (n, C + 1): the teacher's log probabilities of each example, then its class.

    One tensor is indexed like any targets.

    Args:
        log_probabilities: (n, C) natural logarithms of the teacher's probabilities.
        classes: (n,) int64.
        dtype: float32 or float64; both hold class numbers exactly.
    """
    return torch.cat([log_probabilities.to(dtype), classes.unsqueeze(-1).to(dtype)], dim=-1)


def unpack_targets(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Split (B, C + 1) or (K, B, C + 1) targets. This is the inverse of ``pack_targets``."""
    return targets[..., :-1], targets[..., -1].to(torch.int64)
