"""Cross-entropy of stacked logits, with its gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Losses(NamedTuple):
    """What a batch says of each slot."""

    mean: Tensor  # (K,) mean cross-entropy in nats
    correct: Tensor  # (K,) number of examples
    gradient: Tensor  # (K, B, C) of each slot's mean loss with respect to its logits


def cross_entropy(logits: Tensor, targets: Tensor) -> Losses:
    """Softmax and cross-entropy of every slot at once; nothing of one slot enters another's.

    Args:
        logits: (K, B, C).
        targets: (B,) shared by all slots, or (K, B).
    """
    index = targets.expand(logits.shape[:2]).unsqueeze(-1)  # (K, B, 1)
    shifted = logits - logits.amax(-1, keepdim=True)
    exponentials = shifted.exp()
    total = exponentials.sum(-1, keepdim=True)  # (K, B, 1)
    mean = (total.log() - shifted.gather(-1, index)).mean((1, 2))
    correct = (logits.argmax(-1, keepdim=True) == index).sum((1, 2))
    gradient = exponentials.div_(total).scatter_add_(-1, index, torch.full_like(total, -1.0)).div_(logits.shape[1])
    return Losses(mean, correct, gradient)
