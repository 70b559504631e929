"""Made rankings: records whose accuracy is a known function of their hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.folder.record import Record
from common.search.search_file import Search
from common.search.space import Space
from common.search.stage import Stage
from common.search.trial import Result, Trial, TrialState, trial_id
from common.search.values import Hyperparameters, Scalar
from master.stages.sampling import configurations
from master.stages.source import first_source

COARSE = Stage(name="coarse", trials=200, epochs=1)
ID = "0" * 16


def searching(space: Space, *stages: Stage, **more: Any) -> Search:
    """A search over this space that was launched; without a stage, COARSE."""
    return Search(
        **{
            "name": "s",
            "task": "mine.py:Mine",
            "id": ID,
            "space": space,
            "stages": stages or (COARSE,),
            **more,
        }
    )


def first_trials(search: Search, indices: range) -> list[Trial]:
    """The trials of a search's first stage with these numbers."""
    return configurations(search, search.stages[0], first_source(search), indices)


def record(index: int, hyperparameters: Mapping[str, Scalar], **more: object) -> Record:
    values: dict[str, object] = {
        "search_id": ID,
        "trial": trial_id("coarse", index),
        "stage": "coarse",
        "index": index,
        "seed": index,
        "budget_epochs": 1.0,
        "hyperparameters": dict(hyperparameters),
        "attempt": 1,
        "state": TrialState.COMPLETED,
        "val_loss": 0.5,
        "epochs": 1.0,
    }
    return Record.model_validate(values | more)


def ranking(
    values: Sequence[float], name: str = "learning_rate", best: float = 1.0, n_others: int = 0
) -> list[Record]:
    """Completed trials, best first, whose hyperparameter has these values."""
    return [
        record(i + n_others, {name: value}, val_acc=best - 0.001 * i)
        for i, value in enumerate(values)
    ]


def exploded(
    values: Sequence[Scalar], name: str = "learning_rate", start: int = 5000
) -> list[Record]:
    return [
        record(
            start + i,
            {name: value},
            state=TrialState.EXPLODED,
            reason="loss above 3 x its first",
            val_acc=None,
        )
        for i, value in enumerate(values)
    ]


def sampled(
    space: Space, accuracy: Callable[[Hyperparameters], float | None], n: int = 200, seed: int = 1
) -> list[Record]:
    """Make a stage's records as sampled; a function gives the accuracy, None for an explosion."""
    records = []
    for trial in first_trials(searching(space, seed=seed, sampler="random"), range(n)):
        value = accuracy(trial.hyperparameters)
        state = TrialState.EXPLODED if value is None else TrialState.COMPLETED
        result = Result(
            state, val_acc=value, val_loss=None if value is None else 1 - value, epochs=1.0
        )
        records.append(Record.of(ID, trial, 1, result))
    return records


def peak(optimum: float, name: str = "learning_rate") -> Callable[[Hyperparameters], float]:
    """Accuracy that falls with the distance from an optimum, in decades."""
    return lambda h: 0.95 - 0.1 * abs(math.log10(float(h[name])) - math.log10(optimum))


def between(low: float, high: float, n: int) -> list[float]:
    """Evenly spread in log10, both ends included."""
    return [
        10 ** (math.log10(low) + (math.log10(high) - math.log10(low)) * i / (n - 1))
        for i in range(n)
    ]
