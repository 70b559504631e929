"""Whether a stacked model computes what each slot's own module computes. Structure alone may hide a captured value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from worker.training.losses import cross_entropy
from worker.training.networks import LoneNetwork
from worker.training.stack import Stack
from worker.training.structure import Model

TOLERANCE = {torch.float64: 1e-8}  # of the largest logit; rounding stays far below
LOOSE_TOLERANCE = 2e-3  # float32 and below: order of summation, and TF32 on a GPU


def differences(stack: Stack, models: Mapping[int, Model], inputs: Tensor, targets: Tensor) -> dict[int, str]:
    """Compares slots with their own modules on one batch, in training and in evaluation mode; nothing is moved.

    Args:
        stack: the array.
        models: the slots to look at, each with the trial's own module.
        inputs: (B, ...).
        targets: (B,).

    Returns:
        For each slot that differs, what differs.
    """
    stacked = {"training": stack.rehearse(inputs), "evaluation": stack.predict(inputs)}
    found: dict[int, str] = {}
    for slot, model in models.items():
        masks = stack.masks_of(slot)
        for mode, logits in stacked.items():
            own = own_logits(stack, slot, model, inputs, masks if mode == "training" else None)
            gap = _gap(logits[slot : slot + 1], own, targets)
            if not gap <= TOLERANCE.get(logits.dtype, LOOSE_TOLERANCE):
                found.setdefault(slot, f"its stacked {mode} forward differs from its own module's by {gap:.2g} of the largest logit")
    return found


def own_logits(stack: Stack, slot: int, model: Model, inputs: Tensor, masks: Sequence[Tensor] | None) -> Tensor:
    """Logits (1, B, C) of the slot's own module with the slot's weights; ``masks`` for training mode."""
    flat = stack.rows["flat"][slot : slot + 1]
    moved = {name: tensor[slot : slot + 1].clone() for name, tensor in stack.rows.items() if name.startswith("buffer.")}
    buffers = {name.removeprefix("buffer."): tensor for name, tensor in moved.items()}
    network = LoneNetwork(model)
    network.bind(flat, flat, buffers)
    with torch.no_grad():
        return network.predict(inputs) if masks is None else network.forward(inputs, True, masks)


def _gap(stacked: Tensor, own: Tensor, targets: Tensor) -> float:
    """Largest difference of the logits and of the loss, relative to the largest logit; 0 where both are equally broken."""
    if stacked.shape != own.shape:
        return float("inf")
    scale = own.abs().amax().clamp(min=1.0)
    logits = torch.where(own.isfinite() | stacked.isfinite(), (stacked - own).abs(), 0.0).amax() / scale
    losses = (cross_entropy(stacked, targets).mean - cross_entropy(own, targets).mean).abs() / scale
    return float(torch.maximum(logits, torch.where(losses.isnan(), logits, losses)))
