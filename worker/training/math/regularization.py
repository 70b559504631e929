"""Penalties on weights, gradient clipping and limits on weight norms.

Each strength is a column with one row per slot. A strength of 0 turns it off exactly.

``activation_l1`` is a part of the loss like the data loss: its gradient goes through the network,
in ``Network.backward``.

Order within a step: the gradient of that loss is clipped (``clip_value``, then ``clip_norm``).
Then the gradients of the penalties are added. Then the rule updates the weights. Then ``max_norm``
limits them. Clipping thus sees the same gradient as ``torch.nn.utils.clip_grad_*`` in a plain loop
whose weight decay is the optimizer's. Nothing here waits for the device or branches on data, so all
of it can be traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

NORM_MARGIN = 1e-6  # added to the norm by torch.nn.utils.clip_grad_norm_: no division by zero
RENORM_MARGIN = 1e-7  # the margin of torch.renorm


def penalties(parts: Sequence[Tensor], l2: Tensor | None, l1: Tensor | None) -> Tensor | None:
    """Return what the decayed weights add to the loss.

    The penalty is 0.5 x l2 x sum of squares + l1 x sum of absolute values. Both together are the
    elastic net. A slot whose strength is 0 adds exactly 0, whatever its weights are.

    Args:
        parts: (K, n) each; together they are the decayed columns.
        l2: (K, 1) ``weight_decay``. None if no slot has any.
        l1: (K, 1). None if no slot has any.

    Returns:
        (K,) in the unit of the loss. None if there is nothing to add.

    Source: CS231n notes, "Neural networks 2", Regularization; Zou and Hastie, "Regularization and
    variable selection via the elastic net", JRSS B 67, 2005.
    """
    terms = []
    if l2 is not None and parts:
        norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts])
        terms.append(_scale(0.5 * norms.square().sum(0), l2))
    if l1 is not None and parts:
        norms = torch.stack([torch.linalg.vector_norm(part, ord=1, dim=1) for part in parts])
        terms.append(_scale(norms.sum(0), l1))
    return sum(terms[1:], terms[0]) if terms else None


def activation_penalty(activity: Tensor, strength: Tensor) -> Tensor:
    """Return what the hidden activations add to the loss.

    Args:
        activity: (K,) the sum of the sizes of an example's activations, as the mean over a batch.
        strength: (K, 1) ``activation_l1``. A slot whose strength is 0 adds exactly 0.

    Returns:
        (K,) in the unit of the loss.

    Source: Glorot, Bordes and Bengio, "Deep Sparse Rectifier Neural Networks", AISTATS 2011,
    section 3; as ``activity_regularizer`` of Keras.
    """
    return _scale(activity, strength)


def add_gradients(gradients: Tensor, weights: Tensor, l2: Tensor | None, l1: Tensor | None) -> None:
    """Add the gradients of ``penalties`` in place: l2 x weight, and l1 x its sign.

    The sign is 0 at 0, the subgradient of abs that torch.autograd takes.

    Args:
        gradients: (K, n) of the decayed columns.
        weights: (K, n).
        l2: (K, 1) ``weight_decay`` if the rule couples it. None if no slot has any.
        l1: (K, 1). None if no slot has any.
    """
    # Allocate before the first change, because memory may run out here.
    signs = weights.sign() if l1 is not None else None
    if l2 is not None:
        gradients.addcmul_(weights, l2)
    if l1 is not None and signs is not None:
        gradients.addcmul_(signs, l1)


def clip_value(gradients: Tensor, most: Tensor) -> None:
    """Clamp each element of (K, P) gradients to [-most, most] in place.

    ``most`` is (K, 1); 0 means no limit.

    Source: torch.nn.utils.clip_grad_value_.
    """
    limit = torch.where(most > 0, most, torch.inf)
    gradients.clamp_(-limit, limit)


def clip_norm(gradients: Tensor, most: Tensor) -> None:
    """Scale each slot's whole gradient in place, so that its norm is at most ``most``.

    Args:
        gradients: (K, P), one row per slot.
        most: (K, 1); 0 means no limit.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
    ICML 2013, algorithm 1, in the form of torch.nn.utils.clip_grad_norm_.
    """
    clip_norms([gradients], most)


def clip_norms(parts: Sequence[Tensor], most: Tensor) -> None:
    """Do what ``clip_norm`` does for gradients in several tensors (K, n).

    The norm is that of all of them together.
    """
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts], dim=1)
    # (K, 1)
    whole = norms if len(parts) == 1 else torch.linalg.vector_norm(norms, dim=1, keepdim=True)
    factor = torch.where(most > 0, (most / (whole + NORM_MARGIN)).clamp(max=1.0), 1.0)
    for part in parts:
        part.mul_(factor)


def max_norm(views: Mapping[str, Tensor], most: Tensor) -> None:
    """Scale the weights into each unit in place, so that their norm is at most ``most``.

    A unit is a row of a (K, out, in) matrix or a filter of (K, out, in, height, width). Parameters
    with one dimension per slot (biases, scales of normalization layers) are left alone.

    Args:
        views: parameters by name, as views (K, ...) of the stacked ones.
        most: (K, 1) or (K,); 0 means no limit.

    Source: Srivastava et al., "Dropout", JMLR 15, 2014, section 5.1, in the form of
    torch.renorm(p=2, dim=0).
    """
    for view in views.values():
        if view.ndim > 2:
            ones = [1] * (view.ndim - 1)
            # (K, out, 1, ...)
            norms = torch.linalg.vector_norm(view, dim=tuple(range(2, view.ndim)), keepdim=True)
            limit = most.view(-1, *ones)
            view.mul_(
                torch.where((limit > 0) & (norms > limit), limit / (norms + RENORM_MARGIN), 1.0)
            )


def _scale(sums: Tensor, strength: Tensor) -> Tensor:
    """Return (K,) sums times (K, 1) strengths.

    The result is 0 where the strength is 0, even if the sum is not finite.
    """
    return torch.where(strength.view(-1) > 0, sums * strength.view(-1), 0.0)
