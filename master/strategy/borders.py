"""Warnings that a best value lies on the border of its range: the optimum may lie beyond it.

Source: CS231n notes, "Hyperparameter optimization": "Careful with best values on border".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from common.folder.record import Record
from common.search.space import Space
from common.search.values import Hyperparameters
from master.results.ranking import best_configurations
from master.strategy.scales import Side, format_range, numbers, outer, outer_share, past, round_end

# Outer share of the range, in its sampling scale. A best value in there always gets a warning.
BORDER_SHARE = 0.05
# Outer share of the range in which the best trials gather if the optimum lies beyond the border.
SUPPORT_SHARE = 0.10
SUPPORT_TRIALS = 10  # number of best trials that are considered
# Of these 10. By chance this happens in 1.3 % of rankings (binomial, 10 draws at 0.1).
MOVING_SUPPORT = 4
# The same as a probability. It is for integers, whose outer share may be far more than a tenth.
MOVING_CHANCE = 0.013


@dataclass(frozen=True)
class Border:
    """A best value that lies on the border of its range.

    ``support`` is how many of the best 10 trials lie in the outer 10 % of that side.
    """

    hyperparameter: str
    side: Side
    best: float
    range: tuple[float, float]
    support: int
    advice: str
    of: int  # how many trials were considered: the best 10 that have the hyperparameter
    # Whether the support is strong enough to move the next stage's range past the border.
    moves: bool

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two warnings the same, however many trials support them."""
        return (self.hyperparameter, self.side, self.range)

    @property
    def as_json(self) -> dict[str, object]:
        """The border in the form that ``master borders --json`` prints."""
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
        """The warning that the terminal shows."""
        return f"border: {self.advice}"


def borders(records: Sequence[Record], space: Space) -> list[Border]:
    """Return the hyperparameters whose best value lies in the outer 5 % of their sampled range.

    Args:
        records: the records of one stage, in any order; the best completed trial counts.
        space: the ranges that the stage sampled.
    """
    return borders_of([r.hyperparameters for r in best_configurations(records)], space)


def borders_of(top: Sequence[Hyperparameters], space: Space) -> list[Border]:
    """Return the same as ``borders``, given the best configurations.

    Args:
        top: the hyperparameters of the best trials, best first; of each hyperparameter the first
            ``SUPPORT_TRIALS`` that have it are used.
        space: the ranges whose ends are checked.
    """
    found = (_border(top, space, name) for name in space.ranged)
    return [border for border in found if border]


def _border(top: Sequence[Hyperparameters], space: Space, name: str) -> Border | None:
    parameter = space.ranged[name]
    values = list(islice(numbers(top, name), SUPPORT_TRIALS))
    side = outer(parameter, values[0], BORDER_SHARE) if values else None
    if side is None:
        return None
    support = sum(outer(parameter, value, SUPPORT_SHARE) == side for value in values)
    chance = _chance(support, len(values), outer_share(parameter, side, SUPPORT_SHARE))
    moves = support >= MOVING_SUPPORT and chance <= MOVING_CHANCE
    value = int(values[0]) if parameter.integer else values[0]
    advice = _advice(space, name, side, value, support, len(values))
    return Border(
        name, side, value, (parameter.low, parameter.high), support, advice, len(values), moves
    )


def _chance(successes: int, n: int, p: float) -> float:
    """Return the probability of at least ``successes`` successes in n independent draws."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(successes, n + 1))


def _advice(space: Space, name: str, side: Side, value: float, support: int, n: int) -> str:
    parameter = space.ranged[name]
    where = (
        f"the best {name}, {value:.4g}, lies at the {side} end of its range "
        f"{format_range(parameter.low, parameter.high)}"
    )
    gathered = f"{support} of the best {n} in the outer {SUPPORT_SHARE:.0%} of that side"
    end = past(space, name, side)
    if end is None:
        limit = parameter.low if side == "low" else parameter.high
        return (
            f"{where} ({gathered}); {limit:g} is as {side} as {name} may go, so there is nothing "
            "to try beyond it"
        )
    low, high = parameter.scaled
    middle = parameter.from_scale((low + high) / 2)
    tried = (
        format_range(end, round_end(parameter, middle, up=True))
        if side == "low"
        else format_range(round_end(parameter, middle, up=False), end)
    )
    step = f", step = {parameter.step:g}" if parameter.step else ""
    return f"{where} ({gathered}); try {name} = {{ {parameter.kind} = {tried}{step} }}"
