"""Advice on the learning rate for a search in which no trial learns: a direction and a range.

An update is the learning rate times a step that the update rule computes from the gradient. So the
ratio of update to weight is proportional to the learning rate, and a ratio measured at one rate
tells which rate has a healthy ratio.

Source: CS231n notes, "Babysitting the learning process" (ratio of updates to weights: about 1e-3).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from common.search.parameters import LogUniform
from common.search.values import Value
from master.strategy.scales import format_range

HEALTHY = 1e-3  # healthy ratio of update to weight
FAR_BELOW = 1e-4  # a tenth of it: if the median trial is below, the rates are too low
# Fifty times the healthy ratio: the steps replace the weights. A trial's diagnosis uses the same.
LARGE = 5e-2
# Share of a layer's units. A rate that is too high kills units, and dead units get no more updates.
DEAD = 0.4
# Ratios that the proposed range covers. Short trainings need more than the healthy ratio.
WINDOW = (HEALTHY / 10, HEALTHY * 100)
# Width of a range below the lowest rate that was too high, where no measurement tells how wide.
BLIND_DECADES = 6
USUAL = 10.0  # upper end of the range that `master init` writes; higher rates hardly ever learn
NAME = re.compile(r"(^|_)(lr|learning_rate)(_|$)", re.IGNORECASE)
LEAST, MOST = 1e-30, 1e30  # limits of proposed ends


class Direction(StrEnum):
    """The direction in which the learning rate should move."""

    RAISE = "raise"
    LOWER = "lower"
    BETWEEN = "between"  # low rates hardly move the weights, high rates explode
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Steps:
    """The size of a trial's steps.

    ``ratio`` is the ratio of update to weight: the median over layers, then over evaluations. It is
    None if it was not measured. ``dead`` is the largest share of units in one layer that pass no
    gradient.
    """

    exploded: bool
    hyperparameters: Mapping[str, Value]
    ratio: float | None = None
    dead: float = 0.0

    @property
    def too_high(self) -> bool:
        """Whether the rate was too high."""
        return (
            self.exploded or self.dead >= DEAD or (self.ratio is not None and self.ratio >= LARGE)
        )

    @property
    def too_low(self) -> bool:
        """Whether a step changed the weights by less than is healthy."""
        return not self.too_high and self.ratio is not None and self.ratio < HEALTHY


@dataclass(frozen=True)
class Advice:
    """A direction, its reason, and a range for each learning rate.

    A hyperparameter is a learning rate by its name.
    """

    direction: Direction
    why: str
    ranges: Mapping[str, LogUniform]

    @property
    def lines(self) -> list[str]:
        """The ranges as lines of a search file."""
        return [
            f"{name} = {{ {own.kind} = {format_range(own.low, own.high)} }}"
            for name, own in self.ranges.items()
        ]

    @property
    def words(self) -> str:
        """The end of a sentence that gives the reason and the direction, without the ranges."""
        if self.direction is Direction.UNKNOWN:
            return f"{self.why}, so whether the learning rate is too low or too high is not known"
        verb = "move" if self.direction is Direction.BETWEEN else self.direction.value
        if not self.ranges:
            return (
                f"{self.why}: {verb} the learning rate; "
                "no hyperparameter is named as a learning rate"
            )
        return f"{self.why}: {verb} {' and '.join(self.ranges)}"


def advise(trials: Sequence[Steps]) -> Advice:
    """Return how to change the learning rate, given trials of which none has learned.

    Args:
        trials: the trials that were measured or that exploded; at least one.
    """
    low = [one for one in trials if one.too_low]
    hardly = rates_of([one for one in low if one.ratio is not None and one.ratio <= FAR_BELOW])
    harmless = {name: max(rates) for name, rates in hardly.items()}
    high = [one for one in trials if one.too_high and not _is_luck(one, harmless)]
    others = [
        one for one in trials if one.ratio is not None and not one.too_low and not one.too_high
    ]
    n_exploded = sum(one.exploded for one in trials)  # whether or not by chance
    of_all = f"{n_exploded} of {len(trials)} trials exploded"
    ratio = median(one.ratio for one in low if one.ratio is not None) if low else math.nan
    # ``ratio`` is nan if no trial has too low a rate.
    far = f"{math.log10(HEALTHY / ratio):.0f} decades below" if ratio > 0 else "below"
    small = (
        f"a step changes the weights by {ratio:.1e} of their size, {far} the {HEALTHY:g} that is "
        "healthy"
    )
    if low and not high and not others and ratio <= FAR_BELOW and 2 * n_exploded <= len(trials):
        why = f"""{small}, and {
            "none" if not n_exploded else f"at higher rates than the {n_exploded} that did, none"
        } exploded"""
        return Advice(Direction.RAISE, why, _healthy(low, []))
    if low and high and not others:
        above = of_all if any(one.exploded for one in high) else "high rates kill units"
        return Advice(Direction.BETWEEN, f"{small}, and {above}", _healthy(low, high))
    if not low and not others and 2 * len(high) > len(trials):
        if n_exploded:
            return Advice(Direction.LOWER, of_all, _below(high))
        return Advice(
            Direction.LOWER,
            f"in {len(high)} of {len(trials)} trials the steps replace the weights or kill units",
            _below(high),
        )
    if 2 * sum(one.exploded for one in high) > len(trials):
        return Advice(Direction.LOWER, of_all, _below(high))
    measured = [one.ratio for one in trials if one.ratio is not None]
    told = (
        f"a step changes the weights by {median(measured):.1e} of their size"
        if measured
        else "the size of the steps is not measured"
    )
    return Advice(Direction.UNKNOWN, f"{told} and {of_all}", {})


def rates_of(trials: Sequence[Steps]) -> dict[str, list[float]]:
    """Return the values of each hyperparameter that is a learning rate by name, one per trial."""
    found: dict[str, list[float]] = {}
    for one in trials:
        for name, value in one.hyperparameters.items():
            if (
                NAME.search(name)
                and isinstance(value, int | float)
                and not isinstance(value, bool)
                and value > 0
            ):
                found.setdefault(name, []).append(float(value))
    return found


def _is_luck(one: Steps, harmless: Mapping[str, float]) -> bool:
    """Return whether an explosion is due to chance and not to the learning rate.

    That is so if trials with rates at least as high hardly moved their weights. A first loss can be
    low by chance, and then three times that loss is reached soon.
    """
    rates = rates_of([one])
    return (
        one.exploded
        and bool(rates)
        and all(harmless.get(name, 0.0) >= own[0] for name, own in rates.items())
    )


def _healthy(low: Sequence[Steps], high: Sequence[Steps]) -> dict[str, LogUniform]:
    """Return ranges in which the ratio is about healthy, below the rates that were too high."""
    ceilings, found = rates_of(high), {}
    for name in rates_of(low):
        slopes = [
            one.ratio / rate for one in low if one.ratio for rate in rates_of([one]).get(name, ())
        ]
        if slopes:
            start, end = (ratio / median(slopes) for ratio in WINDOW)
            end = min([end, *ceilings.get(name, ())])
            found[name] = _range(start if start < end else end / 10**BLIND_DECADES, end)
    return found


def _below(high: Sequence[Steps]) -> dict[str, LogUniform]:
    """Return the decades below the lowest rate that was too high, and below ``USUAL``."""
    ends = {name: min(USUAL, *rates) for name, rates in rates_of(high).items()}
    return {name: _range(end / 10**BLIND_DECADES, end) for name, end in ends.items()}


def _range(low: float, high: float) -> LogUniform:
    """Return a range with ends of one digit, at least a decade apart."""
    start, end = (float(f"{min(max(value, LEAST), MOST):.0e}") for value in (low, high))
    return (
        LogUniform(start, end) if end >= 10 * start else LogUniform(float(f"{end / 10:.0e}"), end)
    )
