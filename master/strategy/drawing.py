"""The draw of configuration number n of a stage.

It is a pure function of the seed, the stage, n, and what was frozen at the stage's launch.

The first stage of a search follows a Sobol sequence. In later stages, one share of the
configurations is drawn from the whole box, one share follows the densities of good and bad trials,
and the others are children of the best trials.

Source: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011, and Falkner et
al., "BOHB", ICML 2018 (the ratio of the densities of good and bad trials); Aitchison and Aitken,
"Multivariate binary discrimination by the kernel method", Biometrika 63 (1976) (the kernel of an
option).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from common.search.space import Space
from common.search.stage import Strategy
from common.search.values import Hyperparameters
from master.strategy.freezing import Frozen, Known
from master.strategy.places import Places
from master.strategy.sobol import sobol_points

Floats = NDArray[np.float64]

# Candidates of which the density rule takes the best. Results for 16 to 256 differed by noise only.
N_CANDIDATES = 32
# Bandwidths that a candidate is moved by. Results for 1 to 3 differed by noise only, and 3 never
# stalls.
WIDEN = 3.0
# Standard deviation of a child's move, as a share of the first range. Results for 0.05 to 0.3
# differed by noise only.
STEP = 0.1
# Parent i of m is drawn with weight exp(-DECAY i / m): the best about five times as often as the
# last.
DECAY = 2.0
FROM_SECOND = 0.3  # probability that a hyperparameter comes from the second parent
REDRAWN = 0.2  # probability that a choice is drawn again
SAME_OPTION = 0.7  # kernel value of the same option; the other options share the rest
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
FINEST_SHARE = 1000  # largest denominator of a share when it is converted to a fraction


@dataclass(frozen=True)
class Drawn:
    """A configuration and how it was drawn.

    ``drawn`` is a key of ``common.search.trial.DRAWN``. ``parents`` are the trials that the
    configuration comes from.
    """

    hyperparameters: Hyperparameters
    drawn: str
    parents: tuple[str, ...] = ()
    epochs: float = 0.0  # its first budget; 0 means the first budget of its stage


def draw(
    first: Space, frozen: Frozen, search_seed: int, stage: str, index: int, options: Strategy
) -> Drawn:
    """Return configuration ``index`` of a stage. See ``draw_many`` for the other arguments."""
    return draw_many(first, frozen, search_seed, stage, range(index, index + 1), options)[0]


def draw_many(
    first: Space, frozen: Frozen, search_seed: int, stage: str, indices: range, options: Strategy
) -> list[Drawn]:
    """Return the configurations of a stage with the given numbers.

    A configuration is the same however many are drawn in one call.

    Args:
        first: the space of the search file.
        frozen: what was fixed when the stage was launched.
        search_seed: the seed of the search.
        stage: the name of the stage.
        indices: the numbers of the configurations, from 0, ascending.
        options: the shares of the rules.
    """
    places = Places(first, frozen.box)
    if not frozen.parents:
        return _start(places, search_seed, stage, indices)
    plain, density = (
        Fraction(share).limit_denominator(FINEST_SHARE)
        for share in (options.plain, options.density)
    )
    drawn = []
    for index in indices:
        source = _Source(search_seed, stage, index)
        n_plain = _count_taken(index, plain)
        if _count_taken(index + 1, plain) > n_plain:
            drawn.append(Drawn(places.values(_plain(places, source)), "plain"))
            continue
        other = index - n_plain  # its number among the configurations that are not plain draws
        if frozen.good and _count_taken(other + 1, density) > _count_taken(other, density):
            drawn.append(_near_good(places, frozen, source, options.clip))
        else:
            drawn.append(_child(places, frozen, source, options.clip))
    return drawn


def _count_taken(n: int, share: Fraction) -> int:
    """Return how many of the first ``n`` configurations go to a rule with this share.

    They are spread evenly, and the first one is included.
    """
    return math.ceil(n * share)


class _Source:
    """The random numbers of one configuration.

    Only numpy's uniform numbers are used, because they stay the same in later versions of numpy.
    Its normal numbers may change.
    """

    def __init__(self, search_seed: int, stage: str, index: int) -> None:
        digest = hashlib.sha256(f"strategy/{search_seed}/{stage}/{index}".encode()).digest()
        self._generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16])))

    def uniform(self, *shape: int) -> Floats:
        """Return uniform numbers in [0, 1)."""
        return np.asarray(self._generator.random(shape))

    def normal(self, *shape: int) -> Floats:
        """Return standard normal numbers.

        Source: Box and Muller, "A note on the generation of random normal deviates", Ann. Math.
        Statist. 29 (1958).
        """
        radius, angle = self._generator.random((2, *shape))
        return np.asarray(np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * math.pi * angle))


def _start(places: Places, search_seed: int, stage: str, indices: range) -> list[Drawn]:
    """Return points of a Sobol sequence over the box."""
    order = [places.names.index(name) for name in sorted(places.names)]
    drawn = []
    for point in sobol_points(search_seed, stage, len(order), indices):
        unit = np.empty(len(order))
        unit[order] = point
        drawn.append(Drawn(places.values(places.spread(unit)), "sobol"))
    return drawn


def _plain(places: Places, source: _Source) -> Floats:
    """Return a random place in the box, (d,)."""
    return places.spread(source.uniform(len(places.names)))


def _child(places: Places, frozen: Frozen, source: _Source, clip: float) -> Drawn:
    """Return a child: a parent with some values from a second parent.

    Every number is moved a little.
    """
    m, d = frozen.parent_places.shape
    weights = np.exp(-DECAY * np.arange(m) / m)
    picked = np.searchsorted(
        np.cumsum(weights / weights.sum()), source.uniform(2), side="right"
    ).clip(0, m - 1)
    from_second = source.uniform(d) < FROM_SECOND
    first, second = frozen.parent_places[picked]
    # What one parent lacks comes from the other, if that has it.
    from_second = np.where(from_second, ~np.isnan(second) | np.isnan(first), np.isnan(first))
    row = np.where(from_second, second, first)
    moved = _move(places, row[None], np.full(d, STEP), source, clip)
    moved = _draw_missing(places, moved, source)[0]
    used = [int(picked[0])] * (not from_second.all()) + [int(picked[1])] * bool(from_second.any())
    return Drawn(places.values(moved), "child", _name_parents(frozen.parents, used))


def _near_good(places: Places, frozen: Frozen, source: _Source, clip: float) -> Drawn:
    """Return the candidate that is best by the density rule.

    It has the largest ratio of the density of good trials to that of bad trials. The candidates are
    drawn near good trials.
    """
    good, bad = frozen.good_places, frozen.bad_places
    width, bad_width = np.array(frozen.good_width), np.array(frozen.bad_width)
    picked = (source.uniform(N_CANDIDATES) * len(good)).astype(int).clip(0, len(good) - 1)
    candidates = _move(places, good[picked], WIDEN * width, source, clip)
    candidates = _draw_missing(places, candidates, source)
    existing = places.with_absent(candidates)
    ratio = _log_density(places, existing, good, width) - _log_density(
        places, existing, bad, bad_width
    )
    best = int(np.argmax(ratio))
    return Drawn(
        places.values(candidates[best]), "density", _name_parents(frozen.good, [int(picked[best])])
    )


def _name_parents(known: Sequence[Known], positions: Sequence[int]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(known[position].trial for position in positions))


def _move(places: Places, rows: Floats, steps: Floats, source: _Source, clip: float) -> Floats:
    """Return ``rows`` (n, d), each moved at random, inside the box.

    A number moves by a normal number times its step in ``steps`` (d,). A choice is kept or drawn
    again.
    """
    low, high = places.ends
    clips = bool(source.uniform() < clip)
    moved = rows + steps * source.normal(*rows.shape)
    moved = np.clip(moved, low, high) if clips else _mirror(moved, low, high)
    again, unit = source.uniform(*rows.shape) < REDRAWN, source.uniform(*rows.shape)
    for position, allowed in places.allowed.items():
        fresh = allowed[(unit[:, position] * len(allowed)).astype(int).clip(0, len(allowed) - 1)]
        keeps = ~again[:, position] & np.isin(rows[:, position], allowed)
        moved[:, position] = np.where(keeps, rows[:, position], fresh)
    return np.asarray(moved)


def _draw_missing(places: Places, rows: Floats, source: _Source) -> Floats:
    """Return ``rows`` (n, d) with a random place in the box where there was none (nan)."""
    missing = np.isnan(rows)
    if not missing.any():
        return rows
    fresh = np.array([places.spread(unit) for unit in source.uniform(*rows.shape)])
    return np.where(missing, fresh, rows)


def _mirror(rows: Floats, low: Floats, high: Floats) -> Floats:
    """Return ``rows`` (n, d) mirrored at the ends of the box until they are inside."""
    width = np.maximum(high - low, 1e-12)
    turned = np.mod((rows - low) / width, 2.0)
    return np.asarray(np.clip(low + np.where(turned > 1, 2 - turned, turned) * width, low, high))


def _log_density(places: Places, rows: Floats, known: Floats, width: Floats) -> Floats:
    """Return the log density at ``rows`` (n, d), (n,).

    The density is the mean of the product kernels around ``known`` (m, d). A hyperparameter that
    only the known trial lacks counts as drawn from the whole box. One that a row lacks does not
    count.
    """
    exponent = np.zeros((len(rows), len(known)))
    constant = 0.0
    low, high = places.ends
    for position in range(rows.shape[1]):
        own, theirs = rows[:, position, None], known[None, :, position]
        if places.is_choice[position]:
            n = places.n_options[position]
            same = np.abs(own - theirs) < 0.5 / n
            other = (1 - SAME_OPTION) / (n - 1)
            term = np.where(same, math.log(SAME_OPTION), math.log(other))
            anywhere, nothing = -math.log(n), 0.0
        else:
            term = -0.5 * np.square((own - theirs) / width[position])
            scale = math.log(width[position])
            constant -= scale
            # The terms leave out the root of 2 pi, which good and bad trials have in common.
            anywhere = scale + HALF_LOG_2PI - math.log(high[position] - low[position])
            nothing = scale
        term = np.where(np.isnan(theirs), anywhere, term)
        exponent += np.where(np.isnan(own), nothing, term)
    top = exponent.max(axis=1, keepdims=True)
    return np.asarray(top[:, 0] + np.log(np.exp(exponent - top).mean(axis=1)) + constant)
