"""Which trials that ended at a rung may still be promoted. Only their states are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from common.search.plan import StagePlan

# The margin is half of what one stage promotes: the next stage may promote some that this one did
# not.
MARGIN_SHARE = 2
LEAST_MARGIN = 4  # the margin where a stage promotes one or two
SAME_EPOCHS = 1e-9  # tolerance, since budgets are written and read again


@dataclass(frozen=True)
class Standing:
    """A trial that has ended at a rung."""

    trial_id: str
    index: int
    value: float  # the search's metric
    violates: bool = False  # a constraint of the search


def most_promotable(plans: Iterable[StagePlan], epochs: float) -> int:
    """Return for how many trials of one stage at ``epochs`` a state is worth keeping.

    It is the largest number that any stage of the plan promotes from there, plus a margin; 0 if
    none does. If a trial beyond it is promoted all the same, it starts from the beginning. The
    result is the same, but its first epochs are trained twice.
    """
    # No trial goes on from the last rung.
    promoted = [
        after
        for plan in plans
        for rung, after in zip(plan.rungs, plan.keep[1:], strict=False)
        if abs(rung - epochs) <= SAME_EPOCHS
    ]
    most = max(promoted, default=0)
    return most + max(LEAST_MARGIN, most // MARGIN_SHARE) if most else 0


def find_repeats(plans: Iterable[StagePlan]) -> int:
    """Return how many trials each configuration of the stages with several rungs has."""
    return max((plan.repeats for plan in plans if len(plan.rungs) > 1), default=1)


def best_standing(standing: Sequence[Standing], most: int, mode: str, repeats: int = 1) -> set[str]:
    """Return the ids of the best ``most`` trials.

    The order is that of promotion: those that violate no constraint first, then by value, then by
    index. Trials of a repeated configuration stand together, by their mean. If not all of them are
    known here, the others may still raise it, so they are returned besides.

    Args:
        standing: trials of one stage that ended at the same rung.
        most: how many to return.
        mode: "max" or "min": which values are better.
        repeats: how many trials a configuration has. Their numbers follow one another.
    """
    if not most:
        return set()
    sign = -1.0 if mode == "max" else 1.0
    runs: dict[int, list[Standing]] = {}
    for one in standing:
        runs.setdefault(one.index // repeats, []).append(one)
    whole = {number: own for number, own in runs.items() if len(own) == repeats}
    ranked = sorted(
        whole,
        key=lambda number: (
            any(one.violates for one in whole[number]),
            sign * fmean(one.value for one in whole[number]),
            number,
        ),
    )
    kept = {*ranked[: -(-most // repeats)], *(runs.keys() - whole.keys())}
    return {one.trial_id for number in kept for one in runs[number]}
