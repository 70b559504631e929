"""Whether every hyperparameter of the search is read by somebody: a mistyped one is sampled in vain."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import torch

from common.practice import BUILT_IN_TASKS, ENGINE
from common.space import Hyperparameters
from worker.checks.plan import Configuration
from worker.checks.report import Finding, Status
from worker.tasks.base import Part, Task, own_loss
from worker.training.recipe import Recorded


def known_to_all(task: Task, name: str, batch: Part, middle: Hyperparameters, options: Sequence[Configuration]) -> Finding:
    """Those that neither the engine nor the task reads, in the centre or with any other option.

    Args:
        task: whose ``model`` and ``loss`` are called.
        name: of the task, as in the search file.
        batch: for a loss of the task's own.
        middle: the centre.
        options: read where the centre leaves something unread: an option may need it.
    """
    read: set[str] = set(ENGINE) | set(BUILT_IN_TASKS.get(name, {}))
    for values in [middle, *(option.values for option in options)]:
        if not set(middle) - read:
            break
        read |= _read_by(task, values, batch)
    unread = [key for key in middle if key not in read]
    if not unread:
        return Finding("hyperparameters", Status.PASSED, f"all {len(middle)} are read by the task or the engine")
    told = [f"{key}{_meant(key, read)}" for key in unread]
    means = "It is sampled in vain: correct its name, read it in model(hp), or remove it from [space]."
    return Finding("hyperparameters", Status.WARNING, f"read by nobody: {', '.join(told)}", means, {"unread": ", ".join(unread)})


def _meant(key: str, known: set[str]) -> str:
    close = get_close_matches(key, sorted(known), n=1, cutoff=0.7)
    return f" (is {close[0]} meant?)" if close else ""


def _read_by(task: Task, values: Hyperparameters, batch: Part) -> set[str]:
    hp = Recorded(values)
    module = task.model(hp).to(torch.float64)
    if (loss := own_loss(task)) is not None:
        loss(module(batch.inputs), batch.targets, hp)
    return hp.read
