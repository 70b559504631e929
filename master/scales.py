"""Positions in a range, in the scale it is sampled on: where a value lies, where a range may grow to, round ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from common.record import Record
from common.space import Numeric, Space

Side = Literal["low", "high"]
SIDES: tuple[Side, Side] = ("low", "high")
MOVE = 0.5  # of its width that a range moves past a border
EXTREME = 300.0  # decades: the last power of ten that a double holds, with room to calculate
EDGE = 1e-9  # of a range: two whole numbers' shares touch, and rounding must not make them overlap
DIGITS = 3  # of the ends that are proposed: a hundredth of the range is finer than any ranking tells


def numbers(records: Sequence[Record], name: str) -> list[float]:
    """The values that these trials had for a numeric hyperparameter, in their order."""
    values = (record.hyperparameters.get(name) for record in records)
    return [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]


def outer(parameter: Numeric, value: float, share: float) -> Side | None:
    """The side whose outer ``share`` of the range holds ``value``.

    A whole number has a share of its own of the range; it counts if any part of that lies in the outer one, so that the last
    number of a short range always does.
    """
    if parameter.integer:
        start, end = parameter.to_unit(value - 0.5) + EDGE, parameter.to_unit(value + 0.5) - EDGE
    else:
        start = end = parameter.to_unit(value)
    if start <= share:
        return "low"
    return "high" if end >= 1 - share else None


def outer_share(parameter: Numeric, side: Side, share: float) -> float:
    """The chance of a random value to be in the outer ``share`` as ``outer`` sees it; more than ``share`` for whole numbers."""
    if not parameter.integer:
        return share
    if side == "low":
        return parameter.to_unit(parameter.from_unit(share - EDGE) + 0.5)
    return 1 - parameter.to_unit(parameter.from_unit(1 - share + EDGE) - 0.5)


def past(space: Space, name: str, side: Side) -> float | None:
    """Where the range ends when it moves past ``side`` by at most half its width; None if it may not go further."""
    parameter = space.numeric[name]
    low, high = parameter.to_scale(parameter.low), parameter.to_scale(parameter.high)
    step = MOVE * (high - low)
    allowed_low, allowed_high = space.limits(name)
    if side == "low":
        end = parameter.from_scale(max(low - step, -EXTREME) if parameter.log else low - step)
        end = min(math.ceil(end), parameter.low - 1) if parameter.integer else rounded(parameter, end, up=True)
        end = max(end, allowed_low)
        return end if end < parameter.low else None
    end = parameter.from_scale(min(high + step, EXTREME) if parameter.log else high + step)
    end = max(math.floor(end), parameter.high + 1) if parameter.integer else rounded(parameter, end, up=False)
    end = min(end, allowed_high)
    return end if end > parameter.high else None


def rounded(parameter: Numeric, value: float, *, up: bool) -> float:
    """``value`` in as few digits as the range needs, rounded up or down; whole for a whole number."""
    if parameter.integer:
        return math.ceil(value) if up else math.floor(value)
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


def shown(low: float, high: float) -> str:
    """``[1e-06, 0.001]``, as a user would write it."""
    return f"[{low:.6g}, {high:.6g}]"
