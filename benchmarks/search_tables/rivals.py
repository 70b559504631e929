"""Reference searches that need no library: random, one halving, and BOHB."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.search_tables.tables import Task
from benchmarks.search_tables.trials import Trials
from common.search.plan import StagePlan, halving, rungs_of
from common.search.space import Space
from common.search.stage import Strategy
from common.search.values import Hyperparameters
from master.strategy.drawing import draw_many
from master.strategy.freezing import freeze

ROUNDS_FROM = 60  # full trainings from which on BOHB runs its brackets twice
BOHB = Strategy(clip=0.0, plain=1 / 3, density=1.0)


def generator_of(seed: int) -> np.random.Generator:
    """Return a search's random generator.

    It differs from the one that made a synthetic task of the same seed.
    """
    return np.random.default_rng([seed, 1])


def uniform(space: Space, n: int, generator: np.random.Generator) -> list[Hyperparameters]:
    """Return ``n`` configurations, each value drawn independently."""
    return [
        {
            name: parameter.from_unit(generator.random())
            for name, parameter in space.parameters.items()
        }
        for _ in range(n)
    ]


def random_search(task: Task, budget: float, seed: int) -> Hyperparameters:
    """Return the best of as many full trainings as the budget allows."""
    trials = Trials(task, seed)
    drawn = uniform(task.space, max(1, int(budget / task.max_epochs)), generator_of(seed))
    trials.train(trials.add(0, drawn), task.max_epochs, 0, 0)
    return trials.chosen


def one_halving(task: Task, budget: float, seed: int) -> Hyperparameters:
    """Return what one successive halving of random configurations over all rungs selects."""
    own = halving(budget, rungs_of(task.max_epochs), resumes=True)
    trials = Trials(task, seed)
    _run_bracket(trials, own, 0, uniform(task.space, own.keep[0], generator_of(seed)))
    return trials.chosen


def bohb(task: Task, budget: float, seed: int) -> Hyperparameters:
    """Return what Hyperband's brackets with BOHB's densities select.

    A promoted trial resumes where it stopped.

    Source: Falkner et al., "BOHB", ICML 2018.
    """
    rungs, trials, generator = rungs_of(task.max_epochs), Trials(task, seed), generator_of(seed)
    n_rounds = 2 if budget >= ROUNDS_FROM * task.max_epochs else 1
    for number in range(n_rounds * len(rungs)):
        own = halving(budget / len(rungs) / n_rounds, rungs[number % len(rungs) :], resumes=True)
        frozen = freeze(task.space, task.space, trials.seen)
        if frozen.good:
            drawn = [
                one.hyperparameters
                for one in draw_many(
                    task.space, frozen, seed, f"bracket{number}", range(own.keep[0]), BOHB
                )
            ]
        else:
            drawn = uniform(task.space, own.keep[0], generator)
        _run_bracket(trials, own, number, drawn)
    return trials.chosen


def _run_bracket(
    trials: Trials, own: StagePlan, number: int, drawn: Sequence[Hyperparameters]
) -> None:
    """Train new configurations by successive halving among themselves."""
    new = trials.add(number, drawn)
    trials.train(new, own.rungs[0], number, 0)
    for rung in range(1, len(own.rungs)):
        trials.promote(own, number, rung, new)
