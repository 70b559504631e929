"""What is kept of a trial that ended: the content of its weights file, its predictions, its weights over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common.trial import TrialState
from worker.tasks.base import Part
from worker.training.interface import Outcome, Snapshot
from worker.training.networks import LoneNetwork
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
    found: dict[str, Any] = {}
    for name, part in (("val", val), ("test", test)):
        found[name], found[f"{name}_targets"] = _predicted(slot, row, part, setting)
    return found


def _predicted(slot: Slot, row: Mapping[str, Tensor], part: Part | None, setting: Setting) -> tuple[Any, Any]:
    if part is None:
        return torch.zeros(0, setting.n_classes or 0).numpy(), torch.zeros(0, dtype=torch.int64).numpy()
    network = LoneNetwork(slot.model)
    flat = row["flat"].to(setting.device).unsqueeze(0)
    buffers = {name.removeprefix("buffer."): t.to(setting.device).unsqueeze(0) for name, t in row.items() if name.startswith("buffer.")}
    network.bind(flat, flat, buffers)
    outputs = torch.cat([network.predict(x)[0] for x in torch.split(part.inputs, EXAMPLES_AT_ONCE)])  # (n, C)
    return outputs.float().softmax(-1).cpu().numpy(), part.targets.cpu().numpy()
