"""`worker test`: measure a checkpoint on the test part.

Each look is counted, since each one that guides a choice makes the next less honest.
"""

from __future__ import annotations

from pathlib import Path

import torch

from common.errors import TaskError
from common.folder.ledger import note
from common.folder.record import format_metric
from common.folder.records import home_of
from common.intervals import wilson
from common.options import DATA_FOLDER
from common.search.search_file import AVERAGED, Search
from worker.tasks import trees
from worker.tasks.base import PART_PREFIX, Task, own_loss, own_metrics
from worker.tasks.loader import load_class
from worker.tasks.trees import Tree
from worker.training.math.losses import take_apart
from worker.training.math.metrics import Metric
from worker.training.outcome.evaluate import Saved, find_ranked_weights, load, predict_test_part


def look(checkpoint: Path, weights: str | None = None, data: Path = DATA_FOLDER) -> str:
    """Measure a checkpoint on the test part of its search's task, and count the look.

    Args:
        checkpoint: the weights file.
        weights: ``raw`` or ``ema``. None means the weights that the search ranks by.
        data: where built-in tasks have their files.

    Returns:
        The result as one line of text.

    Raises:
        CheckpointError: the file is missing, damaged or not in a search's folder, or the folder
            cannot be written.
        ConfigError: the checkpoint does not hold these weights.
        TaskError: the task has no test part, or cannot be loaded.
    """
    folder, name = home_of(checkpoint)
    search = folder.search()
    assert search is not None  # `home_of` found its search file
    path = checkpoint.resolve()
    task = load_class(search, folder, data)
    weights = weights or find_ranked_weights(search)
    saved = load(path, task, search.task, torch.device("cpu"), weights)
    classes = saved.n_classes is not None
    outputs, targets = predict_test_part(saved, task)
    n = trees.count_rows(targets)
    entry: dict[str, object] = {
        "checkpoint": str(path.relative_to(folder.path)),
        "weights": weights,
        "n": n,
    }
    told = []
    if classes:
        correct = int((outputs.argmax(-1) == targets).sum())
        low, high = wilson(correct, n)
        entry["correct"] = correct
        told.append(
            f"test accuracy {correct / n:.4f}, 95 % interval {low:.4f} to {high:.4f} "
            f"({correct} of {n})"
        )
    if search.metric.removeprefix(AVERAGED) not in ("val_acc", "val_loss") or not classes:
        entry[search.metric] = value = _own(search, task, saved, outputs, targets)
        told.append(f"{search.metric} {format_metric(value)} on the test part ({n} examples)")
    looks = note(folder, [entry])
    return f"{name.trial_id}: {', '.join(told)}; {looks.told}"


def _own(search: Search, task: Task, saved: Saved, outputs: Tree, targets: Tree) -> float:
    """Return the search's metric on the test part, from the task's own metric or its own loss.

    Raises:
        TaskError: the task has neither.
    """
    metrics, loss, metric = own_metrics(task), own_loss(task), search.metric.removeprefix(AVERAGED)
    targets = trees.move(targets, torch.device("cpu"), saved.dtype)
    if metric in metrics:
        one = trees.map_leaves(lambda output: output.unsqueeze(0), outputs)
        return float(Metric(metric, metrics[metric])(one, targets)[0])
    if loss is None:
        raise TaskError(
            f"metric = {search.metric!r}: the task no longer measures it; was it changed since the "
            "launch?"
        )
    total, parts = take_apart(loss(outputs, targets, saved.hyperparameters))
    return float(parts.get(metric.removeprefix(PART_PREFIX), total))
