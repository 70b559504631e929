"""Hyperparameters on axes: positions in the scale they are sampled on, ticks, and ends of the border zones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from common.space import Choice, Fixed, Numeric, Parameter, Scalar, Space
from master.borders import BORDER_SHARE
from master.figures.style import safe
from master.figures.table import HP
from master.scales import EDGE, shown

GOLDEN = 0.6180339887  # of a turn: multiples of it are spread evenly, however many
JITTER = 0.6  # of an option's place that its points are spread over
FEW_DECADES = 1.5  # up to here ticks within a decade are wanted
MOST_WHOLE = 12  # whole numbers that have a tick each
OPTION_HALF = 0.42  # of an option's place that a range covers on either side


@dataclass(frozen=True)
class Scale:
    """One hyperparameter's axis over all stages. ``options``: of a choice, in order; None where it has a range."""

    name: str
    log: bool
    integer: bool
    options: tuple[Scalar, ...] | None
    low: float
    high: float

    @property
    def axis(self) -> dict[str, Any]:
        """As plotly takes it."""
        if self.options is not None:
            ticks = {"tickvals": list(range(len(self.options))), "ticktext": [safe(option) for option in self.options]}
            return {"title": {"text": safe(self.name)}, "type": "linear", "range": [-0.5, len(self.options) - 0.5], **ticks}
        title = f"{safe(self.name)} (log scale)" if self.log else safe(self.name)
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        pad = 0.03 * (high - low) or 0.5  # so that points at the ends are whole
        decades = {"dtick": max(1, round((high - low) / 8)), "exponentformat": "power"} if self.log and high - low > FEW_DECADES else {}
        whole = {"dtick": 1} if self.integer and not self.log and high - low < MOST_WHOLE else {}
        return {"title": {"text": title}, "type": "log" if self.log else "linear", "range": [low - pad, high + pad], **decades, **whole}

    def places(self, trials: pd.DataFrame) -> np.ndarray[Any, Any]:
        """(n,) where the trials lie, NaN where they have no such value; a choice's points are spread by their number."""
        values = trials[HP + self.name] if HP + self.name in trials else [None] * len(trials)
        if self.options is None:
            return np.array([_number(value, self.log) for value in values], dtype=float)
        found = np.array([self.options.index(value) if value in self.options else math.nan for value in values], dtype=float)
        return found + JITTER * (trials["index"].to_numpy(dtype=float) * GOLDEN % 1 - 0.5)

    def unit(self, trials: pd.DataFrame) -> np.ndarray[Any, Any]:
        """(n,) the same between 0 and 1 over all stages' ranges, options at even distances."""
        if self.options is not None:
            values = trials[HP + self.name]
            last = max(1, len(self.options) - 1)
            return np.array([self.options.index(value) / last if value in self.options else math.nan for value in values])
        places = self.places(trials)
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        return ((np.log10(places) if self.log else places) - low) / ((high - low) or 1)

    def ticks(self) -> list[tuple[float, str]]:
        """A few marks as (position between 0 and 1, text)."""
        if self.options is not None:
            last = max(1, len(self.options) - 1)
            return [(number / last, safe(option)) for number, option in enumerate(self.options)]
        if not self.log:
            values = np.linspace(self.low, self.high, 5)
            marks = sorted({round(value) for value in np.linspace(self.low + 0.5, self.high - 0.5, 5)}) if self.integer else list(values)
            return [((value - self.low) / ((self.high - self.low) or 1), f"{value:.3g}") for value in marks]
        low, high = math.log10(self.low), math.log10(self.high)
        step = max(1, round((high - low) / 5))
        whole = list(range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1, step))
        marks = whole if len(whole) > 1 else [low, high]
        return [((mark - low) / ((high - low) or 1), f"{10.0**mark:.0e}" if mark in whole else f"{10.0**mark:.2g}") for mark in marks]


def scales(spaces: Mapping[str, Space]) -> list[Scale]:
    """The axes of what any stage sampled, over all their ranges, in the order of the search."""
    names = dict.fromkeys(name for space in spaces.values() for name in space.sampled)
    return [_scale(name, [space.parameters[name] for space in spaces.values() if name in space.sampled]) for name in names]


def segments(scale: Scale, space: Space) -> list[tuple[float, float, str]]:
    """What a stage sampled of a hyperparameter, as (start, end, words): one range, or the options that it had."""
    parameter = space.parameters.get(scale.name)
    if isinstance(parameter, Choice) and scale.options is not None:
        places = [scale.options.index(option) for option in parameter.options]
        return [(place - OPTION_HALF, place + OPTION_HALF, safe(scale.options[place])) for place in places]
    if parameter is None or scale.name not in space.numeric:
        return []
    interval = space.numeric[scale.name]
    start, end = (interval.from_scale(end) for end in interval.scaled)  # a whole number's share reaches half a step to both sides
    return [(start, end, shown(interval.low, interval.high))]


def zones(parameter: Numeric) -> list[tuple[float, float]]:
    """The outer 5 % of a range on either side, in the scale it is sampled on; of whole numbers all that reach into it."""
    low, high = parameter.scaled
    width = BORDER_SHARE * (high - low)
    first, second, third, fourth = (parameter.from_scale(end) for end in (low, low + width, high - width, high))
    if parameter.integer:
        second, third = math.floor(second + 0.5 - EDGE) + 0.5, math.ceil(third - 0.5 + EDGE) - 0.5
    return [(first, second), (third, fourth)]


def _scale(name: str, parameters: list[Parameter]) -> Scale:
    choices = [p for p in parameters if isinstance(p, Choice)]
    if choices:
        return Scale(name, False, False, tuple(dict.fromkeys(option for p in choices for option in p.options)), 0, 0)
    intervals = [p for p in parameters if not isinstance(p, Choice | Fixed)]
    ends = [p.from_scale(end) for p in intervals for end in p.scaled]
    return Scale(name, intervals[0].log, intervals[0].integer, None, min(ends), max(ends))


def _number(value: object, log: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or (log and value <= 0):
        return math.nan
    return float(value)
