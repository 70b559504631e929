"""Parameter groups of a task: parameters with a learning rate or decay of their own, or frozen.

They are those of ``torch.optim``. A task's ``param_groups(model, hp)`` returns them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from common.errors import TaskError
from worker.tasks.base import Task, no_exit

KEYS = {"learning_rate": "learning_rate", "lr": "learning_rate", "weight_decay": "weight_decay"}
FROZEN = "requires_grad"


@dataclass(frozen=True)
class Group:
    """Trained parameters with a learning rate or a weight decay of their own.

    None means that of the trial. A decay of its own acts on all parameters of the group, as in
    torch; that of the trial on weights of two and more dimensions.
    """

    names: tuple[str, ...]
    learning_rate: float | None
    weight_decay: float | None


def read_groups(task: Task, module: nn.Module, hp: Mapping[str, Any]) -> list[Group]:
    """Return the task's groups of trained parameters, and freeze those that are not to be trained.

    Args:
        task: the task. Without ``param_groups`` there are no groups.
        module: the model, whose frozen parameters get ``requires_grad`` False.
        hp: the configuration.

    Raises:
        TaskError: the groups cannot be used.
        Exception: whatever ``param_groups`` raises.
    """
    ask = getattr(task, "param_groups", None)
    if ask is None:
        return []
    with no_exit("param_groups(model, hp)"):
        given = ask(module, hp)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    seen: set[str] = set()
    groups: list[Group] = []
    for place, group in enumerate(_listed(given)):
        where = f"param_groups(model, hp)[{place}]"
        own = _names(where, group, names)
        if twice := sorted(seen.intersection(own)):
            raise TaskError(f"{where}: {twice[0]} is in a group already; put it into one")
        seen |= set(own)
        if group.get(FROZEN, True) is False:
            for name in own:
                module.get_parameter(name).requires_grad_(False)
            continue
        values = {KEYS[key]: _number(where, key, group[key]) for key in KEYS.keys() & group.keys()}
        trained = tuple(name for name in own if module.get_parameter(name).requires_grad)
        if values and trained:
            groups.append(Group(trained, values.get("learning_rate"), values.get("weight_decay")))
    return groups


def _listed(given: Any) -> list[Mapping[str, Any]]:
    if not isinstance(given, Iterable) or isinstance(given, Mapping):
        raise TaskError(
            f"param_groups(model, hp) returned a {type(given).__name__}; return a list of dicts "
            'like {"params": model.head.parameters(), "learning_rate": 0.01}'
        )
    return list(given)


def _names(where: str, group: Any, names: Mapping[int, str]) -> list[str]:
    if not isinstance(group, Mapping) or "params" not in group:
        raise TaskError(
            f'{where} has no "params"; name the parameters: {{"params": model.head.parameters(), '
            '"learning_rate": 0.01}'
        )
    if unknown := [key for key in group if key not in (*KEYS, FROZEN, "params")]:
        raise TaskError(
            f"{where}: {unknown[0]!r} is the same for all groups; only {', '.join(KEYS)} and "
            f"{FROZEN} may differ"
        )
    given = group["params"]
    given = [given] if isinstance(given, Tensor) else list(given)
    foreign = [one for one in given if id(one) not in names]
    if foreign:
        raise TaskError(
            f"{where}: a {type(foreign[0]).__name__} is no parameter of the model; take them from "
            "model, such as model.head.parameters()"
        )
    return [names[id(one)] for one in given]


def _number(where: str, key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise TaskError(f"{where}: {key} = {value!r}; a number of at least 0 is needed")
    return number
