"""One slot's tensors, and the way from them to named tensors in a file and back.

A row is a dict: ``flat`` (P,) parameters, ``state.NAME`` (P,) of the optimizer, ``buffer.NAME`` of the model, ``ema`` (P,) the running
average of the parameters where one is kept, the same under ``best.`` for the best epoch, ``first`` and ``recent`` costs, and what is
constant: seed, dropout, ``hp`` (H,) the engine's numbers in the order of ``recipe.NUMBERS``, ``own`` the task's for its loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from worker.training.explosion import WINDOW
from worker.training.layout import constants
from worker.training.recipe import NUMBERS
from worker.training.structure import Model

Row = dict[str, Tensor]
BEST = "best."


def fresh_row(model: Model, seed: int, device: torch.device, dtype: torch.dtype) -> Row:
    """A slot before its first step, with the module's own initial weights."""
    flat = model.layout.row(dict(model.module.named_parameters())).to(device, dtype)
    moving = {"flat": flat, **{f"state.{name}": torch.zeros_like(flat) for name in model.recipe.rule.states}}
    moving |= {f"buffer.{name}": _moved(tensor, device, dtype) for name, tensor in model_buffers(model).items()}
    moving |= {"ema": flat.clone()} if model.recipe.averaged else {}
    return {
        **moving,
        **{BEST + name: tensor.clone() for name, tensor in moving.items()},
        "first": torch.zeros((), device=device, dtype=dtype),
        "recent": torch.zeros(WINDOW - 1, device=device, dtype=dtype),
        "seed": torch.tensor(seed, device=device),
        "threshold": torch.tensor([threshold for threshold, _ in model.levels], device=device, dtype=torch.int16),
        "scale": torch.tensor([scale for _, scale in model.levels], device=device, dtype=dtype),
        "hp": torch.tensor([model.recipe.values[name] for name in NUMBERS], device=device, dtype=torch.float64),
        "own": torch.tensor([value for _, value in sorted(model.recipe.own.items())], device=device, dtype=torch.float64),
    }


def model_buffers(model: Model) -> dict[str, Tensor]:
    """What the module carries besides trained parameters, but for the masks that the step fills."""
    masks = {f"{name}.mask" for name in model.dropouts}
    return {name: tensor for name, tensor in constants(model.module).items() if name not in masks}


def named(model: Model, row: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """``{"model": plain state dict, "optimizer": {state: {parameter: tensor}}, ...}`` on the CPU, each tensor its own memory.

    With a running average of the parameters, ``"ema"`` is the plain state dict with the averages in their place.
    """
    buffers = {name: row[f"{prefix}buffer.{name}"].cpu().clone() for name in model_buffers(model)}
    kept = model.module.state_dict().keys()  # tied and non-persistent tensors as the plain model has them
    states = {
        name: {parameter: view.detach().cpu().clone() for parameter, view in model.layout.views(row[f"{prefix}state.{name}"]).items()}
        for name in model.recipe.rule.states
    }
    hidden = {name: tensor for name, tensor in buffers.items() if name not in kept}
    average = {"ema": state_dict(model, row[f"{prefix}ema"], buffers)} if model.recipe.averaged else {}
    return {"model": state_dict(model, row[f"{prefix}flat"], buffers), "optimizer": states, "hidden": hidden, **average}


def state_dict(model: Model, flat: Tensor, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``load_state_dict`` of the plain model takes: parameters (P,), the buffers of that slot by name."""
    weights = {name: view.detach().cpu().clone() for name, view in model.layout.views(flat).items()}
    shared = {name: weights[other] for name, other in _tied(model).items()}
    everything = {**weights, **buffers, **shared}
    return {name: everything[name] for name in model.module.state_dict()}


def restore(model: Model, row: Row, saved: Mapping[str, Any], prefix: str = "") -> None:
    """The inverse of ``named``, into ``row``.

    Raises:
        KeyError: something is missing.
        ValueError: a shape does not fit.
    """
    row[f"{prefix}flat"].copy_(model.layout.row(saved["model"]))
    if model.recipe.averaged:
        row[f"{prefix}ema"].copy_(model.layout.row(saved["ema"]))
    for name in model.recipe.rule.states:
        row[f"{prefix}state.{name}"].copy_(model.layout.row(saved["optimizer"][name]))
    for name in model_buffers(model):
        source = saved["model"] if name in saved["model"] else saved["hidden"]
        if source[name].shape != row[f"{prefix}buffer.{name}"].shape:
            raise ValueError(f"{name} has the shape {tuple(source[name].shape)}")
        row[f"{prefix}buffer.{name}"].copy_(source[name])


def _tied(model: Model) -> dict[str, str]:
    """Second names of shared parameters, and the name that the layout knows them by."""
    first = {id(p): name for name, p in model.module.named_parameters()}
    return {name: first[id(p)] for name, p in model.module.named_parameters(remove_duplicate=False) if first[id(p)] != name}


def _moved(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    kind = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(device, kind, copy=True)
