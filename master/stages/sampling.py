"""Sampling of a stage's trials.

Trial n is a pure function of the seed, the stage, n, and what was frozen at the stage's launch.

Source: Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13 (2012):
random trials beat a grid because each of them tries a new value of the few hyperparameters that
matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from common.search.parameters import IntUniform
from common.search.search_file import Search
from common.search.space import Space
from common.search.stage import Stage
from common.search.trial import Trial, trial_id, trial_seed
from common.search.values import Hyperparameters, Value
from master.stages.source import StageSource
from master.strategy.drawing import Drawn, draw_many
from master.strategy.grid import grid_points
from master.strategy.sobol import sobol_points

# A double holds so many bits exactly, so a hash becomes a float in [0, 1) and never rounds up to 1.
UNIT_BITS = 53
CROWDED_GROUPS = 16  # fewer groups than this are no trouble, however few trials there are
TRIALS_A_GROUP = 4  # arrays of fewer than four trials on average hardly gain from being stacked
FEW_OPTIONS = 8  # options of an ordinary choice; whole-number ranges with more crowd a space
SUGGESTED_OPTIONS = 4  # options of the choice suggested in place of a whole-number range


def configurations(
    search: Search, stage: Stage, source: StageSource, indices: range
) -> list[Trial]:
    """Return the trials of a stage with these numbers.

    A trial does not depend on the caller or on how many trials are asked for.

    Args:
        search: gives the seed and the sampler.
        stage: gives its name and the first budget of each trial, in epochs.
        source: what was frozen when the stage was launched.
        indices: numbers of the trials wanted, from 0, ascending.
    """
    drawn = _draw_repeated(search, stage, source, indices)
    return [_trial(search, stage, n, own) for n, own in zip(indices, drawn, strict=True)]


def unit(search_seed: int, stage: str, index: int, name: str) -> float:
    """Return a number in [0, 1), uniform over trials, that depends on the arguments alone."""
    digest = hashlib.sha256(f"value/{search_seed}/{stage}/{index}/{name}".encode()).digest()
    return (int.from_bytes(digest[:8]) >> (64 - UNIT_BITS)) * 2.0**-UNIT_BITS


def crowding(space: Space, n_trials: int) -> str | None:
    """Return a warning if trials of this space will hardly ever share an array, else None.

    Args:
        space: the ranges that will be sampled.
        n_trials: how many trials the stage has.
    """
    n_groups = space.n_groups()
    if n_groups < CROWDED_GROUPS or n_groups * TRIALS_A_GROUP <= n_trials:
        return None
    remedies = [
        f"{name} = {{ choice = {_spread(parameter)} }} in place of its "
        f"{parameter.n_values:,.0f} whole numbers"
        for name, parameter in space.parameters.items()
        if isinstance(parameter, IntUniform) and parameter.n_values > FEW_OPTIONS
    ]
    structural = ", ".join(space.structural)
    advice = (
        f"write {' and '.join(remedies)}" if remedies else f"give fewer options to {structural}"
    )
    return (
        f"{n_trials:,} trials spread over {n_groups:,.0f} combinations of whole numbers and "
        f"choices. Trials of a class or of a built-in task share an array only if theirs is the "
        f"same: {advice}"
    )


def _draw_repeated(
    search: Search, stage: Stage, source: StageSource, indices: range
) -> Iterable[Drawn]:
    """Return what ``_draw`` does, each configuration as often as the stage repeats it."""
    n = stage.repeats
    if n == 1 or not indices:
        return _draw(search, stage, source, indices)
    numbers = range(indices[0] // n, indices[-1] // n + 1)
    own = dict(zip(numbers, _draw(search, stage, source, numbers), strict=True))

    def of(index: int) -> Drawn:
        number, again = divmod(index, n)
        first = trial_id(stage.name, number * n)
        return Drawn(own[number].hyperparameters, "repeat", (first,)) if again else own[number]

    return map(of, indices)


def _draw(search: Search, stage: Stage, source: StageSource, indices: range) -> Iterable[Drawn]:
    if source.repeats:
        return (_repeat(search, stage, source, index) for index in indices)
    if source.asked is not None:
        return (source.asked[index] for index in indices)
    if source.frozen is not None:
        return draw_many(
            search.space, source.frozen, search.seed, stage.name, indices, search.strategy
        )
    names = sorted(source.space.sampled)
    if search.sampler == "sobol":
        points: Iterable[Sequence[float]] = sobol_points(
            search.seed, stage.name, len(names), indices
        )
        return (Drawn(_values(source.space, names, point), "sobol") for point in points)
    if search.sampler == "grid":
        grid = grid_points(
            [source.space.sampled[name] for name in names], stage.trials // stage.repeats, indices
        )
        return (Drawn(_values(source.space, names, point), "grid") for point in grid)
    return (
        Drawn(_values(source.space, names, _units(search, stage, index, names)), "plain")
        for index in indices
    )


def _units(search: Search, stage: Stage, index: int, names: Sequence[str]) -> list[float]:
    return [unit(search.seed, stage.name, index, name) for name in names]


def _repeat(search: Search, stage: Stage, source: StageSource, index: int) -> Drawn:
    """Return the configuration that trial ``index`` trains again.

    Where the kind picks one of several, the seeds of a configuration stand side by side. Elsewhere
    the configurations take turns. A stage that distills also samples its own ranges anew.
    """
    n = len(source.repeats)
    full = stage.traits.picks and n == stage.best
    # If there are fewer configurations than wanted, they share the seeds.
    own = source.repeats[min(index // stage.seeds, n - 1) if full else index % n]
    names = sorted(source.space.sampled)
    sampled = _values(source.space, names, _units(search, stage, index, names)) if names else {}
    return Drawn({**own.hyperparameters, **sampled}, "repeat", (own.trial,))


def _values(space: Space, names: Sequence[str], point: Sequence[float]) -> Hyperparameters:
    units = dict(zip(names, point, strict=True))
    return space.prune(
        {
            name: parameter.from_unit(units.get(name, 0.0))
            for name, parameter in space.parameters.items()
        }
    )


def _trial(search: Search, stage: Stage, index: int, drawn: Drawn) -> Trial:
    hyperparameters = {name: _plain(value) for name, value in drawn.hyperparameters.items()}
    longest = search.max_epochs if stage.rungs else 0.0  # a stage of one rung promotes no trial
    return Trial(
        id=trial_id(stage.name, index),
        stage=stage.name,
        index=index,
        seed=trial_seed(search.seed, stage.name, index),
        epochs=drawn.epochs or stage.epochs,
        hyperparameters=hyperparameters,
        group=search.space.group(hyperparameters),
        max_epochs=longest,
        drawn=drawn.drawn,
        parents=drawn.parents,
    )


def _plain(value: Value) -> Value:
    """Convert numpy's float to Python's own, because it prints otherwise."""
    return float(value) if isinstance(value, float) else value


def _spread(parameter: IntUniform) -> list[int]:
    """Return a few whole numbers, spread evenly over the range on its sampling scale."""
    low, high = parameter.to_scale(parameter.low), parameter.to_scale(parameter.high)
    step = (high - low) / (SUGGESTED_OPTIONS - 1)
    places = (parameter.from_scale(low + i * step) for i in range(SUGGESTED_OPTIONS))
    return sorted({int(parameter.snap(place)) for place in places})
