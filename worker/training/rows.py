"""One slot's tensors, and the way from them to named tensors in a file and back.

A row is a dict: ``flat`` (P,) parameters, ``state.NAME`` (P,) of the optimizer, ``buffer.NAME`` of the model, the same three
under ``best.`` for the best epoch, ``first`` and ``recent`` costs, and what is constant: seed, dropout, hyperparameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from worker.training.explosion import WINDOW
from worker.training.layout import constants
from worker.training.noise import quantised
from worker.training.structure import Model

Row = dict[str, Tensor]
BEST = "best."


def fresh_row(model: Model, seed: int, device: torch.device, dtype: torch.dtype) -> Row:
    """A slot before its first step, with the module's own initial weights."""
    flat = model.layout.row(dict(model.module.named_parameters())).to(device, dtype)
    moving = {"flat": flat, **{f"state.{name}": torch.zeros_like(flat) for name in model.recipe.rule.states}}
    moving |= {f"buffer.{name}": _moved(tensor, device, dtype) for name, tensor in model_buffers(model).items()}
    levels = [quantised(rate) for rate in model.rates]
    return {
        **moving,
        **{BEST + name: tensor.clone() for name, tensor in moving.items()},
        "first": torch.zeros((), device=device, dtype=dtype),
        "recent": torch.zeros(WINDOW - 1, device=device, dtype=dtype),
        "seed": torch.tensor(seed, device=device),
        "threshold": torch.tensor([threshold for threshold, _ in levels], device=device, dtype=torch.int16),
        "scale": torch.tensor([scale for _, scale in levels], device=device, dtype=dtype),
        **{f"hp.{name}": torch.tensor(value, device=device, dtype=torch.float64) for name, value in model.recipe.values.items()},
    }


def model_buffers(model: Model) -> dict[str, Tensor]:
    """What the module carries besides trained parameters, but for the masks that the step fills."""
    masks = {f"{name}.mask" for name in model.dropouts}
    return {name: tensor for name, tensor in constants(model.module).items() if name not in masks}


def named(model: Model, row: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """``{"model": plain state dict, "optimizer": {state: {parameter: tensor}}}`` on the CPU, each tensor its own memory."""
    weights = {name: view.detach().cpu().clone() for name, view in model.layout.views(row[f"{prefix}flat"]).items()}
    buffers = {name: row[f"{prefix}buffer.{name}"].cpu().clone() for name in model_buffers(model)}
    kept = model.module.state_dict().keys()  # tied and non-persistent tensors as the plain model has them
    shared = {name: weights[other] for name, other in _tied(model).items()}
    everything = {**weights, **buffers, **shared}
    states = {
        name: {parameter: view.detach().cpu().clone() for parameter, view in model.layout.views(row[f"{prefix}state.{name}"]).items()}
        for name in model.recipe.rule.states
    }
    hidden = {name: tensor for name, tensor in buffers.items() if name not in kept}
    return {"model": {name: everything[name] for name in kept}, "optimizer": states, "hidden": hidden}


def restore(model: Model, row: Row, saved: Mapping[str, Any], prefix: str = "") -> None:
    """The inverse of ``named``, into ``row``.

    Raises:
        KeyError: something is missing.
        ValueError: a shape does not fit.
    """
    row[f"{prefix}flat"].copy_(model.layout.row(saved["model"]))
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
