"""The files of a trial that keeps its weights.

These are the weights, their predictions, and snapshots of both over time.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from common.folder import durable, predictions
from common.folder.checkpoint_name import MOST_NAMED, CheckpointName, epoch_number
from common.folder.records import StageFolder
from common.repeats import Repeats
from common.search.trial import TrialState
from worker.training.device_errors import refuse_poisoned
from worker.training.types import Outcome


def keep(
    folder: StageFolder,
    outcomes: Mapping[CheckpointName, Outcome],
    repeats: Repeats,
    moved: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Write the files of these outcomes. They are durable on return.

    Args:
        folder: folder of the outcomes' stage.
        outcomes: the outcomes that keep weights, by the name of the weights file.
        repeats: told of each prediction or picture that could not be made.
        moved: called before each model predicts, which may take as long as an epoch. It shows that
            the work goes on.

    Returns:
        By trial id, what its record says about the files: the record's fields ``checkpoint``,
            ``snapshots`` and ``portrait``.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    files: dict[Path, bytes] = {}
    kept: dict[str, dict[str, Any]] = {}
    for name, outcome in outcomes.items():
        over_time = _snapshots(name, outcome)
        moved()
        files |= _pair(folder.path, name, outcome.checkpoint, outcome.predictions, repeats)
        for snapshot, (weights, predicted) in over_time.items():
            moved()
            files |= _pair(folder.snapshots, snapshot, weights, predicted, repeats)
        drawn = _try(name, "picture", outcome.picture, repeats)
        files |= {folder.picture_path(name.trial_id, name.attempt): drawn} if drawn else {}
        kept[name.trial_id] = {
            "checkpoint": str(name),
            "snapshots": [str(snapshot) for snapshot in over_time],
            "portrait": _try(name, "portrait", outcome.portrait, repeats),
        }
    if any(path.parent == folder.pictures for path in files):
        durable.make_folder(folder.pictures)
    if any(fields["snapshots"] for fields in kept.values()):
        durable.make_folder(folder.snapshots)
    durable.write_new(files)
    return kept


def with_weights(outcome: Outcome) -> Outcome:
    """Return the outcome with its weights assembled.

    If that raises, return a failed outcome with the cause instead.
    """
    if outcome.checkpoint is None:
        return outcome
    try:
        content = outcome.checkpoint()
    # A user's module may do anything where its state is asked for, even exit.
    except (Exception, SystemExit) as error:
        refuse_poisoned(error, [outcome.claim])
        reason = f"its checkpoint cannot be put together: {type(error).__name__}: {error}"
        return Outcome(
            outcome.claim, TrialState.FAILED, reason, "".join(traceback.format_exception(error))
        )
    return replace(outcome, checkpoint=lambda: content)


T = TypeVar("T")
Weights = Callable[[], bytes] | None
Predicted = Callable[[], dict[str, Any]] | None


def _snapshots(
    name: CheckpointName, outcome: Outcome
) -> dict[CheckpointName, tuple[Weights, Predicted]]:
    """Return weights and predictions of the snapshots, by name.

    If two snapshots of one epoch have the same value, the later one is used. A snapshot whose value
    was not measured has no name and is left out.
    """
    return {
        CheckpointName(s.value, name.trial_id, epoch_number(s.epoch), name.attempt, name.metric): (
            s.checkpoint,
            s.predictions,
        )
        for s in outcome.snapshots
        if math.isfinite(s.value) and abs(s.value) < MOST_NAMED
    }


def _pair(
    folder: Path,
    name: CheckpointName,
    weights: Weights,
    predicted: Predicted,
    repeats: Repeats,
) -> dict[Path, bytes]:
    """Return the contents of a weights file and its predictions, by path.

    Predictions come first. So wherever weights exist, their predictions do, too.
    """
    files = {}
    if predicted is not None and (content := _pack(name, predicted, repeats)) is not None:
        files[folder / name.predictions] = content
    if weights is not None:
        files[folder / str(name)] = weights()
    return files


def _pack(
    name: CheckpointName, predicted: Callable[[], dict[str, Any]], repeats: Repeats
) -> bytes | None:
    try:
        arrays = predicted()
        return predictions.pack(arrays) if arrays else None  # a task without classes has none
    # A user's model may raise anything on the test part. The weights are kept all the same.
    except (Exception, SystemExit) as error:
        refuse_poisoned(error)
        repeats.tell(
            ("predictions", type(error)),
            f"{name}: has no predictions beside it, so it takes part in no ensemble "
            f"({type(error).__name__}: {error})",
        )
        return None


def _try(
    name: CheckpointName, what: str, make: Callable[[], T] | None, repeats: Repeats
) -> T | None:
    """Return what ``make`` returns, or None if the user's model raises.

    The exception is logged only: the weights are worth keeping without a picture.
    """
    if make is None:
        return None
    try:
        return make()
    except (Exception, SystemExit) as error:
        refuse_poisoned(error)
        repeats.tell(
            (what, type(error)), f"{name}: has no {what} ({type(error).__name__}: {error})"
        )
        return None
