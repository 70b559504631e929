"""The next stage's ranges from a ranking: narrowed around the best, moved past a border that has support.

Source: CS231n notes, "Hyperparameter optimization" ("Stage your search from coarse to fine"); the rules and their figures are this
project's own, see docs/decisions.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.record import Record
from common.search import Stage
from common.space import Choice, Fixed, Numeric, Parameter, Scalar, Space
from master.borders import Border, borders
from master.ranking import best
from master.scales import Side, numbers, past, rounded

MIN_COMPLETED = 10  # with fewer a span is an accident
BEST_TRIALS = 20  # at least so many of the best make the span: the best of few is mostly luck
BEST_SHARE = 0.15  # of the completed trials, where that is more
SPAN_MARGIN = 0.10  # of the span, on each side: about two gaps between 20 evenly spread values
RANGE_MARGIN = 0.025  # of the old range, on each side: what is left is never narrower than a twentieth of it
MIN_BEYOND = 5  # ended trials beyond a cut: what was hardly tried is not dismissed
MIN_OPTION_TRIALS = 8  # ended trials of an option before it may be dropped
OPTION_CHANCE = 0.05  # its absence from the best must be less likely than this
DECADE = 10.0
LEARNING_RATES = frozenset({"learning_rate", "lr"})  # one epoch favours the fast; longer training wants smaller steps
STRONG_SIDES: dict[str, Side] = {  # where the regulariser is strongest: over one epoch it only costs, over many it pays
    "weight_decay": "high",
    "l1": "high",
    "l2": "high",
    "dropout": "high",
    "input_dropout": "high",
    "label_smoothing": "high",
    "augment_noise": "high",
    "augment_shift": "high",
    "augment_flip": "high",
    "augment_rotate": "high",
    "augment_zoom": "high",
    "input_noise": "high",  # this one, l2 and mixup: usual names of tasks of the user's own
    "mixup": "high",
    "max_norm": "low",
}


@dataclass(frozen=True)
class Proposal:
    """The ranges proposed for the next stage, and for each sampled hyperparameter a sentence that says why."""

    space: Space
    notes: dict[str, str]


@dataclass(frozen=True)
class _Evidence:
    """What the ended stage knows, and whether the next one trains longer."""

    ended: Sequence[Record]
    top: Sequence[Record]
    n_completed: int
    longer: bool

    @property
    def enough(self) -> bool:
        return self.n_completed >= MIN_COMPLETED


def propose(records: Sequence[Record], ranges: Space, first: Space, stage: Stage, following: Stage) -> Proposal:
    """The ranges of the stage that follows.

    Args:
        records: of the ended stage, in any order.
        ranges: what it sampled.
        first: the search file's ``[space]``; an end that lies beyond it has been moved before and is not moved again.
        stage: the ended stage.
        following: the next one; where it trains longer, small learning rates and strong regularisation keep their chance.
    """
    completed = best(records)
    n_top = max(BEST_TRIALS, math.ceil(BEST_SHARE * len(completed)))
    evidence = _Evidence(records, completed[:n_top], len(completed), following.epochs > stage.epochs)
    found = {border.hyperparameter: border for border in borders(records, ranges)}
    parameters: dict[str, Parameter] = {}
    notes: dict[str, str] = {}
    for name, parameter in ranges.parameters.items():
        if isinstance(parameter, Fixed):
            parameters[name] = parameter
        elif isinstance(parameter, Choice):
            parameters[name], notes[name] = _options(name, parameter, evidence)
        else:
            parameters[name], notes[name] = _range(name, ranges, first, evidence, found.get(name))
    return Proposal(Space(parameters), notes)


def _range(name: str, ranges: Space, first: Space, evidence: _Evidence, border: Border | None) -> tuple[Numeric, str]:
    parameter = ranges.numeric[name]
    ends: dict[Side, float] = {"low": parameter.low, "high": parameter.high}
    reasons: list[str] = []
    if evidence.enough:
        ends, reasons = _cut(name, parameter, evidence)
        if evidence.longer and name in LEARNING_RATES:
            ends["low"], reason = _decade_lower(ends["low"], ranges.limits(name)[0])
            reasons.append(reason)
    else:
        reasons.append(f"not narrowed: {evidence.n_completed} completed trials are fewer than {MIN_COMPLETED}")
    if border is not None:
        end, reason = _past_border(name, ranges, first, border)
        if end is not None:
            ends[border.side] = min(end, ends["low"]) if border.side == "low" else max(end, ends["high"])
        reasons.append(reason)
    low, high = _apart(parameter, ends["low"], ends["high"])
    return parameter.moved(low, high), "; ".join(reasons) or f"kept: the best {len(evidence.top)} span it"


def _cut(name: str, parameter: Numeric, evidence: _Evidence) -> tuple[dict[Side, float], list[str]]:
    """The ends after narrowing to the span of the best with a margin, each only where enough ended trials lie beyond."""
    ends: dict[Side, float] = {"low": parameter.low, "high": parameter.high}
    values = numbers(evidence.top, name)
    if not values:
        return ends, []
    positions = [parameter.to_scale(value) for value in values]
    width = parameter.to_scale(parameter.high) - parameter.to_scale(parameter.low)
    margin = max(SPAN_MARGIN * (max(positions) - min(positions)), RANGE_MARGIN * width)
    cuts: dict[Side, float] = {
        "low": rounded(parameter, parameter.from_scale(min(positions) - margin), up=False),
        "high": rounded(parameter, parameter.from_scale(max(positions) + margin), up=True),
    }
    tried = numbers(evidence.ended, name)
    beyond = {"low": sum(v < cuts["low"] for v in tried), "high": sum(v > cuts["high"] for v in tried)}
    inside = {"low": cuts["low"] > parameter.low, "high": cuts["high"] < parameter.high}
    reasons = []
    for side in (side for side in ends if inside[side]):
        if evidence.longer and STRONG_SIDES.get(name) == side:
            reasons.append(f"{side} end not cut: the next stage trains longer, where strong regularisation pays")
        elif beyond[side] >= MIN_BEYOND:
            ends[side] = cuts[side]
            reasons.append(f"{side} end cut: the best {len(values)} keep away from it, {beyond[side]} trials ended there")
        else:
            reasons.append(f"{side} end not cut: only {beyond[side]} trials ended beyond {cuts[side]:.4g}, fewer than {MIN_BEYOND}")
    return ends, reasons


def _decade_lower(low: float, limit: float) -> tuple[float, str]:
    lower = max(float(f"{low / DECADE:.12g}"), limit) if low > 0 else low
    if lower >= low:
        return low, f"low end stays at {low:g}, the least that it may be"
    return lower, "low end a decade lower: the next stage trains longer, which favours smaller steps"


def _past_border(name: str, ranges: Space, first: Space, border: Border) -> tuple[float | None, str]:
    """Where the range ends when it moves past the border, None if it does not, and why."""
    where = f"best value on the {border.side} border with support {border.support}"
    if not border.moves:
        return None, f"{where}: too weak to move the range"
    if _moved_before(ranges.numeric[name], first.numeric.get(name), border.side):
        return None, f"{where}: that end has been moved already"
    end = past(ranges, name, border.side)
    if end is None:
        return None, f"{where}: that end is as far as it may go"
    return end, f"{where}: moved past it to {end:.4g}"


def _moved_before(now: Numeric, first: Numeric | None, side: Side) -> bool:
    if first is None:
        return False
    return now.low < first.low if side == "low" else now.high > first.high


def _apart(parameter: Numeric, low: float, high: float) -> tuple[float, float]:
    """Two different ends: a whole number that is left alone takes a neighbour from the old range along."""
    if low < high:
        return low, high
    return (low, high + 1) if high < parameter.high else (low - 1, high)


def _options(name: str, parameter: Choice, evidence: _Evidence) -> tuple[Choice, str]:
    if not evidence.enough:
        return parameter, f"not narrowed: {evidence.n_completed} completed trials are fewer than {MIN_COMPLETED}"
    dropped = [option for option in parameter.options if _hopeless(name, option, evidence)]
    if not dropped:
        return parameter, "kept: no option is absent from the best beyond chance"
    kept = tuple(option for option in parameter.options if option not in dropped)
    listed = ", ".join(str(option) for option in dropped)
    return Choice(kept), f"dropped {listed}: not among the best {len(evidence.top)}, which is unlikely by chance"


def _hopeless(name: str, option: Scalar, evidence: _Evidence) -> bool:
    """Whether enough trials of an option ended, and none of them is among the best although chance would have put one there."""
    n_ended, n_top = len(evidence.ended), len(evidence.top)
    n_own = sum(record.hyperparameters.get(name) == option for record in evidence.ended)
    if n_own < MIN_OPTION_TRIALS or any(record.hyperparameters.get(name) == option for record in evidence.top):
        return False
    return _chance_of_none(n_ended, n_own, n_top) < OPTION_CHANCE


def _chance_of_none(n: int, n_marked: int, n_drawn: int) -> float:
    """The chance that ``n_drawn`` of ``n`` hold none of the marked ones, by logarithms so that a million trials are no trouble.

    Source: the hypergeometric distribution, C(n - n_marked, n_drawn) / C(n, n_drawn).
    """
    if n_drawn > n - n_marked:
        return 0.0
    terms = (n - n_marked + 1, n - n_drawn + 1), (n - n_marked - n_drawn + 1, n + 1)
    return math.exp(sum(map(math.lgamma, terms[0])) - sum(map(math.lgamma, terms[1])))
