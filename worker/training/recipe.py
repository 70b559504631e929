"""The engine's own hyperparameters, read from a configuration; the rest is the task's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from common.errors import TaskError
from common.space import Scalar
from worker.training.optimizers import RULES, SGD, Adam, UpdateRule

DEFAULT_BATCH_SIZE = 64
DEFAULT_OPTIMIZER = "sgd"
BOUNDS = {  # [low, high)
    "learning_rate": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "beta1": (0.0, 1.0),
    "beta2": (0.0, 1.0),
    "eps": (0.0, math.inf),
}
OWN = frozenset({*BOUNDS, "optimizer", "nesterov", "batch_size"})


@dataclass(frozen=True)
class Recipe:
    """How a trial is trained."""

    rule: UpdateRule
    batch_size: int
    values: dict[str, float]  # learning_rate, weight_decay and the rule's own


class Recorded(Mapping[str, Scalar]):
    """A configuration that remembers which of its hyperparameters were read."""

    def __init__(self, hp: Mapping[str, Scalar]) -> None:
        self._hp = hp
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Scalar:
        self.read.add(name)
        return self._hp[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hp)

    def __len__(self) -> int:
        return len(self._hp)

    def unread(self) -> set[str]:
        """Those that neither the task nor the engine knows."""
        return set(self._hp) - self.read - OWN


def read_recipe(hp: Mapping[str, Scalar]) -> Recipe:
    """Reads learning_rate (no default), weight_decay (0), optimizer (sgd), nesterov (false), batch_size (64) and the rule's own.

    Raises:
        TaskError: one is missing, of the wrong type, or out of its bounds.
    """
    name = hp.get("optimizer", DEFAULT_OPTIMIZER)
    if name not in RULES:
        raise TaskError(f"optimizer = {name!r}: no such optimizer; use one of {', '.join(RULES)}")
    if "learning_rate" not in hp:
        raise TaskError("learning_rate is missing; add it to [space], such as learning_rate = { log_uniform = [1e-6, 1e1] }")
    defaults = {"weight_decay": 0.0, **RULES[str(name)].defaults}
    values = {key: _number(hp.get(key, default), key) for key, default in {"learning_rate": 0.0, **defaults}.items()}
    return Recipe(_rule(str(name), hp, values), _batch_size(hp), values)


def _rule(name: str, hp: Mapping[str, Scalar], values: Mapping[str, float]) -> UpdateRule:
    nesterov = hp.get("nesterov", False)
    if not isinstance(nesterov, bool):
        raise TaskError(f"nesterov = {nesterov!r}: write true or false")
    if name == Adam.name:
        return Adam()
    if nesterov and values["momentum"] == 0:
        raise TaskError("nesterov = true looks ahead along the momentum, which is 0; add momentum = 0.9 to [space]")
    return SGD(nesterov)


def _number(value: Scalar, name: str) -> float:
    low, high = BOUNDS[name]
    if isinstance(value, bool | str) or not low <= value < high:
        raise TaskError(f"{name} = {value!r}: a number in [{low:g}, {high:g}) is needed; correct [space]")
    return float(value)


def _batch_size(hp: Mapping[str, Scalar]) -> int:
    value = hp.get("batch_size", DEFAULT_BATCH_SIZE)
    if isinstance(value, bool | str) or int(value) != value or value < 1:
        raise TaskError(f"batch_size = {value!r}: a whole number of at least 1 is needed; correct [space]")
    return int(value)
