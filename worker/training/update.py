"""What a step does with its gradients: clip, regularise, move, average. In one piece, or parameter by parameter.

Eager steps move all parameters as one matrix, which takes the fewest calls. Compiled ones take each parameter by itself, so that its
update joins the kernel that made its gradient, and nothing is copied together first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from worker.training import averages, regularization
from worker.training.optimizers import UpdateRule

DECAYS = ("l2", "l1", "shrink", "ema")  # columns that are not the rule's own


class Piece(NamedTuple):
    """Some columns of the parameters, and what belongs to them; each (K, n)."""

    weights: Tensor
    gradients: Tensor
    states: Sequence[Tensor]
    average: Tensor | None
    scratch: Tensor
    n_decayed: int  # of the n; they come first


def update(
    rule: UpdateRule,
    pieces: Sequence[Piece],
    views: Mapping[str, Tensor],
    columns: Mapping[str, Tensor],
    limits: Mapping[str, Tensor],
) -> Tensor:
    """Moves the pieces in place; gradients and scratch are used up.

    Args:
        rule: what moves them.
        pieces: which together are all parameters.
        views: the same memory by parameter, (K, ...) each.
        columns: (K, 1) of this step: the rule's, and those of ``DECAYS`` that are used.
        limits: (K, 1) of clip_value, clip_norm and max_norm, those that are used.

    Returns:
        (K,) the penalty that belongs to the loss, before the move.
    """
    gradients = [piece.gradients for piece in pieces]
    if "clip_value" in limits:
        for gradient in gradients:
            regularization.clip_value(gradient, limits["clip_value"])
    if "clip_norm" in limits:
        regularization.clip_norms(gradients, limits["clip_norm"])
    l2, l1, shrink, decay = (columns.get(name) for name in DECAYS)
    own = {name: column for name, column in columns.items() if name not in DECAYS}
    decayed = [(piece.weights[:, : piece.n_decayed], piece.gradients[:, : piece.n_decayed]) for piece in pieces if piece.n_decayed]
    penalty = pieces[0].weights.new_zeros(pieces[0].weights.shape[0])
    for weights, gradient in decayed:
        penalty = penalty + regularization.penalties(weights, l2, l1)
        regularization.add_gradients(gradient, weights, l2, l1)
    if shrink is not None:
        for weights, _ in decayed:
            weights.mul_(shrink)
    for piece in pieces:
        rule.apply(piece.weights, piece.gradients, piece.states, own, piece.scratch)
    if "max_norm" in limits:
        regularization.max_norm(views, limits["max_norm"])
    if decay is not None:
        for piece in pieces:
            if piece.average is not None:
                averages.update(piece.average, piece.weights, decay)
    return penalty
