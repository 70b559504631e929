"""What is kept of a trial that ended: its weights file, its predictions, its snapshots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from common.search.search_file import AVERAGED
from common.search.trial import TrialState
from worker.tasks import trees
from worker.tasks.base import Part
from worker.training.math.precision import multiplying
from worker.training.model.network import Network
from worker.training.model.networks import network_for
from worker.training.outcome import histograms
from worker.training.stacked.rows import Row, best, name_tensors, take_row
from worker.training.stacked.slot import Moment, Slot, pack
from worker.training.stacked.training_data import Setting
from worker.training.types import Outcome, Snapshot

FORMAT = 2  # of a weights file
EXAMPLES_AT_ONCE = 1024


def outcome(
    slot: Slot,
    rows: Row,
    on_host: Callable[[], Row],
    place: int,
    setting: Setting,
    sums: Sequence[float] = (),
) -> Outcome:
    """Return the outcome of a trial that ended.

    Args:
        slot: the trial.
        rows: the tensors of some slots, (n, ...) each, which do not change any more.
        on_host: returns the same on the CPU, for all states at once.
        place: of the trial's own.
        setting: what all arrays share.
        sums: of the monitor, to resume with if the trial's budget grows.
    """

    def row() -> Row:
        return take_row(rows, place)

    epoch, classes = slot.history.best_epoch, setting.n_classes is not None
    found = epoch is not None
    state = _state(slot)
    return Outcome(
        claim=slot.claim,
        state=state,
        reason=slot.exploded or slot.stopped,
        **slot.collect_measurements(),
        guess_acc=setting.largest_share,
        batches=setting.told_batches,
        checkpoint=(lambda: _checkpoint(slot, best(row()), epoch, setting))
        if epoch is not None
        else None,
        predictions=(lambda: _predictions(slot, best(row()), setting))
        if found and classes
        else None,
        portrait=(lambda: _portrait(slot, best(row()), setting)) if found else None,
        picture=(lambda: _picture(slot, best(row()), setting)) if found else None,
        resume=(lambda: {**slot.state(take_row(on_host(), place)), "monitor": list(sums)})
        if state is TrialState.COMPLETED
        else None,
        snapshots=tuple(_snapshot(slot, moment, setting) for moment in slot.moments),
        n_classes=slot.n_classes,
    )


def _state(slot: Slot) -> TrialState:
    if slot.exploded:
        return TrialState.EXPLODED
    return TrialState.STOPPED if slot.stopped else TrialState.COMPLETED


def _snapshot(slot: Slot, moment: Moment, setting: Setting) -> Snapshot:
    return Snapshot(
        moment.epoch,
        moment.value,
        lambda: _checkpoint(slot, moment.row, moment.epoch, setting),
        lambda: _predictions(slot, moment.row, setting) if setting.n_classes is not None else {},
    )


def _checkpoint(slot: Slot, row: Row, epoch: float, setting: Setting) -> bytes:
    trial, fence, recipe = slot.claim.trial, slot.claim.fence, slot.model.recipe
    # A trial that may be promoted resumes from its state, not from this file. Without the
    # optimizer's states, the file takes half as long to write.
    saved = name_tensors(slot.model, row, optimizer=trial.epochs >= trial.horizon)
    content = {
        "format": FORMAT,
        "model": saved["model"],
        "optimizer": {
            "name": recipe.rule.name,
            "state": saved["optimizer"],
            **recipe.kinds,
            **recipe.values,
        },
        "epoch": epoch,
        "trial": trial.id,
        "attempt": fence.attempt,
        "seed": trial.seed,
        "hyperparameters": dict(trial.hyperparameters),
        "task": setting.options.task_name,
        "preprocessing": setting.parts(recipe).preprocessing.state(),
        "inputs": trees.describe(setting.data.train.inputs),
        "n_classes": setting.n_classes,
        "curves": slot.history.curves,
    }
    return pack(content | ({"ema": saved["ema"]} if "ema" in saved else {}))


def _predictions(slot: Slot, row: Row, setting: Setting) -> dict[str, Any]:
    """Return probabilities and targets of the validation and test parts.

    See ``common.folder.predictions``.
    """
    recipe = slot.model.recipe
    val, test = setting.parts(recipe).val, setting.test(recipe)
    if setting.options.metric.startswith(AVERAGED) and "ema" in row:
        row = {**row, "flat": row["ema"]}  # the search ranks by the averaged weights
    found: dict[str, Any] = {}
    for name, part in (("val", val), ("test", test)):
        found[name], found[f"{name}_targets"] = _predict(slot, row, name, part, setting)
    return found


def _predict(
    slot: Slot, row: Mapping[str, Tensor], name: str, part: Part | None, setting: Setting
) -> tuple[Any, Any]:
    if part is None:
        return torch.zeros(0, setting.n_classes or 0).numpy(), torch.zeros(
            0, dtype=torch.int64
        ).numpy()
    network, precision = _network(slot, row, setting), slot.model.recipe.kind("precision")
    with multiplying(precision, setting.device):
        outputs, targets = zip(
            *((network.predict(x)[0], y) for x, y in setting.pieces(name, part, EXAMPLES_AT_ONCE)),
            strict=True,
        )  # (n, C), (n,) in pieces
    return (
        torch.cat(outputs).float().softmax(-1).cpu().numpy(),
        torch.cat(targets).cpu().numpy(),
    )


def _network(slot: Slot, row: Mapping[str, Tensor], setting: Setting) -> Network:
    network = network_for(slot.model, lone=True)
    flat = row["flat"].to(setting.device).unsqueeze(0)
    network.bind(
        flat, flat, {name: tensor.unsqueeze(0) for name, tensor in _buffers(row, setting).items()}
    )
    return network


def _buffers(row: Mapping[str, Tensor], setting: Setting) -> dict[str, Tensor]:
    return {
        name.removeprefix("buffer."): tensor.to(setting.device)
        for name, tensor in row.items()
        if name.startswith("buffer.")
    }


def _portrait(slot: Slot, row: Row, setting: Setting) -> dict[str, Any]:
    """Return histograms of activations and gradients on a sample of the validation part."""
    val, recipe, network = (
        setting.parts(slot.model.recipe).val,
        slot.model.recipe,
        _network(slot, row, setting),
    )
    few = slice(histograms.SAMPLE)
    inputs, targets, objective = (
        trees.pick(val.inputs, few),
        trees.pick(val.targets, few),
        setting.objective(recipe),
    )
    columns = setting.columns(recipe, objective)
    tensors = slot.model.layout.views(row["flat"].to(setting.device)) | _buffers(row, setting)
    gradients = histograms.weight_gradients(
        slot.model.module,
        tensors,
        network.layers,
        inputs,
        lambda outputs: trees.pick(
            objective(
                trees.map_leaves(lambda one: one.unsqueeze(0), outputs), targets, columns
            ).gradient,
            0,
        ),
    )
    return histograms.portrait(network.observe(inputs), gradients)


def _picture(slot: Slot, row: Row, setting: Setting) -> bytes | None:
    """Return a PNG of the first layer's weights, or None if its inputs are no images."""
    shape = (
        setting.image_shape if setting.parts(slot.model.recipe).preprocessing.keeps_shape else None
    )
    weights = (view for view in slot.model.layout.views(row["flat"]).values() if view.dim() >= 2)
    images = histograms.tiles(next(weights), shape) if shape is not None else None
    return histograms.picture(images) if images is not None else None
