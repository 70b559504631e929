"""The engine's hyperparameters, read from a configuration. All others are the task's."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import TaskError
from common.search.hyperparameters import ENGINE, Kind, Number, Whole
from common.search.values import Value, hashable, own_copy
from worker.training.math.optimizers import RULES, SGD, UpdateRule

# The columns of the rows' "hp".
NUMBERS = tuple(name for name, entry in ENGINE.items() if isinstance(entry, Number))
DEFAULTS = {
    name: entry.default or 0.0 for name, entry in ENGINE.items() if isinstance(entry, Number)
}
KINDS = {name: entry.default for name, entry in ENGINE.items() if isinstance(entry, Kind)}
COLUMN = {name: place for place, name in enumerate(NUMBERS)}


@dataclass(frozen=True)
class Recipe:
    """How a trial is trained."""

    rule: UpdateRule
    batch_size: int
    kinds: Mapping[str, str | bool]  # schedule, loss, ...
    values: dict[str, float]  # every number that the engine knows
    val_passes: int = 0
    # Whether a running average of the parameters is kept. It is if the space has "ema".
    averaged: bool = False
    # Numbers that only the task's own loss knows.
    own: dict[str, float] = field(default_factory=dict)
    # Numbers that the task's own loss may read: ``own``, and the engine's that are in the space.
    reads: tuple[str, ...] = ()
    # Strings, booleans and whole numbers for the task's own loss.
    plain: dict[str, Any] = field(default_factory=dict)
    # Pieces that a batch is computed in, one after the other; their gradients are added.
    accumulate: int = 1
    # The stage whose teacher the trial learns from. None: it learns from the targets alone.
    teacher: str | None = None

    @property
    def key(self) -> Hashable:
        """What trials must have in common to share an array, besides the model."""
        return (
            *(self.rule, self.batch_size, self.accumulate, self.val_passes, self.averaged),
            *(
                tuple(sorted(self.kinds.items())),
                self.reads,
                hashable(self.plain),
                self.teacher,
            ),
        )

    def kind(self, name: str) -> str:
        """Return the string chosen for ``name``."""
        return str(self.kinds[name])


class MissingHyperparameterError(TaskError, KeyError):
    """A task reads a hyperparameter that the search does not set.

    It is a KeyError, so that ``hp.get`` and ``in`` work as on any mapping.
    """

    def __str__(self) -> str:
        """Return the message as it is. A plain KeyError shows it in quotes."""
        return Exception.__str__(self)


class Recorded(Mapping[str, Value]):
    """A configuration that records which of its hyperparameters were read."""

    def __init__(self, hp: Mapping[str, Value]) -> None:
        self._hp = hp
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Value:
        self.read.add(name)
        if name not in self._hp:
            known = ", ".join(self._hp) or "nothing"
            raise MissingHyperparameterError(
                f'hp["{name}"]: [space] has no {name} ({known}), or its condition is false; '
                f'add it, or read it with a default: hp.get("{name}", ...)'
            )
        return own_copy(self._hp[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._hp)

    def __len__(self) -> int:
        return len(self._hp)

    @property
    def given(self) -> dict[str, Any]:
        """The configuration itself. Reading from it is not recorded."""
        return dict(self._hp)

    def unread(self) -> set[str]:
        """Return the hyperparameters that the task has not read and the engine does not know."""
        return set(self._hp) - self.read - ENGINE.keys()


def read_recipe(hp: Mapping[str, Any], preprocess: str = "none", own_loss: bool = False) -> Recipe:
    """Read the engine's hyperparameters.

    Their names, bounds and defaults are in ``common.search.hyperparameters``.

    Args:
        hp: the configuration.
        preprocess: the task's default.
        own_loss: whether the task has its own loss, which may read any hyperparameter.

    Raises:
        TaskError: a hyperparameter is missing, has the wrong type, or is out of bounds.
    """
    hp = hp.given if isinstance(hp, Recorded) else hp  # a plain dict is read ten times as fast
    if "learning_rate" not in hp:
        raise TaskError(
            "learning_rate is missing; add it to [space], such as learning_rate = { log_uniform = "
            "[1e-6, 1e1] }"
        )
    for name in hp.keys() & ENGINE.keys():
        if (why := ENGINE[name].refusal(hp[name])) is not None:
            raise TaskError(f"{name} = {hp[name]!r}: {why}; correct [space]")
    kinds: dict[str, str | bool] = KINDS | {"preprocess": preprocess}
    kinds |= {
        name: value
        for name in kinds.keys() & hp.keys()
        if isinstance(value := hp[name], str | bool)
    }
    rule_name = str(kinds.pop("optimizer"))
    values = DEFAULTS | RULES[rule_name].defaults
    values |= {name: float(hp[name]) for name in values.keys() & hp.keys()}
    theirs = {name: hp[name] for name in hp if own_loss and name not in COLUMN}
    own = {name: float(value) for name, value in theirs.items() if isinstance(value, float)}
    return Recipe(
        _rule(rule_name, bool(kinds.pop("nesterov")), values),
        int(hp.get("batch_size", _whole("batch_size"))),
        kinds,
        values,
        int(hp.get("val_passes", _whole("val_passes"))),
        "ema" in hp,
        own,
        tuple(sorted([*own, *(name for name in hp if name in COLUMN)])) if own_loss else (),
        {name: own_copy(value) for name, value in theirs.items() if name not in own},
        int(hp.get("accumulate", _whole("accumulate"))),
    )


def _whole(name: str) -> int:
    entry = ENGINE[name]
    assert isinstance(entry, Whole)
    return entry.default


def _rule(name: str, nesterov: bool, values: Mapping[str, float]) -> UpdateRule:
    if name != SGD.name:
        return RULES[name]()
    if nesterov and values["momentum"] == 0:
        raise TaskError(
            "nesterov = true looks ahead along the momentum, which is 0; add momentum = 0.9 to "
            "[space]"
        )
    return SGD(nesterov)
