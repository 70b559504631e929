"""Whether twenty examples can be learnt by heart."""

from __future__ import annotations

import math
import time

from common.space import Hyperparameters
from common.trial import TrialState
from worker.checks.report import Finding, Status
from worker.checks.training import RATES, SLOW_RATES, Trained, repeated, spread, take, trained
from worker.tasks.base import Data, Task

EXAMPLES = 20  # the notes' number
REPEATED = 20  # times in an epoch: between two looks at the loss
EPOCHS = 30  # 600 steps of all twenty: what learns at all needs some fifty
ENOUGH_STEPS = 100  # that a sound model needs at most, in all but odd cases
NEARLY_ZERO = 0.01  # share of the first loss, or of chance
ON_THE_WAY = 0.1  # the same, with all examples right: linear models get there slowly, and nothing is wrong with them
NAME = "overfit"


def twenty(
    task: Task, data: Data, values: Hyperparameters, chance: float | None, first: float, seed: int, seconds: float, pass_s: float
) -> Finding:
    """Trains on twenty examples alone, regularisation off, at several learning rates; the loss has to come to nearly zero.

    Source: CS231n notes, "Neural Networks Part 3", sanity checks: "overfit a tiny subset of data".

    Args:
        task: as the user wrote it.
        data: preprocessed.
        values: of the configuration.
        chance: the loss of guessing, None where nobody can say.
        first: the loss before the first update.
        seed: of the choice of examples.
        seconds: to spend.
        pass_s: seconds that one example takes, forward and backward.
    """
    few = take(data.train, spread(data.train, EXAMPLES, data.n_classes, seed))
    often = repeated(few, REPEATED)
    start = max(chance or 0.0, first if math.isfinite(first) else 0.0)
    goal = NEARLY_ZERO * (chance or start)
    portion = Data(often, few, None, data.n_classes)
    rates = RATES if ENOUGH_STEPS * len(few) * len(RATES) * pass_s < seconds else SLOW_RATES
    result = trained(task, portion, values, len(few), EPOCHS, seed, time.monotonic() + seconds, rates, enough=goal)
    failed = next((o for o in result.outcomes if o.state is TrialState.FAILED), None)
    if failed is not None:
        return Finding(NAME, Status.FAILED, f"training raised: {failed.reason}", "Correct the model or the loss; every trial would fail.")
    return _judged(result, start, goal, len(few), data.n_classes is not None)


def _judged(result: Trained, start: float, goal: float, n: int, classes: bool) -> Finding:
    loss, accuracy, steps = result.best_loss, result.accuracy, result.steps
    figures = {"loss": loss, "accuracy": accuracy, "start": start, "steps": steps}
    if loss is None or not math.isfinite(loss):
        if result.out_of_time:
            return Finding(NAME, Status.LEFT_OUT, f"{REPEATED} steps with {n} examples take longer than this check may", "", figures)
        means = "Every learning rate ended in numbers that are not finite: a log, root or division of zero in model or loss."
        return Finding(NAME, Status.FAILED, f"no finite loss in {steps} steps", means, figures)
    right = f", {accuracy:.0%} right" if accuracy is not None else ""
    found = f"{n} examples: loss from {start:.3g} to {loss:.2g} in {steps} steps of Adam{right}"
    if loss <= goal and (accuracy == 1.0 or not classes):
        return Finding(NAME, Status.PASSED, found, "", figures)
    if result.out_of_time and loss < start:
        means = "The model is slow here; nothing is known to be wrong."
        return Finding(NAME, Status.WARNING, f"{found}, then the time for this check was up", means, figures)
    if accuracy == 1.0 and loss <= goal * ON_THE_WAY / NEARLY_ZERO:
        means = "All are right and the loss still falls, slowly: as it is with a linear model, or one with small outputs."
        return Finding(NAME, Status.WARNING, found, means, figures)
    means = (
        f"A model that cannot learn {n} examples by heart has an error: in the forward pass, in its gradient, in the loss, or labels that "
        f"do not belong to their inputs. Or it is too small, starts dead, or needs another rate than {RATES[0]:g} to {RATES[-1]:g}."
    )
    falls = loss < start  # without classes the lowest loss of all need not be zero
    return Finding(NAME, Status.WARNING if falls and not classes else Status.FAILED, found, means, figures)
