"""The files of a trial that keeps its weights: these, what they predict, and the same two over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common import durable, predictions
from common.checkpoint_name import MOST_NAMED, CheckpointName, epoch_number
from common.records import StageFolder
from worker.training.interface import Outcome


@dataclass(frozen=True)
class Kept:
    """What the record says of the files."""

    checkpoint: str
    snapshots: list[str]
    portrait: dict[str, Any] | None = None


def keep(
    folder: StageFolder,
    outcomes: Mapping[CheckpointName, Outcome],
    say: Callable[[str], None],
    moved: Callable[[], None] = lambda: None,
) -> dict[str, Kept]:
    """Writes the files of these outcomes, durable on return.

    Args:
        folder: of their stage.
        outcomes: those with weights, by the names that these get.
        say: told what could not be predicted or drawn.
        moved: told before each model predicts, which may take as long as an epoch: the work goes on.

    Returns:
        By trial id.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    files: dict[Path, bytes] = {}
    kept = {}
    for name, outcome in outcomes.items():
        over_time = _snapshots(name, outcome)
        moved()
        files |= _pair(folder.path, name, outcome.checkpoint, outcome.predictions, say)
        for snapshot, (weights, predicted) in over_time.items():
            moved()
            files |= _pair(folder.snapshots, snapshot, weights, predicted, say)
        drawn = _tried(name, "picture", outcome.picture, say)
        files |= {folder.picture_path(name.trial_id, name.attempt): drawn} if drawn else {}
        kept[name.trial_id] = Kept(str(name), [str(snapshot) for snapshot in over_time], _tried(name, "portrait", outcome.portrait, say))
    if any(path.parent == folder.pictures for path in files):
        durable.make_folder(folder.pictures)
    if any(kept_one.snapshots for kept_one in kept.values()):
        durable.make_folder(folder.snapshots)
    durable.write_new(files)
    return kept


T = TypeVar("T")
Weights = Callable[[], bytes] | None
Predicted = Callable[[], dict[str, Any]] | None


def _snapshots(name: CheckpointName, outcome: Outcome) -> dict[CheckpointName, tuple[Weights, Predicted]]:
    """By name; of two in one epoch with one value, the later. What was not measured has no name."""
    return {
        CheckpointName(s.value, name.trial_id, epoch_number(s.epoch), name.attempt, name.metric): (s.checkpoint, s.predictions)
        for s in outcome.snapshots
        if math.isfinite(s.value) and abs(s.value) < MOST_NAMED
    }


def _pair(folder: Path, name: CheckpointName, weights: Weights, predicted: Predicted, say: Callable[[str], None]) -> dict[Path, bytes]:
    """Predictions first: where weights are, what they predict is too."""
    files = {}
    if predicted is not None and (content := _packed(name, predicted, say)) is not None:
        files[folder / name.predictions] = content
    if weights is not None:
        files[folder / str(name)] = weights()
    return files


def _packed(name: CheckpointName, predicted: Callable[[], dict[str, Any]], say: Callable[[str], None]) -> bytes | None:
    try:
        arrays = predicted()
        return predictions.pack(arrays) if arrays else None  # a task without classes has none
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever a user's model raises on the test part: its weights count for more than its place in an ensemble
        say(f"{name}: has no predictions beside it, so it takes part in no ensemble ({type(error).__name__}: {error})")
        return None


def _tried(name: CheckpointName, what: str, make: Callable[[], T] | None, say: Callable[[str], None]) -> T | None:
    """What ``make`` makes; None, and told, where the user's model raises: its weights count for more than how they look."""
    if make is None:
        return None
    try:
        return make()
    except (Exception, SystemExit) as error:
        say(f"{name}: has no {what} ({type(error).__name__}: {error})")
        return None
