"""Models with lazy layers (nn.LazyLinear, ...), whose sizes are set by the first batch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from common.errors import TaskError
from worker.tasks import trees
from worker.tasks.trees import Tree
from worker.training.model.python_state import attributes_kept


def lazy_layers(module: nn.Module) -> list[str]:
    """Return the names of the layers that do not know their sizes yet."""
    return [
        f"{name or 'the model itself'} ({type(one).__name__})"
        for name, one in module.named_modules()
        if _is_lazy(one)
    ]


def _is_lazy(one: nn.Module) -> bool:
    held = (*one._parameters.values(), *one._buffers.values())
    return any(is_lazy(tensor) for tensor in held if tensor is not None)


def give_sizes(module: nn.Module, inputs: Tree) -> None:
    """Pass a batch through a new model, so that its lazy layers get sizes and initial weights.

    Nothing else of the model changes. A model without lazy layers is left alone.

    Args:
        module: the model as ``model(hp)`` returned it, in its original precision.
        inputs: (B, ...) from the training set.

    Raises:
        TaskError: the forward pass fails, or it does not reach all lazy layers.
    """
    waiting = lazy_layers(module)
    if not waiting:
        return
    modes = {one: one.training for one in module.modules()}
    made = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    example = trees.move(inputs, made.device, made.dtype)
    try:
        with attributes_kept([m for m in modes if not _is_lazy(m)]), torch.no_grad():
            module.eval()  # no noise is drawn, and running averages do not change
            module(example)
    except Exception as error:
        shapes = ", ".join(str(tuple(one.shape)) for one in trees.list_leaves(example))
        raise TaskError(
            f"a first batch gives lazy layers their sizes ({', '.join(waiting)}). Its inputs have "
            f"the shape {shapes}, and it raised {type(error).__name__}: {error}. "
            "Correct forward, or give the sizes in model(hp)"
        ) from error
    finally:
        for one, training in modes.items():
            one.training = training
    if left := lazy_layers(module):
        raise TaskError(
            f"forward does not reach {', '.join(left)}, so that layer has no size; give its size "
            "in model(hp), or leave the layer out"
        )
