"""Rules that stop a trial without promise: pure functions from curves to a reason or None."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.search.trial import NO_PROGRESS

STANDARD_ERRORS = 2.0  # one-sided: a model that guesses exceeds this in 2 of 100 evaluations
# A loss this share below that of chance is learning, even if the accuracy does not show it yet.
LOSS_SHARE = 0.01
ROUNDING_EPOCHS = 1e-9  # epochs are steps divided by steps per epoch

Values = Sequence[float | None]


def no_progress(values: Values, epochs: Sequence[float], mode: str, patience: float) -> str | None:
    """Return why to stop: the last ``patience`` epochs brought no better value of the metric.

    Only a strictly better value counts as progress. A missing or non-finite value does not. Nothing
    is judged before the first value.

    Args:
        values: the metric at each evaluation.
        epochs: the epoch of each evaluation.
        mode: "max" if higher is better, or "min".
        patience: epochs.

    Returns:
        The reason, or None to go on.

    Source: Prechelt, "Early stopping, but when?", 1998, criterion UP by its length, in epochs.
    """
    best: tuple[float, float] | None = None  # (value, epoch)
    for value, epoch in zip(values, epochs, strict=True):
        if (
            value is not None
            and math.isfinite(value)
            and (best is None or (value > best[0] if mode == "max" else value < best[0]))
        ):
            best = (value, epoch)
    if best is None or epochs[-1] - best[1] < patience - ROUNDING_EPOCHS:
        return None
    return (
        f"{NO_PROGRESS}: best value {best[0]:.4g} at epoch {best[1]:g}, none better in "
        f"{epochs[-1] - best[1]:g} epochs"
    )


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
    """Return why to stop: after ``grace`` epochs no evaluation was better than guessing.

    An evaluation is better than guessing if its accuracy is more than two standard errors above 1 /
    classes, or if its loss is more than 1 % below that of guessing. One such evaluation keeps the
    trial, because a good trial may have a bad epoch. If the classes are unbalanced, a model that
    always predicts the largest one counts as learning, and goes on.

    Args:
        accuracies: validation accuracy at each evaluation.
        losses: validation loss at each evaluation.
        epochs: the epoch of each evaluation.
        grace: epochs before anything is judged.
        n_classes: of the task.
        n_examples: in the validation part.
        chance: the loss of guessing. None means ln(n_classes). NaN means that the loss has no such
            value and only the accuracy counts.

    Returns:
        The reason, or None to go on.

    Source: CS231n notes, "Neural networks 3", Sanity checks: the loss at chance is ln of the number
    of classes; the standard error is that of a binomial share.
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
    lowest = (
        f", lowest loss {min(wrong):.4g} (chance: {guessing:.4g})"
        if wrong and not math.isnan(guessing)
        else ""
    )
    return (
        f"no better than guessing after {epochs[-1]:g} epochs: best accuracy {max(right):.4g} (up "
        f"to {limit:.4g} is chance){lowest}"
    )


def _finite(values: Values) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
