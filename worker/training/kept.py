"""What is kept of a trial that ended: the content of its weights file, its predictions, its weights over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common.search import AVERAGED
from common.trial import TrialState
from worker.tasks.base import Part
from worker.training import portrait
from worker.training.called import LoneNetwork
from worker.training.interface import Outcome, Snapshot
from worker.training.rows import BEST, Row, named
from worker.training.setting import Setting
from worker.training.slot import FORMAT, Moment, Slot, packed

EXAMPLES_AT_ONCE = 1024


def outcome(slot: Slot, row: Row, setting: Setting) -> Outcome:
    """How a trial ended. ``row`` is a copy that nothing changes any more."""
    best, classes = slot.best, setting.n_classes is not None
    return Outcome(
        job=slot.job,
        state=_state(slot),
        reason=slot.exploded or slot.stopped,
        val_acc=best.metrics.get("val_acc") if best else None,
        val_loss=best.metrics.get("val_loss") if best else None,
        epochs=slot.epoch,
        best_epoch=best.epoch if best else None,
        first_loss=slot.first_loss,
        value=slot.value,
        metrics=dict(best.metrics) if best else {},
        curves=slot.curves,
        seconds=slot.seconds,
        epoch_s=slot.epoch_s,
        array_width=slot.width,
        checkpoint=(lambda: _checkpoint(slot, _best(row), best.epoch, setting)) if best else None,
        predictions=(lambda: _predictions(slot, _best(row), setting)) if best and classes else None,
        portrait=(lambda: _portrait(slot, _best(row), setting)) if best else None,
        picture=(lambda: _picture(slot, _best(row), setting)) if best else None,
        snapshots=tuple(_snapshot(slot, moment, setting) for moment in slot.moments),
        n_classes=slot.n_classes,
        chance_loss=slot.chance,
        n_val=slot.n_val,
    )


def _state(slot: Slot) -> TrialState:
    if slot.exploded:
        return TrialState.EXPLODED
    return TrialState.STOPPED if slot.stopped else TrialState.COMPLETED


def _best(row: Row) -> Row:
    """The best epoch's tensors under their plain names."""
    return {name.removeprefix(BEST): tensor for name, tensor in row.items() if name.startswith(BEST)}


def _snapshot(slot: Slot, moment: Moment, setting: Setting) -> Snapshot:
    return Snapshot(
        moment.epoch,
        moment.value,
        lambda: _checkpoint(slot, moment.row, moment.epoch, setting),
        lambda: _predictions(slot, moment.row, setting) if setting.n_classes is not None else {},
    )


def _checkpoint(slot: Slot, row: Row, epoch: float, setting: Setting) -> bytes:
    trial, fence, recipe, saved = slot.job.claim.trial, slot.job.claim.fence, slot.model.recipe, named(slot.model, row)
    content = {
        "format": FORMAT,
        "model": saved["model"],
        "optimizer": {"name": recipe.rule.name, "state": saved["optimizer"], **recipe.kinds, **recipe.values},
        "epoch": epoch,
        "trial": trial.id,
        "attempt": fence.attempt,
        "seed": trial.seed,
        "hyperparameters": dict(trial.hyperparameters),
        "task": setting.options.task_name,
        "preprocessing": setting.parts(recipe).preprocessing.state(),
        "inputs": {"shape": list(setting.data.train.inputs.shape[1:]), "floating": setting.data.train.inputs.is_floating_point()},
        "n_classes": setting.n_classes,
        "curves": slot.curves,
    }
    return packed(content | ({"ema": saved["ema"]} if "ema" in saved else {}))


def _predictions(slot: Slot, row: Row, setting: Setting) -> dict[str, Any]:
    """Probabilities and targets of the validation and test parts; see ``common.predictions``."""
    recipe = slot.model.recipe
    val, test = setting.parts(recipe).val, setting.test(recipe)
    if setting.options.metric.startswith(AVERAGED) and "ema" in row:
        row = {**row, "flat": row["ema"]}  # what the search ranks by
    found: dict[str, Any] = {}
    for name, part in (("val", val), ("test", test)):
        found[name], found[f"{name}_targets"] = _predicted(slot, row, part, setting)
    return found


def _predicted(slot: Slot, row: Mapping[str, Tensor], part: Part | None, setting: Setting) -> tuple[Any, Any]:
    if part is None:
        return torch.zeros(0, setting.n_classes or 0).numpy(), torch.zeros(0, dtype=torch.int64).numpy()
    network = _network(slot, row, setting)
    outputs = torch.cat([network.predict(x)[0] for x in torch.split(part.inputs, EXAMPLES_AT_ONCE)])  # (n, C)
    return outputs.float().softmax(-1).cpu().numpy(), part.targets.cpu().numpy()


def _network(slot: Slot, row: Mapping[str, Tensor], setting: Setting) -> LoneNetwork:
    network = LoneNetwork(slot.model)
    flat = row["flat"].to(setting.device).unsqueeze(0)
    network.bind(flat, flat, {name: tensor.unsqueeze(0) for name, tensor in _buffers(row, setting).items()})
    return network


def _buffers(row: Mapping[str, Tensor], setting: Setting) -> dict[str, Tensor]:
    return {name.removeprefix("buffer."): tensor.to(setting.device) for name, tensor in row.items() if name.startswith("buffer.")}


def _portrait(slot: Slot, row: Row, setting: Setting) -> dict[str, Any]:
    """Histograms of activations and gradients on a sample of the validation part; see ``portrait``."""
    val, recipe, network = setting.parts(slot.model.recipe).val, slot.model.recipe, _network(slot, row, setting)
    inputs, targets, objective = val.inputs[: portrait.SAMPLE], val.targets[: portrait.SAMPLE], setting.objective(recipe)
    read = recipe.own | {name: recipe.values[name] for name in (*recipe.reads, *objective.reads) if name in recipe.values}
    columns = {name: torch.tensor([[value]], device=setting.device, dtype=setting.dtype) for name, value in read.items()}
    tensors = slot.model.layout.views(row["flat"].to(setting.device)) | _buffers(row, setting)
    gradients = portrait.weight_gradients(
        slot.model.module,
        tensors,
        network.layers,
        inputs,
        lambda outputs: objective(outputs.unsqueeze(0), targets, columns).gradient[0],
    )
    return portrait.portrait(network.observe(inputs), gradients)


def _picture(slot: Slot, row: Row, setting: Setting) -> bytes | None:
    """The first layer's weights, where its inputs are images."""
    shape = setting.image_shape if setting.parts(slot.model.recipe).preprocessing.keeps_shape else None
    weights = (view for view in slot.model.layout.views(row["flat"]).values() if view.dim() >= 2)
    images = portrait.tiles(next(weights), shape) if shape is not None else None
    return portrait.picture(images) if images is not None else None
