"""Warnings of a best value on the border of its range: the optimum may lie beyond it.

Source: CS231n notes, "Hyperparameter optimization": "Careful with best values on border".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.record import Record
from common.space import Space
from master.ranking import best
from master.scales import Side, numbers, outer, outer_share, past, rounded, shown

BORDER_SHARE = 0.05  # of the range, in its sampling scale: a best value in there is always told
SUPPORT_SHARE = 0.10  # of the range: where the best of a ranking gather if the optimum lies beyond
SUPPORT_TRIALS = 10  # the best trials that are asked
MOVING_SUPPORT = 4  # of these 10: by chance in one ranking of a hundred (binomial, 10 draws at 0.1: 1.3 %)
MOVING_CHANCE = 0.013  # the same as a probability, for whole numbers, whose outer share may be far more than a tenth


@dataclass(frozen=True)
class Border:
    """One best value on the border of its range. ``support``: how many of the best 10 lie in the outer 10 % of that side."""

    hyperparameter: str
    side: Side
    best: float
    range: tuple[float, float]
    support: int
    advice: str
    moves: bool  # the support is strong enough for the next stage's range to move past the border

    @property
    def as_json(self) -> dict[str, object]:
        """As ``master borders --json`` prints it."""
        return {
            "hyperparameter": self.hyperparameter,
            "side": self.side,
            "best": self.best,
            "range": list(self.range),
            "support": self.support,
            "advice": self.advice,
        }

    @property
    def text(self) -> str:
        """The warning as the terminal shows it."""
        return f"border: {self.advice}"


def borders(records: Sequence[Record], space: Space) -> list[Border]:
    """The hyperparameters whose best value lies in the outer 5 % of the range it was sampled from.

    Args:
        records: of one stage, in any order; the best completed trial is the one that counts.
        space: the ranges that the stage sampled.
    """
    top = best(records, SUPPORT_TRIALS)
    found = (_border(top, space, name) for name in space.numeric)
    return [border for border in found if border]


def _border(top: Sequence[Record], space: Space, name: str) -> Border | None:
    parameter = space.numeric[name]
    values = numbers(top, name)
    side = outer(parameter, numbers(top[:1], name)[0], BORDER_SHARE) if numbers(top[:1], name) else None
    if side is None:
        return None
    support = sum(outer(parameter, value, SUPPORT_SHARE) == side for value in values)
    chance = _chance(support, len(values), outer_share(parameter, side, SUPPORT_SHARE))
    moves = support >= MOVING_SUPPORT and chance <= MOVING_CHANCE
    value = int(values[0]) if parameter.integer else values[0]
    advice = _advice(space, name, side, value, support, len(values))
    return Border(name, side, value, (parameter.low, parameter.high), support, advice, moves)


def _chance(successes: int, n: int, p: float) -> float:
    """The probability of at least so many successes in n independent draws."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(successes, n + 1))


def _advice(space: Space, name: str, side: Side, value: float, support: int, n: int) -> str:
    parameter = space.numeric[name]
    where = f"the best {name}, {value:.4g}, lies at the {side} end of its range {shown(parameter.low, parameter.high)}"
    gathered = f"{support} of the best {n} in the outer {SUPPORT_SHARE:.0%} of that side"
    end = past(space, name, side)
    if end is None:
        limit = parameter.low if side == "low" else parameter.high
        return f"{where} ({gathered}); {limit:g} is as {side} as {name} may go, so there is nothing to try beyond it"
    low, high = parameter.scaled
    middle = parameter.from_scale((low + high) / 2)
    tried = shown(end, rounded(parameter, middle, up=True)) if side == "low" else shown(rounded(parameter, middle, up=False), end)
    return f"{where} ({gathered}); try {name} = {{ {parameter.kind} = {tried} }}"
