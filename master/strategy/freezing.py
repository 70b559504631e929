"""What a stage knows of the trials before it, fixed at its launch.

Every configuration of the stage is a pure function of the search's seed, the stage, the
configuration's number and this knowledge. So it does not matter when, where and how often it is
drawn.

Source: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011 (densities of
good and bad trials); Falkner et al., "BOHB", ICML 2018 (one density over all hyperparameters, at
the most epochs that have enough trials).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import CheckpointError, ConfigError
from common.search.space import Space
from common.search.values import Hyperparameters
from common.shell_command import recover_remedy
from master.strategy.places import Places, Row

N_PARENTS = 5  # results for 3 to 10 differed by noise only, 20 was worse
GOOD_SHARE = 0.15  # of the trials measured after the same number of epochs; as in BOHB
# Least bandwidth, as a share of the first range. The good trials may all agree, and values next to
# them are still worth a try.
LEAST_WIDTH = 0.03
# Most trials in a density. More of them add nothing new, and each costs time in every draw.
MOST_KERNELS = 512


@dataclass(frozen=True)
class Seen:
    """What a later stage may know of a trial.

    ``measured`` has (epochs, goodness) for each rung that the trial reached, ascending. Goodness is
    the search's metric with its sign set so that larger is better. A trial that exploded on its way
    to a rung has -inf there: it counts as bad, and is never a parent.
    """

    trial: str
    stage: int  # position of its stage in the search
    index: int
    hyperparameters: Hyperparameters
    measured: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Known:
    """A trial and its places, (d,), in the first ranges. What the trial lacks is None."""

    trial: str
    z: Row


@dataclass(frozen=True)
class Frozen:
    """The frozen knowledge of one stage.

    ``good`` and ``bad`` are trials measured after the same number of epochs. Both are empty while
    there are too few trials. The widths are the bandwidths of the kernels, (d,), in the first
    ranges.
    """

    names: tuple[str, ...]  # the sampled hyperparameters, in the order of the places
    box: Space
    parents: tuple[Known, ...] = ()  # best first
    good: tuple[Known, ...] = ()
    bad: tuple[Known, ...] = ()
    good_width: tuple[float, ...] = ()
    bad_width: tuple[float, ...] = ()
    epochs: float = 0.0  # the number of epochs after which good and bad trials were separated

    @cached_property
    def parent_places(self) -> NDArray[np.float64]:
        """The places of the parents, (m, d)."""
        return _array(self.parents, len(self.names))

    @cached_property
    def good_places(self) -> NDArray[np.float64]:
        """The places of the good trials, (n, d)."""
        return _array(self.good, len(self.names))

    @cached_property
    def bad_places(self) -> NDArray[np.float64]:
        """The places of the bad trials, (n, d)."""
        return _array(self.bad, len(self.names))

    def as_json(self) -> dict[str, Any]:
        """Return the knowledge as plain values for JSON. Floats keep every bit."""
        return {
            "names": list(self.names),
            "box": self.box.plain(),
            "epochs": self.epochs,
            **{
                key: [{"trial": known.trial, "z": list(known.z)} for known in getattr(self, key)]
                for key in _SETS
            },
            "good_width": list(self.good_width),
            "bad_width": list(self.bad_width),
        }

    @classmethod
    def from_json(cls, raw: object, first: Space, place: str = "strategy.json") -> Frozen:
        """Read the output of ``as_json``.

        Args:
            raw: the parsed JSON.
            first: the space of the search file.
            place: the name of the file, for the error message.

        Raises:
            CheckpointError: ``raw`` does not have the expected form, or belongs to another space.
        """
        try:
            return _read(cls, raw, first)
        except (ConfigError, ValueError) as error:
            raise CheckpointError(f"{place}: {error}; {recover_remedy()}") from None


_SETS = ("parents", "good", "bad")


def freeze(first: Space, box: Space, seen: Sequence[Seen]) -> Frozen:
    """Return what a stage that is launched now knows.

    Args:
        first: the space of the search file.
        box: the ranges that the stage samples.
        seen: the trials of all earlier stages, in any order.
    """
    places = Places(first, box)
    placed = [
        (one, Known(one.trial, row))
        for one in seen
        if one.measured and (row := places.row(one.hyperparameters)) is not None
    ]
    known = {one.trial: own for one, own in placed}
    trials = [one for one, _ in placed]
    parents = tuple(known[one.trial] for one in rank_seen(trials)[:N_PARENTS])
    found = _split(trials, len(places.names))
    if found is None:
        return Frozen(places.names, box, parents)
    epochs, good, bad = found
    sets = [tuple(known[one.trial] for one in part) for part in (good, bad)]
    widths = [_widths(part, len(places.names)) for part in sets]
    return Frozen(
        places.names, box, parents, _thin(sets[0]), _thin(sets[1]), widths[0], widths[1], epochs
    )


def rank_seen(seen: Sequence[Seen]) -> list[Seen]:
    """Return the trials that were measured at a rung and did not explode, best first.

    They are ordered by most epochs, then goodness, then earlier stage, then lower number.
    """
    ended = [
        one
        for one in seen
        if one.measured and all(math.isfinite(goodness) for _, goodness in one.measured)
    ]
    return sorted(
        ended, key=lambda one: (-one.measured[-1][0], -one.measured[-1][1], one.stage, one.index)
    )


def _split(seen: Sequence[Seen], d: int) -> tuple[float, list[Seen], list[Seen]] | None:
    """Return (epochs, good, bad), or None if there are too few measurements.

    ``epochs`` is the largest number of epochs at which at least 2 (d + 1) trials ended well: twice
    as many as a simplex has corners.
    """
    measured: dict[float, list[tuple[float, Seen]]] = {}
    for one in seen:
        for epochs, goodness in one.measured:
            if not math.isnan(goodness) and goodness < math.inf:
                measured.setdefault(epochs, []).append((goodness, one))
    for epochs in sorted(measured, reverse=True):
        own = sorted(measured[epochs], key=lambda pair: (-pair[0], pair[1].stage, pair[1].index))
        n_ended_well = sum(math.isfinite(goodness) for goodness, _ in own)
        if d and n_ended_well >= 2 * (d + 1):
            n_good = min(max(d + 1, int(GOOD_SHARE * len(own))), n_ended_well - 1)
            trials = [one for _, one in own]
            return epochs, trials[:n_good], trials[n_good:]
    return None


def _widths(part: Sequence[Known], d: int) -> tuple[float, ...]:
    """Return the bandwidth of each hyperparameter by Scott's rule, at least ``LEAST_WIDTH``.

    Source: Scott, "Multivariate Density Estimation", Wiley 1992.
    """
    places = _array(part, d)
    has = ~np.isnan(places)
    if has.all():
        spread = places.std(axis=0) * len(part) ** (-1 / (d + 4))
    else:  # of each hyperparameter, the trials that have it
        columns = (places[own, n] for n, own in enumerate(has.T))
        spread = np.array([c.std() * len(c) ** (-1 / (d + 4)) if len(c) else 0.0 for c in columns])
    return tuple(float(width) for width in np.maximum(spread, LEAST_WIDTH))


def _thin(part: tuple[Known, ...]) -> tuple[Known, ...]:
    """Return at most ``MOST_KERNELS`` of the trials, evenly spaced in their ranking."""
    if len(part) <= MOST_KERNELS:
        return part
    return tuple(part[number * len(part) // MOST_KERNELS] for number in range(MOST_KERNELS))


def _array(part: Sequence[Known], d: int) -> NDArray[np.float64]:
    """Return the places of trials, (n, d), with nan for what a trial does not have."""
    return np.array([known.z for known in part], float).reshape(len(part), d)


def _read(cls: type[Frozen], raw: object, first: Space) -> Frozen:
    if not isinstance(raw, Mapping):
        raise ValueError("is not a table of what a stage knows")
    names = tuple(first.sampled)
    if raw.get("names") != list(names):
        raise ValueError(
            f"names = {raw.get('names')!r} are not the sampled hyperparameters, {', '.join(names)}"
        )
    box = Space.parse(raw.get("box"), "box") if raw.get("box") or first.parameters else Space({})
    for name, own in first.parameters.items():
        kind = box.parameters[name].kind if name in box.parameters else "missing"
        if kind != own.kind:
            raise ValueError(f"box {name} is {kind}, and {own.kind} in the search")
    if len(box.parameters) != len(first.parameters):
        raise ValueError(
            f"box has {', '.join(box.parameters)}; the search has {', '.join(first.parameters)}"
        )
    box = Space({name: box.parameters[name] for name in first.parameters})
    sets = {key: _read_set(raw.get(key), key, len(names)) for key in _SETS}
    if bool(sets["good"]) != bool(sets["bad"]):
        raise ValueError("good and bad belong together, and one of them is empty")
    widths = {
        key: _read_numbers(raw.get(f"{key}_width"), f"{key}_width", len(names) if sets[key] else 0)
        for key in ("good", "bad")
    }
    if any(width <= 0 for row in widths.values() for width in row):
        raise ValueError("a width is not positive")
    (epochs,) = _read_numbers([raw.get("epochs")], "epochs", 1)
    return cls(
        names,
        box,
        sets["parents"],
        sets["good"],
        sets["bad"],
        widths["good"],
        widths["bad"],
        epochs,
    )


def _read_set(raw: object, key: str, d: int) -> tuple[Known, ...]:
    if not isinstance(raw, list):
        raise ValueError(f"{key} = {raw!r} is not a list of trials")
    known = []
    for one in raw:
        if not isinstance(one, Mapping) or not isinstance(one.get("trial"), str):
            raise ValueError(f"{key}: {one!r} is not a trial with its places")
        known.append(
            Known(one["trial"], _read_row(one.get("z"), f"{key} {one['trial']} z", d, True))
        )
    return tuple(known)


def _read_numbers(raw: object, key: str, d: int) -> tuple[float, ...]:
    return tuple(float(value) for value in _read_row(raw, key, d) if value is not None)


def _read_row(raw: object, key: str, d: int, may_lack: bool = False) -> Row:
    if not isinstance(raw, list) or len(raw) != d:
        raise ValueError(f"{key} = {raw!r} is not a list of {d} numbers")
    for value in raw:
        if not (value is None and may_lack) and (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"{key}: {value!r} is not a finite number")
    return tuple(None if value is None else float(value) for value in raw)
