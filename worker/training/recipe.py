"""The engine's own hyperparameters, read from a configuration; the rest is the task's."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from common.errors import TaskError
from common.practice import ENGINE, Kind, Number, Whole
from common.space import Scalar
from worker.training.optimizers import RULES, SGD, UpdateRule

NUMBERS = tuple(name for name, entry in ENGINE.items() if isinstance(entry, Number))  # the columns of the rows' "hp"
DEFAULTS = {name: entry.default or 0.0 for name, entry in ENGINE.items() if isinstance(entry, Number)}
KINDS = {name: entry.default for name, entry in ENGINE.items() if isinstance(entry, Kind)}
COLUMN = {name: place for place, name in enumerate(NUMBERS)}


@dataclass(frozen=True)
class Recipe:
    """How a trial is trained."""

    rule: UpdateRule
    batch_size: int
    kinds: Mapping[str, str | bool]  # schedule, loss, ...
    values: dict[str, float]  # of every number that the engine knows
    val_passes: int = 0
    averaged: bool = False  # whether a running average of the parameters is kept: where the space names "ema"
    own: dict[str, float] = field(default_factory=dict)  # numbers that only the task's own loss knows
    reads: tuple[str, ...] = ()  # numbers that the task's own loss may read: those, and the engine's that the space names
    plain: dict[str, Scalar] = field(default_factory=dict)  # words and whole numbers, for the task's own loss

    @property
    def key(self) -> Hashable:
        """What trials have to have in common to share an array, besides the model."""
        return (
            *(self.rule, self.batch_size, self.val_passes, self.averaged),
            *(tuple(sorted(self.kinds.items())), self.reads, tuple(sorted(self.plain.items()))),
        )

    def kind(self, name: str) -> str:
        """The word chosen for ``name``."""
        return str(self.kinds[name])


class MissingHyperparameterError(TaskError, KeyError):
    """A task reads what the search does not set. A KeyError, so that ``hp.get`` and ``in`` work as on any mapping."""

    def __str__(self) -> str:
        """The message as it is: a plain KeyError shows it in quotes."""
        return Exception.__str__(self)


class Recorded(Mapping[str, Scalar]):
    """A configuration that remembers which of its hyperparameters were read."""

    def __init__(self, hp: Mapping[str, Scalar]) -> None:
        self._hp = hp
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Scalar:
        self.read.add(name)
        if name not in self._hp:
            known = ", ".join(self._hp) or "nothing"
            raise MissingHyperparameterError(
                f'hp["{name}"]: [space] has no {name} ({known}); add it, or read it with a default: hp.get("{name}", ...)'
            )
        return self._hp[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hp)

    def __len__(self) -> int:
        return len(self._hp)

    @property
    def given(self) -> dict[str, Scalar]:
        """The configuration itself: reading it here is not the task's reading."""
        return dict(self._hp)

    def unread(self) -> set[str]:
        """Those that neither the task nor the engine knows."""
        return set(self._hp) - self.read - ENGINE.keys()


def read_recipe(hp: Mapping[str, Scalar], preprocess: str = "none", own_loss: bool = False) -> Recipe:
    """Reads what the engine knows; ``common.practice`` has the names, bounds and defaults.

    Args:
        hp: the configuration.
        preprocess: the task's default.
        own_loss: whether the task brings its loss, which may read any hyperparameter.

    Raises:
        TaskError: one is missing, of the wrong type, or out of its bounds.
    """
    hp = hp.given if isinstance(hp, Recorded) else hp  # a plain dict is read ten times as fast
    if "learning_rate" not in hp:
        raise TaskError("learning_rate is missing; add it to [space], such as learning_rate = { log_uniform = [1e-6, 1e1] }")
    for name in hp.keys() & ENGINE.keys():
        if (why := ENGINE[name].refusal(hp[name])) is not None:
            raise TaskError(f"{name} = {hp[name]!r}: {why}; correct [space]")
    kinds: dict[str, str | bool] = KINDS | {"preprocess": preprocess}
    kinds |= {name: value for name in kinds.keys() & hp.keys() if isinstance(value := hp[name], str | bool)}
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
        {name: value for name, value in theirs.items() if name not in own},
    )


def _whole(name: str) -> int:
    entry = ENGINE[name]
    assert isinstance(entry, Whole)
    return entry.default


def _rule(name: str, nesterov: bool, values: Mapping[str, float]) -> UpdateRule:
    if name != SGD.name:
        return RULES[name]()
    if nesterov and values["momentum"] == 0:
        raise TaskError("nesterov = true looks ahead along the momentum, which is 0; add momentum = 0.9 to [space]")
    return SGD(nesterov)
