"""The configurations of a stage: number n is a pure function of (seed, stage, n, the stage's frozen ranges).

Source: Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13 (2012): random trials beat a grid because
each of them tries a new value of the few hyperparameters that matter.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence

from common.errors import ConfigError
from common.search import Stage
from common.space import Hyperparameters, IntUniform, Scalar, Space
from common.trial import Trial, trial_id, trial_seed

UNIT_BITS = 53  # what a double holds exactly: the hash becomes a float in [0, 1) without rounding up to 1
SOBOL_DIMENSIONS = 21_201  # as many as there are published direction numbers (Joe and Kuo, 2008)
CROWDED_GROUPS = 16  # fewer groups than this are no trouble, however few trials there are
TRIALS_A_GROUP = 4  # arrays of fewer than four trials on average hardly gain from being stacked
FEW_OPTIONS = 8  # an ordinary choice; a whole-number range with more values is what crowds a space
SUGGESTED_OPTIONS = 4  # of the choice that is suggested in place of a whole-number range


def configurations(search_seed: int, stage: Stage, space: Space, sampler: str, indices: range) -> list[Trial]:
    """The trials of a stage with these numbers, the same whoever asks and however many are asked for.

    Args:
        search_seed: the search's own.
        stage: gives its name and the budget of each trial, in epochs.
        space: the stage's frozen ranges.
        sampler: "random" or "sobol".
        indices: numbers of the trials wanted, from 0, ascending.

    Raises:
        ConfigError: an unknown sampler, or more hyperparameters than a Sobol sequence has dimensions.
    """
    names = sorted(space.sampled)
    if sampler == "random":
        points: Iterable[Sequence[float]] = ([unit(search_seed, stage.name, index, name) for name in names] for index in indices)
    elif sampler == "sobol":
        points = _sobol(search_seed, stage.name, len(names), indices)
    else:
        raise ConfigError(f"sampler = {sampler!r}: no such way to sample; use random or sobol")
    return [
        _trial(search_seed, stage, space, index, dict(zip(names, point, strict=True))) for index, point in zip(indices, points, strict=True)
    ]


def unit(search_seed: int, stage: str, index: int, name: str) -> float:
    """A number in [0, 1), uniform over trials; it depends on its arguments alone and so on no other hyperparameter."""
    digest = hashlib.sha256(f"value/{search_seed}/{stage}/{index}/{name}".encode()).digest()
    return (int.from_bytes(digest[:8]) >> (64 - UNIT_BITS)) * 2.0**-UNIT_BITS


def crowding(space: Space, n_trials: int) -> str | None:
    """What to say of a space whose trials hardly ever share an array, None if they often do.

    Args:
        space: the ranges that will be sampled.
        n_trials: how many trials the stage has.
    """
    n_groups = space.n_groups()
    if n_groups < CROWDED_GROUPS or n_groups * TRIALS_A_GROUP <= n_trials:
        return None
    remedies = [
        f"{name} = {{ choice = {_spread(parameter)} }} in place of its {parameter.high - parameter.low + 1:,.0f} whole numbers"
        for name, parameter in space.parameters.items()
        if isinstance(parameter, IntUniform) and parameter.high - parameter.low + 1 > FEW_OPTIONS
    ]
    advice = f"write {' and '.join(remedies)}" if remedies else f"give fewer options to {_structural(space)}"
    return (
        f"{n_trials:,} trials spread over {n_groups:,.0f} combinations of whole numbers and choices, "
        f"and only equal ones train together in an array: {advice}"
    )


def _trial(search_seed: int, stage: Stage, space: Space, index: int, units: dict[str, float]) -> Trial:
    hyperparameters: Hyperparameters = {
        name: _plain(parameter.from_unit(units.get(name, 0.0))) for name, parameter in space.parameters.items()
    }
    return Trial(
        id=trial_id(stage.name, index),
        stage=stage.name,
        index=index,
        seed=trial_seed(search_seed, stage.name, index),
        epochs=stage.epochs,
        hyperparameters=hyperparameters,
        group=space.group(hyperparameters),
    )


def _plain(value: Scalar) -> Scalar:
    """Python's own float for numpy's, which is a float as well but prints otherwise."""
    return float(value) if isinstance(value, float) else value


def _sobol(search_seed: int, stage: str, n_dimensions: int, indices: range) -> Iterator[Sequence[float]]:
    """Points of one scrambled sequence, dimensions in the order of sorted names.

    Source: Owen, "Scrambling Sobol' and Niederreiter-Xing points", Journal of Complexity 14 (1998), as scipy does it.
    """
    if n_dimensions > SOBOL_DIMENSIONS:
        raise ConfigError(
            f'sampler = "sobol": {n_dimensions} hyperparameters are more than its {SOBOL_DIMENSIONS} dimensions; use "random"'
        )
    if not n_dimensions or not indices:
        return iter([()] * len(indices))
    import numpy as np
    from scipy.stats import qmc

    seed = int.from_bytes(hashlib.sha256(f"sobol/{search_seed}/{stage}".encode()).digest()[:16])
    sequence = qmc.Sobol(n_dimensions, scramble=True, seed=np.random.default_rng(seed))
    if indices[0]:
        sequence.fast_forward(indices[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The balance properties of Sobol", category=UserWarning)  # any part of it is asked for
        points = sequence.random(indices[-1] - indices[0] + 1)  # (n, d) in [0, 1)
    return iter(points[[index - indices[0] for index in indices]])


def _spread(parameter: IntUniform) -> list[int]:
    """A few whole numbers evenly over the range, in its sampling scale."""
    low, high = parameter.to_scale(parameter.low), parameter.to_scale(parameter.high)
    step = (high - low) / (SUGGESTED_OPTIONS - 1)
    return sorted({round(parameter.from_scale(low + i * step)) for i in range(SUGGESTED_OPTIONS)})


def _structural(space: Space) -> str:
    return ", ".join(space.structural)
