"""Axes of hyperparameters.

They give positions on the scale that a hyperparameter is sampled on, ticks, and the ends of the
border zones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from common.search.parameters import Choice, Fixed, Parameter, Ranged
from common.search.space import Space
from common.search.values import Scalar, flat
from master.figures.style import safe
from master.figures.table import HP
from master.strategy.borders import BORDER_SHARE
from master.strategy.scales import EDGE, words_of

GOLDEN = 0.6180339887  # 1 / golden ratio; its multiples modulo 1 are spread evenly
JITTER = 0.6  # share of an option's width over which its points are spread
FEW_DECADES = 1.5  # axes up to this length have ticks within a decade
MOST_WHOLE = 12  # integer ranges shorter than this have a tick for each number
OPTION_HALF = 0.42  # share of an option's width that a range covers on either side


@dataclass(frozen=True)
class Scale:
    """The axis of one hyperparameter over all stages.

    ``options`` are those of a choice, in order; lists and tables are text, as in ``table``. They
    are None for a range.
    """

    name: str
    log: bool
    integer: bool
    options: tuple[Scalar, ...] | None
    low: float
    high: float
    pitch: float = 0.0  # distance of two values that may be drawn; 0 without a step

    @property
    def axis(self) -> dict[str, Any]:
        """The axis as plotly takes it."""
        if self.options is not None:
            ticks = {
                "tickvals": list(range(len(self.options))),
                "ticktext": [safe(option) for option in self.options],
            }
            return {
                "title": {"text": safe(self.name)},
                "type": "linear",
                "range": [-0.5, len(self.options) - 0.5],
                **ticks,
            }
        title = f"{safe(self.name)} (log scale)" if self.log else safe(self.name)
        low, high = (
            (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        )
        pad = 0.03 * (high - low) or 0.5  # so that points at the ends are not cut off
        decades = (
            {"dtick": max(1, math.ceil((high - low) / 6)), "exponentformat": "power"}
            if self.log and high - low > FEW_DECADES
            else {}
        )
        whole = {"dtick": 1} if self.integer and not self.log and high - low < MOST_WHOLE else {}
        return {
            "title": {"text": title},
            "type": "log" if self.log else "linear",
            "range": [low - pad, high + pad],
            **decades,
            **whole,
        }

    def places(self, trials: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Return the positions of the trials, (n,). NaN where a trial has no such value.

        The points of an option are spread by the trials' numbers.
        """
        values = trials[HP + self.name] if HP + self.name in trials else [None] * len(trials)
        if self.options is None:
            return np.array([_number(value, self.log) for value in values], dtype=float)
        found = np.array(
            [self.options.index(value) if value in self.options else math.nan for value in values],
            dtype=float,
        )
        return found + JITTER * (trials["index"].to_numpy(dtype=float) * GOLDEN % 1 - 0.5)

    def unit(self, trials: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Return the positions between 0 and 1 over all stages' ranges, (n,).

        Options are at even distances, and their points are not spread.
        """
        if self.options is not None:
            values = trials[HP + self.name] if HP + self.name in trials else [None] * len(trials)
            last = max(1, len(self.options) - 1)
            return np.array(
                [
                    self.options.index(value) / last if value in self.options else math.nan
                    for value in values
                ]
            )
        places = self.places(trials)
        low, high = (
            (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        )
        return ((np.log10(places) if self.log else places) - low) / ((high - low) or 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Return a few ticks as (position between 0 and 1, text)."""
        if self.options is not None:
            last = max(1, len(self.options) - 1)
            return [(number / last, safe(option)) for number, option in enumerate(self.options)]
        if not self.log:
            values = np.linspace(self.low, self.high, 5)
            if self.pitch:  # the range is half a pitch wider than its values at each end
                last = round((self.high - self.low) / self.pitch) - 1
                places = sorted({round(place) for place in np.linspace(0, last, 5)})
                values = self.low + self.pitch * (np.array(places) + 0.5)
            return [
                ((value - self.low) / ((self.high - self.low) or 1), f"{value:.3g}")
                for value in values
            ]
        low, high = math.log10(self.low), math.log10(self.high)
        step = max(1, round((high - low) / 5))
        whole = list(range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1, step))
        marks = whole if len(whole) > 1 else [low, high]
        return [
            (
                (mark - low) / ((high - low) or 1),
                _tick(10.0**mark),
            )
            for mark in marks
        ]


def scales(spaces: Mapping[str, Space]) -> list[Scale]:
    """Return the axes of all hyperparameters that any stage sampled.

    Each covers the ranges of all stages. They are in the order of the search.
    """
    names = dict.fromkeys(name for space in spaces.values() for name in space.sampled)
    return [
        _scale(name, [space.parameters[name] for space in spaces.values() if name in space.sampled])
        for name in names
    ]


def segments(scale: Scale, space: Space) -> list[tuple[float, float, str]]:
    """Return what a stage sampled of a hyperparameter, as (start, end, words).

    There is one segment for a range, or one for each option of a choice.
    """
    parameter = space.parameters.get(scale.name)
    if isinstance(parameter, Choice) and scale.options is not None:
        places = [scale.options.index(flat(option)) for option in parameter.options]
        return [
            (place - OPTION_HALF, place + OPTION_HALF, safe(scale.options[place]))
            for place in places
        ]
    if parameter is None or scale.name not in space.numeric:
        return []
    numeric = space.numeric[scale.name]
    # The range of an integer reaches half a step to both sides.
    start, end = (numeric.from_scale(end) for end in numeric.scaled)
    return [(start, end, words_of(numeric))]


def zones(parameter: Ranged) -> list[tuple[float, float]]:
    """Return the border zones: the outer 5 % of a range on either side.

    The 5 % are measured on the scale that the range is sampled on. For integers, a zone covers
    every integer that reaches into it, and likewise every value on a grid of steps.
    """
    low, high = parameter.scaled
    width = BORDER_SHARE * (high - low)
    first, second, third, fourth = (
        parameter.from_scale(end) for end in (low, low + width, high - width, high)
    )
    if pitch := parameter.pitch:
        below = math.floor((second - parameter.low) / pitch + 0.5 - EDGE) + 0.5
        above = math.ceil((third - parameter.low) / pitch - 0.5 + EDGE) - 0.5
        second, third = parameter.low + pitch * below, parameter.low + pitch * above
    return [(first, second), (third, fourth)]


def _scale(name: str, parameters: list[Parameter]) -> Scale:
    choices = [p for p in parameters if isinstance(p, Choice)]
    if choices:
        return Scale(
            name,
            False,
            False,
            tuple(dict.fromkeys(flat(option) for p in choices for option in p.options)),
            0,
            0,
        )
    intervals = [p for p in parameters if not isinstance(p, Choice | Fixed)]
    ends = [p.from_scale(end) for p in intervals for end in p.scaled]
    first = intervals[0]
    return Scale(name, first.log, first.integer, None, min(ends), max(ends), first.pitch)


def _tick(value: float) -> str:
    """Return a power of ten, or a value near one, in few characters: ``0.01``, ``1e-6``."""
    return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")


def _number(value: object, log: bool) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or (log and value <= 0)
    ):
        return math.nan
    return float(value)
