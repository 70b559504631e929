"""The tensors of slots, and their conversion to and from files.

Weights files hold tensors by name. Saved states hold rows as they are. A row is a dict with the
tensors of one slot, and a stack has the same names with a first dimension K, the slots:

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
from collections.abc import Mapping, Sequence
from operator import itemgetter
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
NUMBERS_OF = itemgetter(*NUMBERS)
# Prefixes of the names of the tensors that training changes.
MOVING = ("flat", "ema", "state.", "buffer.")


def fresh_rows(
    models: Sequence[Model], seeds: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Row:
    """Return the rows of slots before their first step, (K, ...) each, with their initial weights.

    Args:
        models: of the slots, which share a structure.
        seeds: of the trials.
        device: of the tensors.
        dtype: of those that are floating-point numbers.
    """
    first = models[0]
    flat, buffers = _initial_weights(models, device, dtype), _initial_buffers(models, device, dtype)
    moving = {
        "flat": flat,
        **{f"state.{name}": torch.zeros_like(flat) for name in first.recipe.rule.states},
        **{f"buffer.{name}": column for name, column in buffers.items()},
        **({"ema": flat.clone()} if first.recipe.averaged else {}),
    }
    levels, width = [model.levels for model in models], len(models)
    return {
        **moving,
        **{BEST + name: column.clone() for name, column in moving.items()},
        "first": torch.zeros(width, device=device, dtype=dtype),
        "recent": torch.zeros(width, WINDOW - 1, device=device, dtype=dtype),
        **{
            name: torch.tensor([m.numbers[name] for m in models], device=device, dtype=dtype)
            for name in first.numbers
        },
        "seed": torch.tensor(seeds, device=device),
        "threshold": torch.tensor(
            [[threshold for threshold, _ in own] for own in levels],
            device=device,
            dtype=torch.int16,
        ),
        "scale": torch.tensor(
            [[scale for _, scale in own] for own in levels], device=device, dtype=dtype
        ),
        "hp": torch.tensor(
            [NUMBERS_OF(model.recipe.values) for model in models],
            device=device,
            dtype=torch.float64,
        ),
        "groups": torch.tensor(
            [
                math.nan if value is None else value
                for model in models
                for group in model.groups
                for value in (group.learning_rate, group.weight_decay)
            ],
            device=device,
            dtype=torch.float64,
        ).view(width, len(first.groups), 2),
        "own": torch.tensor(
            [[value for _, value in sorted(model.recipe.own.items())] for model in models],
            device=device,
            dtype=torch.float64,
        ),
    }


def _initial_weights(models: Sequence[Model], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the initial parameters (K, P)."""
    of_modules = {id(model.module): model for model in models}  # which trials may share
    own = {
        key: model.layout.row(dict(model.module.named_parameters()))
        for key, model in of_modules.items()
    }
    if all(model.start is None for model in models):
        return torch.stack([own[id(model.module)] for model in models]).to(device, dtype)
    # They are drawn where and as modules draw them, whatever the trials compute with.
    own = {key: row.to("cpu", torch.get_default_dtype()) for key, row in own.items()}
    flat = torch.stack([own[id(model.module)] for model in models])
    sizes = {name: math.prod(shape) for name, shape in models[0].layout.shapes.items()}
    places = {name: place for place, name in enumerate(sizes)}
    unused, generator = torch.empty(0, dtype=torch.int64), torch.Generator()
    for model, row in zip(models, flat, strict=True):
        if model.start is None:
            continue
        views = row.split(list(sizes.values()))
        generator.manual_seed(model.start.seed)
        for name, n_before, deviation in model.start.drawn:
            unused = _draw(n_before, unused, generator)
            views[places[name]].normal_(0.0, deviation, generator=generator)
        for name, value in model.start.filled.items():
            if name in places:
                views[places[name]].fill_(value)
    return flat.to(device, dtype)


def _draw(n: int, unused: Tensor, generator: torch.Generator) -> Tensor:
    """Let a generator draw ``n`` numbers of 32 bits, into memory that is returned for the next."""
    pairs = -(-n // 2)
    if len(unused) < pairs:
        unused = unused.new_empty(pairs)
    unused[: n // 2].random_(generator=generator)  # 64 bits each, which takes half the time
    if n % 2:
        unused[:1].view(torch.int32)[:1].random_(generator=generator)
    return unused


def _initial_buffers(models: Sequence[Model], device: torch.device, dtype: torch.dtype) -> Row:
    """Return the initial buffers (K, ...) by name."""
    of_modules = {id(model.module): model for model in models}
    found = {key: model_buffers(model) for key, model in of_modules.items()}
    columns = {}
    for name in model_buffers(models[0]):
        own = {key: _move(buffers[name], device, dtype) for key, buffers in found.items()}
        column = torch.stack([own[id(model.module)] for model in models])
        filled = [
            (place, model.start.filled[name])
            for place, model in enumerate(models)
            if model.start is not None and name in model.start.filled
        ]
        if filled:
            places, values = zip(*filled, strict=True)
            column[list(places)] = torch.tensor(values, device=device, dtype=column.dtype)
        columns[name] = column
    return columns


def take_row(rows: Row, slot: int) -> Row:
    """Return one slot's tensors of rows (K, ...). They share memory with the rows."""
    return {name: tensor[slot] for name, tensor in rows.items()}


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
    """Return copies on the CPU of the tensors of ``row`` that training changes."""
    return {
        name: tensor.to("cpu", copy=True) for name, tensor in row.items() if name.startswith(MOVING)
    }


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
