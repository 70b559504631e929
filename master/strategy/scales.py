"""Positions in a range, on its sampling scale.

The functions tell on which side a value lies, where a range may grow to, and how to round its ends.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from typing import Literal

from common.search.parameters import Normal, Numeric, Ranged
from common.search.space import Space
from common.search.values import Hyperparameters

Side = Literal["low", "high"]
MOVE = 0.5  # a range moves past a border by this share of its width
EXTREME = 300.0  # decades: below the last power of ten of a double, with room for calculations
# On a linear scale. The width of a range that ends here is still a finite number.
LARGEST = sys.float_info.max / 8
# Share of a range. The shares of two neighboring integers touch, and rounding must not make them
# overlap.
EDGE = 1e-9
# Digits of proposed ends. No ranking can distinguish values closer than a hundredth of the range.
DIGITS = 3


def numbers(trials: Iterable[Hyperparameters], name: str) -> Iterator[float]:
    """Yield the finite values of a numeric hyperparameter, in the order of the trials."""
    for hyperparameters in trials:
        value = hyperparameters.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield float(value)


def outer(parameter: Ranged, value: float, share: float) -> Side | None:
    """Return the side whose outer ``share`` of the range contains ``value``.

    An integer, and a value on a grid of steps, occupies a share of the range. It counts if any part
    of that share is in the outer one, so the last number of a short range always counts.
    """
    if half := parameter.pitch / 2:
        start, end = parameter.to_unit(value - half) + EDGE, parameter.to_unit(value + half) - EDGE
    else:
        start = end = parameter.to_unit(value)
    if start <= share:
        return "low"
    return "high" if end >= 1 - share else None


def outer_share(parameter: Ranged, side: Side, share: float) -> float:
    """Return the probability that ``outer`` reports ``side`` for a random value.

    It is ``share``, or more for values with a pitch.
    """
    half = parameter.pitch / 2
    if not half:
        return share
    if side == "low":
        return parameter.to_unit(parameter.from_unit(share - EDGE) + half)
    return 1 - parameter.to_unit(parameter.from_unit(1 - share + EDGE) - half)


def past(space: Space, name: str, side: Side) -> float | None:
    """Return the new end if the range moves past ``side`` by at most half its width.

    Return None if it may not move further.
    """
    parameter = space.ranged[name]
    low, high = parameter.to_scale(parameter.low), parameter.to_scale(parameter.high)
    step = MOVE * (high - low)
    allowed_low, allowed_high = space.limits(name)
    if side == "low":
        end = parameter.from_scale(max(low - step, -EXTREME if parameter.log else -LARGEST))
        end = round_end(parameter, end, up=True)
        if parameter.pitch:
            end = min(end, parameter.low - parameter.pitch)
        end = parameter.to_grid(max(end, allowed_low), math.ceil)
        return end if end < parameter.low else None
    end = parameter.from_scale(min(high + step, EXTREME if parameter.log else LARGEST))
    end = round_end(parameter, end, up=False)
    if parameter.pitch:
        end = max(end, parameter.high + parameter.pitch)
    end = parameter.to_grid(min(end, allowed_high), math.floor)
    return end if end > parameter.high else None


def round_end(parameter: Ranged, value: float, *, up: bool) -> float:
    """Return ``value`` with as few digits as the range needs, rounded up or down.

    An integer hyperparameter gets an integer, and one with steps a value on their grid.
    """
    if parameter.pitch:
        return parameter.to_grid(value, math.ceil if up else math.floor)
    low, high = parameter.scaled
    resolution = abs(value) * min(1.0, math.log(10) * (high - low)) if parameter.log else high - low
    if not resolution:
        return value
    n_digits = DIGITS - 1 - math.floor(math.log10(resolution))
    nearest = round(value, n_digits)
    if up and nearest < value:
        return round(nearest + 10.0**-n_digits, n_digits)
    if not up and nearest > value:
        return round(nearest - 10.0**-n_digits, n_digits)
    return nearest


def format_range(low: float, high: float) -> str:
    """Return the range in the form that a user writes: ``[1e-06, 0.001]``."""
    return f"[{low:.6g}, {high:.6g}]"


def words_of(parameter: Numeric) -> str:
    """Return what is drawn, as a user writes it: ``[1e-06, 0.001]``, ``[32, 512] in steps of 32``.

    For a normal distribution it is its mean, its standard deviation, and the ends.
    """
    if isinstance(parameter, Normal):
        ends = format_range(parameter.low, parameter.high)
        return f"{format_range(parameter.mean, parameter.deviation)} within {ends}"
    steps = f" in steps of {parameter.step:g}" if parameter.step else ""
    return f"{format_range(parameter.low, parameter.high)}{steps}"
