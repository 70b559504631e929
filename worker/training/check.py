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
    if not models:
        return found
    for mode, logits in stacked.items():
        own = [
            own_logits(stack, slot, model, inputs, stack.masks_of(slot) if mode == "training" else None) for slot, model in models.items()
        ]
        gaps = _gaps(logits[list(models)], torch.cat(own), targets)
        for slot, gap in zip(models, gaps, strict=True):
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


def _gaps(stacked: Tensor, own: Tensor, targets: Tensor) -> list[float]:
    """(K,) largest difference of the logits and of the loss, relative to the slot's largest logit; 0 where both are equally broken."""
    scales = own.abs().amax((1, 2)).clamp(min=1.0)
    logits = torch.where(own.isfinite() | stacked.isfinite(), (stacked - own).abs(), 0.0).amax((1, 2))
    losses = (cross_entropy(stacked, targets).mean - cross_entropy(own, targets).mean).abs()
    gaps: list[float] = (torch.maximum(logits, torch.where(losses.isnan(), logits, losses)) / scales).tolist()
    return gaps
