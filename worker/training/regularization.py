"""Penalties on weights, limits on gradients and limits on weights: each strength is a column, a row a slot, and 0 turns it off exactly.

Order within a step: the gradient of the data loss is clipped (``clip_value``, then ``clip_norm``), then the gradients of the penalties are
added, then the rule updates, then ``max_norm`` limits the weights. Clipping thus sees what ``torch.nn.utils.clip_grad_*`` sees in a plain
loop whose weight decay is its optimizer's. Nothing here waits for the device or branches on data, so that all of it can be traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

NORM_MARGIN = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm: no division by zero
RENORM_MARGIN = 1e-7  # torch.renorm's


def penalties(weights: Tensor, l2: Tensor | None, l1: Tensor | None) -> Tensor:
    """What the decayed weights add to the loss: 0.5 x l2 x sum of squares + l1 x sum of sizes.

    Both together are the elastic net. A slot whose strength is 0 adds exactly 0, whatever its weights are.

    Args:
        weights: (K, n) the decayed columns.
        l2: (K, 1) ``weight_decay``; None where no slot has any.
        l1: (K, 1); None where no slot has any.

    Returns:
        (K,) in the unit of the loss.

    Source: CS231n notes, "Neural networks 2", Regularization; Zou and Hastie, "Regularization and variable selection via the elastic
    net", JRSS B 67, 2005.
    """
    total = weights.new_zeros(len(weights))
    if l2 is not None:
        total = total + _scaled(0.5 * torch.linalg.vector_norm(weights, dim=1).square(), l2)
    if l1 is not None:
        total = total + _scaled(torch.linalg.vector_norm(weights, ord=1, dim=1), l1)
    return total


def add_gradients(gradients: Tensor, weights: Tensor, l2: Tensor | None, l1: Tensor | None) -> None:
    """Adds the gradients of ``penalties`` in place: l2 x weight, and l1 x its sign (0 at 0, torch.autograd's subgradient of abs).

    Args:
        gradients: (K, n) of the decayed columns.
        weights: (K, n).
        l2: (K, 1) ``weight_decay`` where the rule couples it; None where no slot has any.
        l1: (K, 1); None where no slot has any.
    """
    signs = weights.sign() if l1 is not None else None  # before the first change: memory may run out here
    if l2 is not None:
        gradients.addcmul_(weights, l2)
    if l1 is not None and signs is not None:
        gradients.addcmul_(signs, l1)


def clip_value(gradients: Tensor, most: Tensor) -> None:
    """Limits each element of (K, P) gradients to [-most, most] in place; most (K, 1), 0 for no limit.

    Source: torch.nn.utils.clip_grad_value_.
    """
    limit = torch.where(most > 0, most, torch.inf)
    gradients.clamp_(-limit, limit)


def clip_norm(gradients: Tensor, most: Tensor) -> None:
    """Scales each slot's whole gradient down to a norm of ``most`` in place, where it is longer.

    Args:
        gradients: (K, P) one row a slot.
        most: (K, 1), 0 for no limit.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1, in the form
    of torch.nn.utils.clip_grad_norm_.
    """
    clip_norms([gradients], most)


def clip_norms(parts: Sequence[Tensor], most: Tensor) -> None:
    """``clip_norm`` of gradients that lie in several tensors (K, n): it is the norm of all of them together that counts."""
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts], dim=1)
    whole = norms if len(parts) == 1 else torch.linalg.vector_norm(norms, dim=1, keepdim=True)  # (K, 1)
    factor = torch.where(most > 0, (most / (whole + NORM_MARGIN)).clamp(max=1.0), 1.0)
    for part in parts:
        part.mul_(factor)


def max_norm(views: Mapping[str, Tensor], most: Tensor) -> None:
    """Scales the weights into each unit down to a norm of ``most`` in place, where they are longer.

    A unit is a row of a (K, out, in) matrix or a filter of (K, out, in, height, width). Parameters of one dimension a slot (biases,
    scales of normalisation) are left alone.

    Args:
        views: parameters by name, views (K, ...) of the stacked ones.
        most: (K, 1) or (K,), 0 for no limit.

    Source: Srivastava et al., "Dropout", JMLR 15, 2014, section 5.1, in the form of torch.renorm(p=2, dim=0).
    """
    for view in views.values():
        if view.ndim > 2:
            ones = [1] * (view.ndim - 1)
            norms = torch.linalg.vector_norm(view, dim=tuple(range(2, view.ndim)), keepdim=True)  # (K, out, 1, ...)
            limit = most.view(-1, *ones)
            view.mul_(torch.where((limit > 0) & (norms > limit), limit / (norms + RENORM_MARGIN), 1.0))


def _scaled(sums: Tensor, strength: Tensor) -> Tensor:
    """(K,) sums times (K, 1) strengths; 0 where the strength is, also where the sum is not finite."""
    return torch.where(strength.view(-1) > 0, sums * strength.view(-1), 0.0)
