"""Ensembles: mean probabilities of several models, and their gain over the best single model.

Source: CS231n notes, "Model Ensembles": the same model from different initialisations, the top
models of a search, checkpoints of one model over time; Caruana et al., "Ensemble Selection from
Libraries of Models", ICML 2004: greedy selection with replacement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.folder.predictions import Part, Predictions
from common.intervals import compute_paired_difference

GREEDY_ROUNDS = 50  # the finest weight of a model is one fiftieth
# Least probability of the right class in a log loss. Without it, ruling that class out would cost
# infinity.
LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Member:
    """A kept model and its predictions."""

    trial: str
    checkpoint: str  # path of its weights below the search's folder
    epoch: int
    predictions: Predictions


@dataclass(frozen=True)
class Score:
    """Score of one model, or of a mixture, on one part."""

    correct: int
    n: int
    log_loss: float  # mean negative log probability of the right class, in nats

    @property
    def accuracy(self) -> float:
        """Share of the examples that are classified correctly."""
        return self.correct / self.n


@dataclass(frozen=True)
class Gain:
    """Difference of two accuracies on the same examples, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Ensemble:
    """Some models of a pool, each with a weight.

    ``best`` is the pool's best single model on the validation part. The ensemble is compared with
    it on every part.
    """

    kind: str
    members: Sequence[Member]
    weights: Sequence[int]
    best: Member

    @property
    def val(self) -> Part:
        """Predictions for the validation part."""
        return mixture([member.predictions.val for member in self.members], self.weights)

    @property
    def test(self) -> Part | None:
        """Predictions for the test part; None if any member has none."""
        parts = [member.predictions.test for member in self.members]
        known = [part for part in parts if part is not None]
        return mixture(known, self.weights) if len(known) == len(parts) else None


def mixture(parts: Sequence[Part], weights: Sequence[int]) -> Part:
    """Return the weighted mean of the probabilities of several models on the same examples."""
    total = np.zeros(parts[0].probabilities.shape)
    for part, weight in zip(parts, weights, strict=True):
        total += weight * part.probabilities
    return Part((total / sum(weights)).astype(np.float32), parts[0].targets)


def score(part: Part) -> Score:
    """Return the number of correct predictions and the log loss."""
    right = _right(part)
    of_target = part.probabilities[np.arange(len(part)), part.targets]
    return Score(
        int(right.sum()),
        len(part),
        float(-np.log(np.maximum(of_target, LEAST_PROBABILITY), dtype=np.float64).mean()),
    )


def gain(first: Part, second: Part) -> Gain:
    """Return how much the accuracy of the first exceeds the second's on the same examples."""
    one, other = _right(first), _right(second)
    only_first, only_second, n = int((one & ~other).sum()), int((other & ~one).sum()), len(first)
    low, high = compute_paired_difference(only_first, only_second, n)
    return Gain((only_first - only_second) / n, low, high, n)


def of_all(kind: str, members: Sequence[Member]) -> Ensemble:
    """Return an ensemble of all these models, each once.

    Args:
        kind: the kind of the ensemble.
        members: best first.
    """
    return Ensemble(kind, members, [1] * len(members), members[0])


def greedy(members: Sequence[Member], by_loss: bool = False) -> Ensemble:
    """Return the best mixture found by greedy selection with replacement.

    Each round adds the model that helps most on the validation part. The best mixture of all rounds
    counts.

    Args:
        members: the pool, best first.
        by_loss: whether the log loss counts first and accuracy breaks ties; else the other way
            round.
    """
    # Shape (models, examples, classes).
    pool = np.stack([member.predictions.val.probabilities for member in members]).astype(np.float64)
    targets = members[0].predictions.val.targets
    total, times = np.zeros(pool.shape[1:]), np.zeros(len(members), dtype=np.int64)
    best_key, best_times = (-math.inf, -math.inf), times
    for size in range(1, GREEDY_ROUNDS + 1):
        keys = [_key((total + candidate) / size, targets, by_loss) for candidate in pool]
        # Among equals, this is the one that ranks first.
        chosen = max(range(len(members)), key=lambda k: keys[k])
        total += pool[chosen]
        times[chosen] += 1
        if keys[chosen] > best_key:
            best_key, best_times = keys[chosen], times.copy()
    order = sorted(np.flatnonzero(best_times).tolist(), key=lambda k: (-best_times[k], k))
    return Ensemble(
        "greedy", [members[k] for k in order], [int(best_times[k]) for k in order], members[0]
    )


def same_data(members: Sequence[Member]) -> Member | None:
    """Return the first member whose examples or classes differ from those of the best.

    Return None if all members have the same data.
    """
    for member in members[1:]:
        for own, first in (
            (member.predictions.val, members[0].predictions.val),
            (member.predictions.test, members[0].predictions.test),
        ):
            if own is None or first is None:
                if own is not first:
                    return member
            elif own.probabilities.shape != first.probabilities.shape or not np.array_equal(
                own.targets, first.targets
            ):
                return member
    return None


def _right(part: Part) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = part.probabilities.argmax(axis=1) == part.targets
    return found


def _key(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64], by_loss: bool
) -> tuple[float, float]:
    """Return what mixtures are compared by; greater is better."""
    n_right = float((probabilities.argmax(axis=1) == targets).sum())
    log_likelihood = float(
        np.log(np.maximum(probabilities[np.arange(len(targets)), targets], LEAST_PROBABILITY)).sum()
    )
    return (log_likelihood, n_right) if by_loss else (n_right, log_likelihood)
