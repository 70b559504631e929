"""What a step does with its gradients: clip, regularize, update, average.

Eager steps update all parameters as one matrix, which takes the fewest calls. If the matrix does
not fit in a CPU's cache, they update it block by block. Compiled steps take each parameter by
itself: its update is fused with the kernel that made its gradient, and nothing is copied together
first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from worker.training.math import averages, regularization
from worker.training.math.optimizers import SGD, UpdateRule

# Numbers per slot. A call per slot takes as long as passing over some 5,000 numbers.
LONG_ROW = 1 << 15
BLOCK = 1 << 17  # numbers; half a mebibyte of each matrix that a rule passes over
DECAYS = ("l2", "l1", "activation_l1", "shrink", "ema")  # columns that do not belong to the rule
GROUP = "@"  # in the name of a column, before the number of a parameter group


class Piece(NamedTuple):
    """Some columns of the parameters, with their gradients and states; each is (K, n)."""

    weights: Tensor
    gradients: Tensor
    states: Sequence[Tensor]
    average: Tensor | None
    scratch: Tensor
    n_decayed: int  # number of decayed columns among the n; they come first
    # All columns decay, are on a CPU, and are worth a call of torch's fused kernel per slot.
    long: bool = False
    group: int = 0  # parameter group, whose columns have its number in their names


def update(
    rule: UpdateRule,
    pieces: Sequence[Piece],
    views: Mapping[str, Tensor],
    columns: Mapping[str, Tensor],
    limits: Mapping[str, Tensor],
) -> Tensor:
    """Update the pieces in place. Gradients and scratch are overwritten.

    Args:
        rule: the update rule.
        pieces: together they are all parameters.
        views: the same memory by parameter, (K, ...) each.
        columns: (K, 1) of this step: the rule's, and those of ``DECAYS`` that are used. Those of a
            parameter group have names from ``name_of_group``.
        limits: (K, 1) of clip_value, clip_norm and max_norm, those that are used.

    Returns:
        (K,) the penalty that belongs to the loss, computed before the update.
    """
    gradients = [piece.gradients for piece in pieces]
    if "clip_value" in limits:
        for gradient in gradients:
            regularization.clip_value(gradient, limits["clip_value"])
    if "clip_norm" in limits:
        regularization.clip_norms(gradients, limits["clip_norm"])
    numbers = {group: _of_group(columns, group) for group in {piece.group for piece in pieces}}
    penalty = _penalty(pieces, numbers)
    for piece in pieces:
        own, (l2, l1, shrink) = numbers[piece.group]
        weights, gradient = (
            piece.weights[:, : piece.n_decayed],
            piece.gradients[:, : piece.n_decayed],
        )
        if (
            piece.long
            and l1 is None
            and isinstance(rule, SGD)
            and rule.apply_fused(weights, gradient, piece.states, own, l2)
        ):
            continue
        if piece.n_decayed:
            regularization.add_gradients(gradient, weights, l2, l1)
            if shrink is not None:
                weights.mul_(shrink)
        rule.apply(piece.weights, piece.gradients, piece.states, own, piece.scratch)
    if "max_norm" in limits:
        regularization.max_norm(views, limits["max_norm"])
    if (decay := columns.get("ema")) is not None:
        for piece in pieces:
            if piece.average is not None:
                averages.update(piece.average, piece.weights, decay)
    return penalty


def name_of_group(name: str, group: int) -> str:
    """Return the name of a column of a parameter group. Group 0 has the plain names."""
    return f"{name}{GROUP}{group}" if group else name


def _of_group(
    columns: Mapping[str, Tensor], group: int
) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    """Return the columns of the rule for a group, and l2, l1 and shrink if they are used."""
    rule, decays = _names_of_group(tuple(columns), group)
    return {name: columns[full] for name, full in rule}, [columns.get(name) for name in decays]


@lru_cache
def _names_of_group(
    names: tuple[str, ...], group: int
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Return the rule's names with those of their columns, and the columns of l2, l1 and shrink."""
    split = [(name.partition(GROUP), name) for name in names]
    number = str(group) if group else ""
    rule = tuple(
        (name, full) for (name, _, of), full in split if of == number and name not in DECAYS
    )
    return rule, tuple(name_of_group(name, group) for name in ("l2", "l1", "shrink"))


def _penalty(
    pieces: Sequence[Piece],
    numbers: Mapping[int, tuple[dict[str, Tensor], list[Tensor | None]]],
) -> Tensor:
    """Return (K,) what the decayed weights of all groups add to the loss."""
    terms = []
    for group, (_, (l2, l1, _)) in numbers.items():
        weights = [p.weights[:, : p.n_decayed] for p in pieces if p.n_decayed and p.group == group]
        terms.append(regularization.penalties(weights, l2, l1))
    known = [term for term in terms if term is not None]
    if not known:
        return pieces[0].weights.new_zeros(pieces[0].weights.shape[0])
    return sum(known[1:], known[0])


def take_span(whole: Piece, start: int, end: int, n_decayed: int, group: int) -> Piece:
    """Return the columns of a parameter group as a piece, of which the first decay."""
    return _columns(whole, start, end)._replace(n_decayed=n_decayed, group=group)


def cut(rule: UpdateRule, whole: Piece) -> list[Piece]:
    """Return the pieces that a step processes one after the other.

    On a GPU there is one piece. For SGD with long rows there are two: the decayed columns, for
    torch's fused kernel, and the rest. Otherwise they are blocks of columns, which stay in a CPU's
    cache from the first pass over them to the last.
    """
    n_rows, n_columns = whole.weights.shape
    if whole.weights.device.type != "cpu":
        return [whole]
    if isinstance(rule, SGD) and whole.n_decayed >= LONG_ROW:
        rest = [_columns(whole, whole.n_decayed, n_columns)] if whole.n_decayed < n_columns else []
        return [_columns(whole, 0, whole.n_decayed)._replace(long=True), *rest]
    size = max(1, BLOCK // n_rows) if n_rows * n_columns > 2 * BLOCK else n_columns
    return [_columns(whole, start, start + size) for start in range(0, n_columns, size)]


def _columns(whole: Piece, start: int, end: int) -> Piece:
    return Piece(
        whole.weights[:, start:end],
        whole.gradients[:, start:end],
        [state[:, start:end] for state in whole.states],
        whole.average[:, start:end] if whole.average is not None else None,
        whole.scratch[:, start:end] if whole.scratch.numel() else whole.scratch,
        min(end, whole.n_decayed) - min(start, whole.n_decayed),
        group=whole.group,
    )
