"""Whether what is learnt from the training part holds on the validation part: with labels that were shuffled it cannot."""

from __future__ import annotations

import math

import torch

from common.space import Hyperparameters
from common.trial import TrialState
from worker.checks.report import Finding, Status
from worker.checks.training import spread, take, trained
from worker.tasks.base import Data, Task
from worker.training.engine import Outcome

EXAMPLES = 256  # few enough to be learnt by heart in a second, enough to say something about others
VALIDATED = 2000  # validation examples at most
FEWEST = 30  # fewer say nothing: the standard error of an accuracy is then 9 % and more
BATCH = 32
EPOCHS = 25  # 200 steps
SURE = 3.1  # standard errors above guessing: one-sided p of 0.001
BY_HEART = 6.0  # standard errors above guessing on what was trained on: beyond any doubt


def generalises(task: Task, data: Data, values: Hyperparameters, seed: int, until_s: float) -> Finding:
    """A short training has to beat guessing on validation; of several learning rates the one that fits the training part best counts.

    Guessing is always saying the most frequent class. The choice among the rates is made by the training loss, so that the
    validation accuracy is one number, looked at once, and its standard error is the binomial one.
    """
    name = "learns"
    train = take(data.train, spread(data.train, EXAMPLES, data.n_classes, seed + 1))
    generator = torch.Generator().manual_seed(seed)
    val = take(data.val, torch.randperm(len(data.val), generator=generator)[:VALIDATED])
    if len(val) < FEWEST:
        return Finding(name, Status.LEFT_OUT, f"{len(val)} validation examples are too few to tell learning from luck")
    result = trained(task, Data(train, val, None, data.n_classes), values, BATCH, EPOCHS, seed, until_s)
    ended = [o for o in result.outcomes if o.state is TrialState.COMPLETED and o.curves["train_loss"]]
    if not ended:
        why = "the time for checks was up" if result.out_of_time else "no learning rate came to its end"
        return Finding(name, Status.LEFT_OUT, f"{why} after {result.steps} steps")
    chosen = min(ended, key=_train_loss)
    return _of_loss(chosen) if data.n_classes is None else _of_accuracy(chosen, data, len(val))


def _train_loss(outcome: Outcome) -> float:
    last = outcome.curves["train_loss"][-1]
    return last if last is not None and math.isfinite(last) else math.inf


def _of_loss(outcome: Outcome) -> Finding:
    """Without classes there is no guessing to compare with: the validation loss has to fall at all."""
    first, last = outcome.first_loss, outcome.curves["val_loss"][-1]
    figures = {"first_loss": first, "val_loss": last}
    found = f"validation loss {last:.4g} after a first loss of {first:.4g}"
    if first is not None and last is not None and last < first:
        return Finding("learns", Status.PASSED, found, "", figures)
    means = "What is learnt from the training part does not hold on the validation part: are targets and inputs in the same order in both?"
    return Finding("learns", Status.WARNING, found, means, figures)


def _of_accuracy(outcome: Outcome, data: Data, n_val: int) -> Finding:
    val, train = outcome.curves["val_acc"][-1] or 0.0, outcome.curves["train_acc"][-1] or 0.0
    assert data.n_classes is not None  # asked by the caller
    guess_val, guess_train = (float(torch.bincount(p.targets).max()) / len(p) for p in (data.val, data.train))
    z_val, z_train = _above(val, guess_val, n_val), _above(train, guess_train, min(EXAMPLES, len(data.train)))
    figures = {"val_acc": val, "train_acc": train, "guessing": guess_val, "z_val": z_val, "z_train": z_train, "n_val": n_val}
    n_train = min(EXAMPLES, len(data.train))
    found = f"{val:.1%} of {n_val} validation examples right after training on {n_train} ({train:.1%} of these); guessing: {guess_val:.1%}"
    if z_val >= SURE:
        return Finding("learns", Status.PASSED, found, "", figures)
    if z_train >= BY_HEART:
        means = (
            "The training part is learnt by heart, and nothing of it holds on validation: labels that were shuffled, or inputs and "
            "labels in different orders, in one of the parts. If the signal is known to be that weak, launch with --skip-check."
        )
        return Finding("learns", Status.FAILED, found, means, figures)
    means = "Nothing was learnt in so few steps, not even by heart: a hard task, a model that starts slowly, or shuffled labels."
    return Finding("learns", Status.WARNING, found, means, figures)


def _above(accuracy: float, guessing: float, n: int) -> float:
    """Standard errors by which ``accuracy`` exceeds that of guessing."""
    return (accuracy - guessing) / max(math.sqrt(guessing * (1 - guessing) / n), 1e-9)
