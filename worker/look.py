"""A look at the test part: counted, since each one that guides a choice makes the next less honest."""

from __future__ import annotations

from pathlib import Path

import torch

from common.errors import TaskError
from common.intervals import wilson
from common.ledger import note
from common.options import DATA_FOLDER
from common.records import home_of
from common.search import AVERAGED, Search
from worker.tasks.base import Part, Task, own_loss, own_metrics
from worker.tasks.loader import load_class
from worker.training.evaluate import Saved, held_out, load, ranked_weights
from worker.training.metrics import Metric


def look(checkpoint: Path, weights: str | None = None, data: Path = DATA_FOLDER) -> str:
    """Measures a checkpoint on the test part of its search's task, and notes that it was done.

    Args:
        weights: ``raw`` or ``ema``; None for those that the search ranks by.
        data: where built-in tasks have their files.

    Raises:
        CheckpointError: the file is missing, damaged, not in a search's folder, or the folder cannot be written.
        ConfigError: it holds no such weights.
        TaskError: the task has no test part, or cannot be loaded.
    """
    folder, name = home_of(checkpoint)
    search = folder.search()
    assert search is not None  # it was launched
    path = checkpoint.resolve()
    task = load_class(search.task_in_folder, folder.path, data)
    weights = weights or ranked_weights(search)
    saved = load(path, task, search.task, torch.device("cpu"), weights)
    part, classes = held_out(task), saved.n_classes is not None
    outputs = saved.outputs(part.inputs)
    entry: dict[str, object] = {"checkpoint": str(path.relative_to(folder.path)), "weights": weights, "n": len(part)}
    told = []
    if classes:
        correct = int((outputs.argmax(-1) == part.targets).sum())
        low, high = wilson(correct, len(part))
        entry["correct"] = correct
        told.append(f"test accuracy {correct / len(part):.4f}, 95 % interval {low:.4f} to {high:.4f} ({correct} of {len(part)})")
    if search.metric.removeprefix(AVERAGED) not in ("val_acc", "val_loss") or not classes:
        entry[search.metric] = value = _own(search, task, saved, outputs, part)
        told.append(f"{search.metric} {value:.4f} on the test part ({len(part)} examples)")
    looks = note(folder, [entry])
    return f"{name.trial_id}: {', '.join(told)}; {looks.told}"


def _own(search: Search, task: Task, saved: Saved, outputs: torch.Tensor, part: Part) -> float:
    """The search's metric where it is the task's own, or its own loss.

    Raises:
        TaskError: the task has neither.
    """
    metrics, loss, metric = own_metrics(task), own_loss(task), search.metric.removeprefix(AVERAGED)
    targets = part.targets.to(saved.dtype) if part.targets.is_floating_point() else part.targets
    if metric in metrics:
        return float(Metric(metric, metrics[metric])(outputs.unsqueeze(0), targets)[0])
    if loss is None:
        raise TaskError(f"metric = {search.metric!r}: the task no longer measures it; was it changed since the launch?")
    return float(loss(outputs, targets, saved.hyperparameters))
