"""The tensors of one slot, and their conversion to and from files.

Weights files hold tensors by name. Saved states hold rows as they are. A row is a dict with these
tensors:

``flat``
    (P,) parameters.
``state.NAME``
    (P,) a state of the optimizer.
``buffer.NAME``
    A buffer of the model.
``ema``
    (P,) the running average of the parameters, if one is kept.
``best.NAME``
    Each of the tensors above at the best epoch.
``lifted PATH``
    A constant: the slot's own value of a number in an attribute.
``first``, ``recent``
    The first cost and the recent ones.
``seed``, ``threshold``, ``scale``
    Constants: the trial's seed and its dropout.
``hp``
    (H,) constants: the engine's numbers in the order of ``recipe.NUMBERS``.
``groups``
    (G, 2) constants: the learning rate and the weight decay of each parameter group. NaN means that
    of the trial.
``own``
    Constants: the numbers that the task's own loss reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common.errors import TaskError
from worker.training.math.recipe import NUMBERS
from worker.training.model.layout import constants
from worker.training.model.structure import Model
from worker.training.stacked.explosion import WINDOW

Row = dict[str, Tensor]
BEST = "best."
EXTRA_STATE = "_extra_state"  # the end of a name in a state dict, as torch writes it
# Prefixes of the names of the tensors that training changes.
MOVING = ("flat", "ema", "state.", "buffer.")


def fresh_row(model: Model, seed: int, device: torch.device, dtype: torch.dtype) -> Row:
    """Return the row of a slot before its first step, with the module's own initial weights."""
    flat = model.layout.row(dict(model.module.named_parameters())).to(device, dtype)
    moving = {
        "flat": flat,
        **{f"state.{name}": torch.zeros_like(flat) for name in model.recipe.rule.states},
    }
    moving |= {
        f"buffer.{name}": _move(tensor, device, dtype)
        for name, tensor in model_buffers(model).items()
    }
    moving |= {"ema": flat.clone()} if model.recipe.averaged else {}
    return {
        **moving,
        **{BEST + name: tensor.clone() for name, tensor in moving.items()},
        "first": torch.zeros((), device=device, dtype=dtype),
        "recent": torch.zeros(WINDOW - 1, device=device, dtype=dtype),
        **{
            name: torch.tensor(value, device=device, dtype=dtype)
            for name, value in model.numbers.items()
        },
        "seed": torch.tensor(seed, device=device),
        "threshold": torch.tensor(
            [threshold for threshold, _ in model.levels], device=device, dtype=torch.int16
        ),
        "scale": torch.tensor([scale for _, scale in model.levels], device=device, dtype=dtype),
        "hp": torch.tensor(
            [model.recipe.values[name] for name in NUMBERS], device=device, dtype=torch.float64
        ),
        "groups": torch.tensor(
            [
                [
                    math.nan if value is None else value
                    for value in (g.learning_rate, g.weight_decay)
                ]
                for g in model.groups
            ],
            device=device,
            dtype=torch.float64,
        ).view(len(model.groups), 2),
        "own": torch.tensor(
            [value for _, value in sorted(model.recipe.own.items())],
            device=device,
            dtype=torch.float64,
        ),
    }


def model_buffers(model: Model) -> dict[str, Tensor]:
    """Return the module's buffers and fixed parameters, without the masks that each step fills."""
    masks = {f"{name}.mask" for name in model.dropouts}
    return {name: tensor for name, tensor in constants(model.module).items() if name not in masks}


def name_tensors(model: Model, row: Mapping[str, Tensor], optimizer: bool = True) -> dict[str, Any]:
    """Return the tensors of a row by name, as copies on the CPU.

    Args:
        model: the slot's model.
        row: its tensors.
        optimizer: whether to include the states of the update rule.

    Returns:
        ``{"model": plain state dict, "optimizer": {state: {parameter: tensor}}}``. With a running
            average of the parameters, ``"ema"`` is the plain state dict with the averages instead
            of the parameters.
    """
    buffers = {name: row[f"buffer.{name}"].cpu().clone() for name in model_buffers(model)}
    states = {
        name: {
            parameter: view.detach().cpu().clone()
            for parameter, view in model.layout.views(row[f"state.{name}"]).items()
        }
        for name in (model.recipe.rule.states if optimizer else ())
    }
    average = {"ema": state_dict(model, row["ema"], buffers)} if model.recipe.averaged else {}
    return {"model": state_dict(model, row["flat"], buffers), "optimizer": states, **average}


def state_dict(model: Model, flat: Tensor, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict for ``load_state_dict`` of the plain model.

    Args:
        model: the slot's model.
        flat: (P,) parameters.
        buffers: the slot's buffers by name.

    Raises:
        TaskError: a name in the module's state dict is of no tensor.
        Exception: whatever the module's ``state_dict`` raises.
    """
    weights = {name: view.detach().cpu().clone() for name, view in model.layout.views(flat).items()}
    shared = {name: weights[other] for name, other in _find_tied(model).items()}
    everything = {**weights, **buffers, **shared}
    return {
        name: everything[name] if name in everything else _extra(name, value)
        for name, value in model.module.state_dict().items()
    }


def _extra(name: str, value: object) -> Any:
    """Return what a module's ``get_extra_state`` adds to its state dict.

    Raises:
        TaskError: it is under another name, such as one that a hook of ``state_dict`` has changed.
    """
    if not name.endswith(EXTRA_STATE):
        raise TaskError(
            f"state_dict() has {name}, which is no parameter or buffer of that name; leave the "
            "names as they are, and return other values from get_extra_state()"
        )
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def moving(row: Row) -> Row:
    """Return the tensors of ``row`` that training changes, on the CPU.

    Tensors that are on the CPU already are not copied.
    """
    return {name: tensor.cpu() for name, tensor in row.items() if name.startswith(MOVING)}


def best(row: Row) -> Row:
    """Return the tensors of the best epoch, without the prefix ``BEST``."""
    return {
        name.removeprefix(BEST): tensor for name, tensor in row.items() if name.startswith(BEST)
    }


def restore(row: Row, saved: Mapping[str, Tensor], prefix: str = "") -> None:
    """Copy the tensors that ``moving`` or ``best`` returned into ``row``.

    Args:
        row: the row to change.
        saved: the tensors.
        prefix: ``BEST`` for the tensors of the best epoch.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a shape does not fit.
    """
    for name in [name for name in row if name.startswith(MOVING)]:
        if saved[name].shape != row[prefix + name].shape:
            raise ValueError(
                f"{name} has the shape {tuple(saved[name].shape)} instead of "
                f"{tuple(row[prefix + name].shape)}"
            )
        row[prefix + name].copy_(saved[name])


def _find_tied(model: Model) -> dict[str, str]:
    """Return the other names of shared parameters, each with the name in the layout."""
    first = {id(p): name for name, p in model.module.named_parameters()}
    return {
        name: first[id(p)]
        for name, p in model.module.named_parameters(remove_duplicate=False)
        if first[id(p)] != name
    }


def _move(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    kind = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(device, kind, copy=True)
