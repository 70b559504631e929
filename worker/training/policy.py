"""When a stage stops a trial that goes on without promise. Pure: curves in, a sentence or None out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.trial import NO_PROGRESS

STANDARD_ERRORS = 2.0  # one-sided: a model that guesses passes it in 2 of 100 evaluations
LOSS_SHARE = 0.01  # a loss lower than chance's by this share is learning, even where the accuracy does not show it yet
ROUNDING_EPOCHS = 1e-9  # epochs are steps divided by steps an epoch

Values = Sequence[float | None]


def no_progress(values: Values, epochs: Sequence[float], mode: str, patience: float) -> str | None:
    """Why to stop early: the last ``patience`` epochs brought no better value of the metric.

    Only a strictly better value counts as progress; what is missing or not finite does not. Before the first value nothing is judged.

    Args:
        values: the metric at each evaluation.
        epochs: when those were.
        mode: "max" or "min", what is better.
        patience: epochs.

    Returns:
        The reason, None to go on.

    Source: Prechelt, "Early stopping, but when?", 1998, criterion UP by its length, in epochs.
    """
    best: tuple[float, float] | None = None  # (value, epoch)
    for value, epoch in zip(values, epochs, strict=True):
        if value is not None and math.isfinite(value) and (best is None or (value > best[0] if mode == "max" else value < best[0])):
            best = (value, epoch)
    if best is None or epochs[-1] - best[1] < patience - ROUNDING_EPOCHS:
        return None
    return f"{NO_PROGRESS}: best value {best[0]:.4g} at epoch {best[1]:g}, none better in {epochs[-1] - best[1]:g} epochs"


def at_chance(
    accuracies: Values,
    losses: Values,
    epochs: Sequence[float],
    *,
    grace: float,
    n_classes: int,
    n_examples: int,
    chance: float | None = None,
) -> str | None:
    """Why to stop: after ``grace`` epochs no evaluation was better than guessing.

    Better than guessing is an accuracy more than two standard errors above 1 / classes, or a loss more than 1 % below that of a
    model that says so. One such evaluation keeps the trial: a good one may have a bad epoch. Where the classes are not
    balanced a model that always names the largest is taken for one that learns, and goes on.

    Args:
        accuracies: validation accuracy at each evaluation.
        losses: validation loss at each evaluation.
        epochs: when those were.
        grace: epochs before anything is judged.
        n_classes: of the task.
        n_examples: in the validation part.
        chance: the loss of guessing; None for ln(n_classes), NaN where the loss has no such value and only the accuracy tells.

    Returns:
        The reason, None to go on.

    Source: CS231n notes, "Neural networks 3", Sanity checks: the loss at chance is ln of the number of classes; the standard error is that
    of a binomial share.
    """
    if epochs[-1] < grace - ROUNDING_EPOCHS:
        return None
    right, wrong = _finite(accuracies), _finite(losses)
    if not right:
        return None
    share, guessing = 1 / n_classes, math.log(n_classes) if chance is None else chance
    limit = share + STANDARD_ERRORS * math.sqrt(share * (1 - share) / n_examples)
    if max(right) > limit or (wrong and min(wrong) < (1 - LOSS_SHARE) * guessing):
        return None
    lowest = f", lowest loss {min(wrong):.4g} (chance: {guessing:.4g})" if wrong and not math.isnan(guessing) else ""
    return f"no better than guessing after {epochs[-1]:g} epochs: best accuracy {max(right):.4g} (up to {limit:.4g} is chance){lowest}"


def _finite(values: Values) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
