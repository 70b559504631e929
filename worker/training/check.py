"""Whether a stacked model computes what each slot's own module computes. Structure alone may hide a captured value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from worker.training.networks import LoneNetwork
from worker.training.stack import Stack
from worker.training.structure import Model

TOLERANCE = {torch.float64: 1e-8}  # of the largest output; rounding stays far below
LOOSE_TOLERANCE = 2e-3  # float32 and below: order of summation, and TF32 on a GPU


def differences(stack: Stack, models: Mapping[int, Model], inputs: Tensor, targets: Tensor) -> dict[int, str]:
    """Compares slots with their own modules on one batch, in training and in evaluation mode; nothing is moved.

    Args:
        stack: the array.
        models: the slots to look at, each with the trial's own module.
        inputs: (B, ...).
        targets: (B, ...).

    Returns:
        For each slot that differs, what differs.
    """
    stacked = {"training": stack.rehearse(inputs), "evaluation": stack.predict(inputs)}
    found: dict[int, str] = {}
    if not models:
        return found
    for mode, outputs in stacked.items():
        own = [
            own_outputs(stack, slot, model, inputs, stack.masks_of(slot) if mode == "training" else None) for slot, model in models.items()
        ]
        gaps = _gaps(stack, list(models), outputs, torch.cat(own), targets)
        for slot, gap in zip(models, gaps, strict=True):
            if not gap <= TOLERANCE.get(outputs.dtype, LOOSE_TOLERANCE):
                found.setdefault(slot, f"its stacked {mode} forward differs from its own module's by {gap:.2g} of the largest output")
    return found


def own_outputs(stack: Stack, slot: int, model: Model, inputs: Tensor, masks: Sequence[Tensor] | None) -> Tensor:
    """Logits (1, B, C) of the slot's own module with the slot's weights; ``masks`` for training mode."""
    flat = stack.rows["flat"][slot : slot + 1]
    moved = {name: tensor[slot : slot + 1].clone() for name, tensor in stack.rows.items() if name.startswith("buffer.")}
    buffers = {name.removeprefix("buffer."): tensor for name, tensor in moved.items()}
    network = LoneNetwork(model)
    network.bind(flat, flat, buffers)
    with torch.no_grad():
        return network.predict(inputs) if masks is None else network.forward(inputs, True, masks)


def _gaps(stack: Stack, slots: list[int], stacked: Tensor, own: Tensor, targets: Tensor) -> list[float]:
    """(K,) largest difference of the outputs and of the loss, relative to the slot's largest output; 0 where both are equally broken."""
    mine, values = stacked[slots], {name: column[slots] for name, column in stack.objective_values.items()}
    inner = tuple(range(1, own.ndim))
    scales = own.abs().amax(inner).clamp(min=1.0)
    outputs = torch.where(own.isfinite() | mine.isfinite(), (mine - own).abs(), 0.0).amax(inner)
    losses = (stack.objective(mine.clone(), targets, values).mean - stack.objective(own.clone(), targets, values).mean).abs()
    gaps: list[float] = (torch.maximum(outputs, torch.where(losses.isnan(), outputs, losses)) / scales).tolist()
    return gaps
