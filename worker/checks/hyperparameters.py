"""Check that the task or the engine reads every hyperparameter, to find mistyped names."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import torch

from common.search.hyperparameters import BUILT_IN_TASKS, ENGINE
from common.search.values import Hyperparameters
from worker.checks.plan import Configuration
from worker.checks.report import Finding, Status
from worker.tasks.base import Part, Task, names, own_loss
from worker.training.math.recipe import Recorded
from worker.training.model.groups import read_groups
from worker.training.model.lazy import give_sizes


def check_all_read(
    task: Task, name: str, batch: Part, middle: Hyperparameters, options: Sequence[Configuration]
) -> Finding:
    """Check that every hyperparameter is read by the task or the engine.

    A hyperparameter counts as read if the engine reads it, if the task reads it in any of the
    configurations, or if its name occurs in the task's source.

    Args:
        task: the task whose ``model`` and ``loss`` are called.
        name: of the task, as in the search file.
        batch: examples for the model's forward and the task's own loss.
        middle: the centre of the space.
        options: other configurations. They are tried if the centre leaves a hyperparameter unread.
    """
    read: set[str] = set(ENGINE) | set(BUILT_IN_TASKS.get(name, {}))
    configurations = [middle, *(option.values for option in options)]
    own = list(dict.fromkeys(name for values in configurations for name in values))
    for values in configurations:
        if not set(own) - read:
            break
        read |= _read_by(task, values, batch)
    unread = [key for key in own if key not in read and not names(task, key)]
    if not unread:
        return Finding(
            "hyperparameters",
            Status.PASSED,
            f"all {len(own)} are read by the task or the engine",
        )
    told = [f"{key}{_meant(key, read)}" for key in unread]
    means = (
        "Its values have no effect: correct its name, read it in model(hp) or loss, or remove it "
        "from [space]."
    )
    return Finding(
        "hyperparameters",
        Status.WARNING,
        f"never read: {', '.join(told)}",
        means,
        {"unread": ", ".join(unread)},
    )


def _meant(key: str, known: set[str]) -> str:
    close = get_close_matches(key, sorted(known), n=1, cutoff=0.7)
    return f" (is {close[0]} meant?)" if close else ""


def _read_by(task: Task, values: Hyperparameters, batch: Part) -> set[str]:
    hp = Recorded(values)
    module = task.model(hp)
    give_sizes(module, batch.inputs)
    read_groups(task, module, hp)
    # A model may read hyperparameters in its forward.
    outputs = module.to(torch.float64)(batch.inputs)
    if (loss := own_loss(task)) is not None:
        loss(outputs, batch.targets, hp)
    return hp.read
