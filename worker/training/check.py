"""Whether a stacked model computes what each slot's own module computes. Structure alone may hide a captured value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
    both = [own_outputs(stack, slot, model, inputs, stack.masks_of(slot)) for slot, model in models.items()]
    for (mode, outputs), own in zip(stacked.items(), zip(*both, strict=True), strict=True):
        gaps = _gaps(stack, list(models), outputs, torch.stack(own), targets)
        for slot, gap in zip(models, gaps, strict=True):
            if not gap <= TOLERANCE.get(outputs.dtype, LOOSE_TOLERANCE):
                found.setdefault(slot, f"its stacked {mode} forward differs from its own module's by {gap:.2g} of the largest output")
    return found


def own_outputs(stack: Stack, slot: int, model: Model, inputs: Tensor, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Outputs (B, ...) of the slot's own module with the slot's weights, in training mode with ``masks``, and in evaluation mode."""
    named = {name.removeprefix("buffer."): tensor[slot] for name, tensor in stack.rows.items() if name.startswith("buffer.")}
    own = {**model.layout.views(stack.rows["flat"][slot]), **{name: tensor.clone() for name, tensor in named.items()}}
    own |= {f"{name}.mask": mask[0] for name, mask in zip(model.dropouts, masks, strict=True)}
    module = model.module
    with torch.no_grad(), _lent(module, own):
        module.eval()  # first: training moves running statistics
        evaluated: Tensor = module(inputs)
        module.train()
        trained: Tensor = module(inputs)
    return trained, evaluated


@contextmanager
def _lent(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Puts tensors into the places of the module's own; ``functional_call`` does the same in three times the time."""
    places = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    kept = {name: places[name].data for name in tensors if name in places}
    try:
        for name in kept:
            places[name].data = tensors[name]
        yield
    finally:
        for name, data in kept.items():
            places[name].data = data


def _gaps(stack: Stack, slots: list[int], stacked: Tensor, own: Tensor, targets: Tensor) -> list[float]:
    """(K,) largest difference of the outputs and of the loss, relative to the slot's largest output; 0 where both are equally broken."""
    mine, values = stacked[slots], {name: column[slots] for name, column in stack.objective_values.items()}
    inner = tuple(range(1, own.ndim))
    scales = own.abs().amax(inner).clamp(min=1.0)
    outputs = torch.where(own.isfinite() | mine.isfinite(), (mine - own).abs(), 0.0).amax(inner)
    losses = (stack.objective(mine.clone(), targets, values).mean - stack.objective(own.clone(), targets, values).mean).abs()
    gaps: list[float] = (torch.maximum(outputs, torch.where(losses.isnan(), outputs, losses)) / scales).tolist()
    return gaps
