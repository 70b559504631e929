"""Successive halving: which trials are promoted to the next rung.

The best trials by the metric at their current rung are promoted.

Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization", AISTATS 2016.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from common.search.plan import ETA


@dataclass(frozen=True)
class Candidate:
    """A trial that has completed a rung and was not trained beyond it.

    Exploded, stopped, failed and killed trials are not candidates. A configuration that its stage
    repeats is one candidate: ``goodness`` is the mean of its runs.
    """

    trial: str  # of a configuration the first
    stage: int  # position of its stage in the search
    index: int
    goodness: float  # the metric at the rung, with its sign set so that larger is better
    violates: bool = False  # a constraint of the search
    lost: int = 0  # runs of the configuration that did not end well
    runs: tuple[str, ...] = ()  # of the configuration, those that can go on


def choose(candidates: Sequence[Candidate], k: int) -> list[str]:
    """Return the ``k`` best trials, best first.

    Among equals, the trial of the earlier stage comes first, then the one with the lower number. A
    trial that violates a constraint comes after all that satisfy them. A configuration of which a
    run did not end well comes after those whose runs all did, since the mean of the others is
    flattered. A trial whose metric is not finite is never promoted.
    """
    measured = [one for one in candidates if math.isfinite(one.goodness)]
    ordered = sorted(
        measured,
        key=lambda one: (one.violates, one.lost, -one.goodness, one.stage, one.index),
    )
    return [one.trial for one in ordered[: max(k, 0)]]


def certain(candidates: Sequence[Candidate], n_unfinished: int, k: int) -> list[str]:
    """Return the trials that will be among the ``k`` best whatever the unfinished ones do.

    The result is sorted, best first. These trials can be promoted at once: the decision at the
    barrier will contain them.

    Args:
        candidates: the trials that are at the rung now.
        n_unfinished: number of trials that may still reach the rung; each of them may turn out to
            be better than all candidates.
        k: number of trials that are promoted in all.
    """
    return choose(candidates, k - n_unfinished)


def promotable(known: Sequence[Candidate], promoted: Collection[str]) -> list[str]:
    """Return the trials that an asynchronous schedule promotes now, best first.

    No trial waits for a barrier: a trial is promoted as soon as it is in the best third of the
    trials that are known to have completed the rung. Which trials are promoted therefore depends on
    the order in which they end.

    Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020 (ASHA).

    Args:
        known: all trials that have completed the rung so far, with their metric at that rung; this
            includes the trials that were promoted from it.
        promoted: the trials that were promoted.
    """
    return [trial for trial in choose(known, len(known) // ETA) if trial not in promoted]
