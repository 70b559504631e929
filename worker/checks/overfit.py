"""Check that a model can learn twenty examples by heart."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from common.search.trial import TrialState
from common.search.values import Hyperparameters
from worker.checks.report import Finding, Status
from worker.checks.training import RATES, SLOW_RATES, Trained, repeat, spread, train_model
from worker.tasks.base import Data, Task

EXAMPLES = 20  # as in the notes
REPEATED = 20  # repetitions of the examples in an epoch, so between two evaluations
EPOCHS = 30  # 600 steps with all twenty; a model that learns at all needs about fifty
ENOUGH_STEPS = 100  # a sound model needs at most so many, except in rare cases
NEARLY_ZERO = 0.01  # share of the loss of guessing, or of the first loss
# The same if all examples are right. Linear models get there slowly, and nothing is wrong with
# them.
ON_THE_WAY = 0.1
NAME = "overfit"


def twenty(
    task: Task,
    data: Data,
    values: Hyperparameters,
    chance: float | None,
    first: float,
    seed: int,
    seconds: float,
    pass_s: float,
) -> Finding:
    """Train on twenty examples at several learning rates, without regularisation.

    The loss must fall to nearly zero.

    Source: CS231n notes, "Neural Networks Part 3", sanity checks: "overfit a tiny subset of data".

    Args:
        task: as the user wrote it.
        data: preprocessed.
        values: of the configuration.
        chance: the loss of guessing, or None if unknown.
        first: the loss before the first update.
        seed: of the choice of examples.
        seconds: the time limit.
        pass_s: seconds of a forward and backward pass per example.
    """
    few = data.train.take(spread(data.train, EXAMPLES, data.n_classes, seed))
    often = repeat(few, REPEATED)
    start = max(chance or 0.0, first if math.isfinite(first) else 0.0)
    goal = NEARLY_ZERO * (chance or start)
    portion = Data(often, few, None, data.n_classes)
    until_s = time.monotonic() + seconds

    def train(rates: Sequence[float]) -> Trained:
        return train_model(
            task, portion, values, len(few), EPOCHS, seed, until_s, rates, enough=goal
        )

    if ENOUGH_STEPS * len(few) * len(RATES) * pass_s < seconds:
        result = train(RATES)
    else:  # The pass is measured once, so a busy machine looks like a slow model.
        result = train(SLOW_RATES)
        if not result.reaches(goal) and not result.out_of_time:
            result = result.better(train([rate for rate in RATES if rate not in SLOW_RATES]))
    failed = next((o for o in result.outcomes if o.state is TrialState.FAILED), None)
    if failed is not None:
        return Finding(
            NAME,
            Status.FAILED,
            f"training raised: {failed.reason}",
            "Correct the model or the loss; every trial would fail.",
        )
    return _judge(result, start, goal, len(few), data.n_classes is not None)


def _judge(result: Trained, start: float, goal: float, n: int, classes: bool) -> Finding:
    loss, accuracy, steps = result.best_loss, result.accuracy, result.steps
    figures = {"loss": loss, "accuracy": accuracy, "start": start, "steps": steps}
    if loss is None or not math.isfinite(loss):
        if result.out_of_time:
            return Finding(
                NAME,
                Status.LEFT_OUT,
                f"{REPEATED} steps with {n} examples would exceed the time limit of this check",
                "",
                figures,
            )
        means = (
            "Every learning rate ended in numbers that are not finite: a log, root or division of "
            "zero in model or loss."
        )
        return Finding(NAME, Status.FAILED, f"no finite loss in {steps} steps", means, figures)
    right = f", {accuracy:.0%} right" if accuracy is not None else ""
    found = f"{n} examples: loss from {start:.3g} to {loss:.2g} in {steps} steps of Adam{right}"
    if result.reaches(goal):
        return Finding(NAME, Status.PASSED, found, "", figures)
    if result.out_of_time and loss < start:
        means = "The model is slow here; nothing is known to be wrong."
        return Finding(
            NAME, Status.WARNING, f"{found}, then the time for this check was up", means, figures
        )
    if accuracy == 1.0 and loss <= goal * ON_THE_WAY / NEARLY_ZERO:
        means = (
            "All examples are right and the loss still falls slowly, as with a linear model or "
            "small outputs."
        )
        return Finding(NAME, Status.WARNING, found, means, figures)
    means = (
        f"A model that cannot learn {n} examples by heart has an error: in the forward pass, in "
        "its gradient, in the loss, or labels that do not belong to their inputs. Or it is too "
        f"small, starts dead, or needs another rate than {RATES[0]:g} to {RATES[-1]:g}."
    )
    falls = loss < start  # Without classes the lowest possible loss need not be zero.
    return Finding(
        NAME, Status.WARNING if falls and not classes else Status.FAILED, found, means, figures
    )
