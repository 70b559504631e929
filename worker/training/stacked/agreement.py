"""Comparison of a stacked model with each slot's own module.

It finds values that modules of the same structure do not share, such as one captured by a closure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from common.search.values import hashable
from worker.tasks import trees
from worker.tasks.trees import Tree
from worker.training.math.precision import BF16, FP32, casting, widen
from worker.training.model.functional_noise import drawing
from worker.training.model.python_state import line_of
from worker.training.model.structure import Model
from worker.training.model.vmap_networks import StackedNetwork
from worker.training.stacked.stack import Stack

# Relative to the largest output; rounding errors are far smaller.
TOLERANCE: dict[torch.dtype | None, float] = {torch.float64: 1e-8}
HIDDEN = (
    "of the largest output: it may use a value of its own trial, hidden in a closure, a global or "
    "a list; make it a buffer"
)
ROUNDED = "of the largest output in bfloat16, which is more than its rounding explains"
# float32 and below: differences come from the order of summation, and from TF32 on a GPU.
LOOSE_TOLERANCE = 2e-3
# Of bfloat16, more is tolerated: so many times the distance of the module's own outputs from those
# that it computes in float32. Stacked and own outputs are both rounded after each layer, at
# different places, and each is about as far from float32 as the other. They were seen 1 to 1.6
# times that distance apart: from 0.2 % of the largest output in a perceptron to 4 % after nine
# convolutions. No fixed number fits both.
ROUNDING = 4.0
COMPARED = 8  # slots of an array with modules of their own, at least
# Slots of the first array that share a module, which hides nothing from one of them alone. Further
# arrays of its structure are stacked in the same way.
SHARING = 2


class Sampling:
    """Which slots of one array to compare with their own modules.

    A value that a module hides is drawn anew for each trial, or follows from a hyperparameter. So
    the first slots are compared, and then one with each value of each hyperparameter that has few.
    Of one with many, such as a learning rate, the first slots have several already.
    """

    def __init__(self, agreed: bool = False) -> None:
        """Create a sampling. ``agreed`` tells that slots that share a module need no comparison."""
        self._n_slots = 0
        self._n_left, self._n_sharing_left = COMPARED, 0 if agreed else SHARING
        self._values: defaultdict[str, set[Hashable]] = defaultdict(set)
        self._compared: set[tuple[str, Hashable]] = set()

    def choose(
        self, configurations: Mapping[int, Mapping[str, Any]], sharing: Sequence[int] = ()
    ) -> list[int]:
        """Return which of the new slots to compare.

        Args:
            configurations: of the slots.
            sharing: the slots among them that share a module.
        """
        chosen = [*sharing][: self._n_sharing_left]
        alike = set(sharing)
        self._n_sharing_left -= len(chosen)
        own = {
            slot: {(name, hashable(value)) for name, value in values.items()}
            for slot, values in configurations.items()
            if slot not in alike
        }
        self._n_slots += len(own)
        for name, value in set().union(*own.values()):
            self._values[name].add(value)
        many = {name for name, values in self._values.items() if 2 * len(values) > self._n_slots}
        for slot, pairs in own.items():
            if self._n_left > 0 or any(pair[0] not in many for pair in pairs - self._compared):
                chosen.append(slot)
                self._n_left -= 1
                self._compared |= pairs
        return chosen


def differences(
    stack: Stack, models: Mapping[int, Model], inputs: Tree, targets: Tree
) -> dict[int, str]:
    """Compare slots with their own modules on one batch, in training and in evaluation mode.

    Nothing is moved.

    Args:
        stack: the array.
        models: the slots to compare, each with the trial's own module.
        inputs: (B, ...).
        targets: (B, ...).

    Returns:
        For each slot that differs, a description of the difference.
    """
    if not models:
        return {}
    network = stack.network
    # Whatever the precision, a value that is hidden in a module shows best in float32.
    with network.in_float32() if isinstance(network, StackedNetwork) else nullcontext():
        stacked = stack.rehearse(inputs), stack.predict(inputs)
    exact = _all_own(stack, models, inputs, FP32)
    found = _describe(stack, models, stacked, exact, targets)
    if stack.model.recipe.kind("precision") == BF16:
        stacked = stack.rehearse(inputs), stack.predict(inputs)
        own = _all_own(stack, models, inputs, BF16)
        found = _describe(stack, models, stacked, own, targets, exact) | found
    return found


def _describe(
    stack: Stack,
    models: Mapping[int, Model],
    stacked: Sequence[Tree],
    own: Sequence[Tree],
    targets: Tree,
    exact: Sequence[Tree] | None = None,
) -> dict[int, str]:
    """Return a description of the difference for each slot whose outputs differ from its own.

    Args:
        stack: the array.
        models: the slots to compare.
        stacked: the array's outputs in training mode and in evaluation mode.
        own: the same of the slots' own modules.
        targets: (B, ...).
        exact: as ``own``, in float32, if ``own`` is of less.
    """
    found: dict[int, str] = {}
    slots, why = list(models), HIDDEN if exact is None else ROUNDED
    for number, mode in enumerate(("training", "evaluation")):
        least = TOLERANCE.get(_type_of(stacked[number]), LOOSE_TOLERANCE)
        gaps = _gaps(stack, slots, trees.pick(stacked[number], slots), own[number], targets)
        errors = [0.0] * len(slots), [0.0] * len(slots)
        if exact is not None:
            errors = _gaps(stack, slots, exact[number], own[number], targets)
        for slot, of_outputs, of_loss, *rounding in zip(slots, *gaps, *errors, strict=True):
            limit = least + ROUNDING * max(rounding)
            if not of_outputs <= limit:
                found.setdefault(
                    slot,
                    f"its stacked {mode} forward differs from its own module's by "
                    f"{of_outputs:.2g} {why}{line_of(type(models[slot].module).forward)}",
                )
            elif not of_loss <= limit:
                found.setdefault(
                    slot,
                    "its loss of stacked outputs differs from that of its own module's by "
                    f"{of_loss:.2g} {why}{line_of(getattr(stack.objective, 'loss', None))}",
                )
    return found


def _all_own(stack: Stack, models: Mapping[int, Model], inputs: Tree, precision: str) -> list[Tree]:
    """Return the outputs of all slots' own modules, (K, B, ...) each.

    They are those in training mode, then those in evaluation mode.
    """
    both = [
        own_outputs(stack, slot, model, inputs, stack.masks_of(slot), precision)
        for slot, model in models.items()
    ]
    return [trees.stack(outputs) for outputs in zip(*both, strict=True)]


def own_outputs(
    stack: Stack,
    slot: int,
    model: Model,
    inputs: Tree,
    masks: Sequence[Tensor],
    precision: str,
) -> tuple[Tree, Tree]:
    """Return the outputs of the slot's own module with the slot's weights.

    Returns:
        The outputs in training mode with ``masks``, and those in evaluation mode, (B, ...) each.
    """
    named = {
        name.removeprefix("buffer."): tensor[slot]
        for name, tensor in stack.rows.items()
        if name.startswith("buffer.")
    }
    own = {
        **model.layout.views(stack.rows["flat"][slot]),
        **{name: tensor.clone() for name, tensor in named.items()},
    }
    own |= {f"{name}.mask": mask[0] for name, mask in zip(model.dropouts, masks, strict=True)}
    module, device = model.module, stack.rows["flat"].device
    with torch.no_grad(), _lent(model, own), casting(precision, device, module):
        module.eval()  # first, because training mode changes running statistics
        evaluated = module(inputs)
        module.train()
        with drawing(module, model.calls):
            trained = module(inputs)
    return (trained, evaluated) if precision != BF16 else (widen(trained), widen(evaluated))


@contextmanager
def _lent(model: Model, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Put tensors in the place of the model's own, and restore them at the end.

    ``functional_call`` does the same but takes three times as long.
    """
    module, masks = model.module, [f"{name}.mask" for name in model.dropouts]
    places = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    places |= {mask: model.layer(n).mask for n, mask in zip(model.dropouts, masks, strict=True)}
    kept = {name: places[name].data for name in tensors if name in places}
    try:
        for name in kept:
            places[name].data = tensors[name]
        yield
    finally:
        for name, data in kept.items():
            places[name].data = data


def _gaps(
    stack: Stack, slots: list[int], mine: Tree, own: Tree, targets: Tree
) -> tuple[list[float], list[float]]:
    """Return the largest difference of the outputs, and the difference of the loss, (K,) each.

    Both are relative to the slot's largest output, and 0 if neither side is finite. Of several
    output tensors, each is compared with its own largest number.

    Args:
        stack: the array.
        slots: that are compared.
        mine: outputs (K, B, ...) of these slots.
        own: the same by their own modules.
        targets: (B, ...).
    """
    values = {name: column[slots] for name, column in stack.objective_values.items()}
    pairs = list(zip(trees.list_leaves(mine), trees.list_leaves(own), strict=True))
    scales = torch.stack([_largest(theirs).clamp(min=1.0) for _, theirs in pairs])  # (n, K)
    outputs = torch.stack([_largest_gap(one, theirs) for one, theirs in pairs])
    losses = (
        stack.objective(trees.map_leaves(torch.clone, mine), targets, values).mean
        - stack.objective(trees.map_leaves(torch.clone, own), targets, values).mean
    ).abs()
    relative = torch.where(losses.isnan(), 0.0, losses) / scales.amax(0)
    return (outputs / scales).amax(0).tolist(), relative.tolist()


def _largest(values: Tensor) -> Tensor:
    """Return the largest magnitude of each slot, (K,), of values (K, ...)."""
    known = values if values.is_floating_point() else values.double()
    return known.abs().flatten(1).amax(1)


def _largest_gap(one: Tensor, other: Tensor) -> Tensor:
    if not one.is_floating_point():
        one, other = one.double(), other.double()
    return _largest(torch.where(other.isfinite() | one.isfinite(), (one - other).abs(), 0.0))


def _type_of(outputs: Tree) -> torch.dtype | None:
    """Return the type of the first output that is a floating-point number, or None."""
    return next((t.dtype for t in trees.list_leaves(outputs) if t.is_floating_point()), None)
