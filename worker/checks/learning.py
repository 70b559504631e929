"""Check that a model generalises: what it learns from some examples must hold for others.

With shuffled labels it cannot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from common.search.trial import TrialState
from common.search.values import Hyperparameters
from worker.checks.report import Figure, Finding, Status
from worker.checks.training import (
    RATES,
    SLOW_RATES,
    Trained,
    join_parts,
    repeat,
    spread,
    train_model,
)
from worker.tasks.base import Data, Measure, Part, Task
from worker.training.engine.engine import Outcome

# Most examples to learn from: enough unless the signal is weak, then for the longer training.
EXAMPLES, LONG_EXAMPLES = 256, 4000
STEPS, SLOW_STEPS, LONG_STEPS, BATCH = 200, 100, 1000, 32
# Most examples to test on, from each part: usually, and for a slow model.
OTHERS, SLOW_OTHERS = 1000, 200
FORWARD = 1 / 3  # cost of a forward pass, relative to forward and backward
FEWEST = 30  # fewest examples to test on
SURE = 3.1  # required standard errors above chance: one-sided p of 0.001
# Steps of a short first training, and the standard errors at which it suffices.
GLANCE_STEPS, CLEAR = 48, 10.0
TINY = 1e-12  # a lower variance means that one class is always predicted
NAME = "learns"
# Examples it learnt from, others of the training part, and examples of the validation part.
OWN, HELD, VAL = "its_own", "held_back", "validation"


@dataclass(frozen=True)
class Effort:
    """The length of a training."""

    n_examples: int  # at most
    n_steps: int
    n_others: int  # to test on, from each part, at most
    rates: tuple[float, ...]

    def seconds(self, pass_s: float) -> float:
        """Estimate the seconds of the training, given the seconds of one pass over one example."""
        return (
            len(self.rates)
            * pass_s
            * (self.n_steps * BATCH + FORWARD * (self.n_examples + 2 * self.n_others))
        )


EFFORTS = (  # The first that fits in the available time is used.
    Effort(EXAMPLES, STEPS, OTHERS, RATES),
    Effort(EXAMPLES, STEPS, OTHERS, SLOW_RATES),
    Effort(EXAMPLES, SLOW_STEPS, SLOW_OTHERS, SLOW_RATES),
)


def generalises(
    task: Task, data: Data, values: Hyperparameters, seed: int, seconds: float, pass_s: float
) -> Finding:
    """Check that a short training on some training examples also predicts other examples.

    Two kinds of other examples are tested. Those held back from the training part reveal labels
    that were shuffled in the training part. Those of the validation part reveal labels that were
    shuffled there or belong to other inputs. The validation part alone would not suffice: a model
    of shuffled labels gives each cluster of inputs the label that happens to be the most frequent
    there, so its accuracy on true labels varies far more than the number of examples suggests.

    ``agreement`` measures how much better than chance the predictions are. A first training of 48
    steps is enough if its result is clear. If the normal training is not enough, a longer one with
    more examples decides. Among several learning rates, the one with the lowest training loss
    counts. So the tested examples do not choose the rate.
    """
    until_s = time.monotonic() + seconds
    effort = next((effort for effort in EFFORTS if effort.seconds(pass_s) < seconds), None)
    if effort is None:
        return Finding(
            NAME,
            Status.LEFT_OUT,
            f"it would take {EFFORTS[-1].seconds(pass_s):.0f} s with this model on one core",
        )
    experiment = Experiment.of(task, data, values, seed, effort.n_others, until_s)
    if experiment.too_small:
        told = (
            f"{len(experiment.held)} examples held back and {len(experiment.val)} of validation "
            "are too few to tell learning from luck"
        )
        return Finding(NAME, Status.LEFT_OUT, told)
    if effort.n_steps > GLANCE_STEPS and data.n_classes is not None:
        result, n_own = experiment.run(replace(effort, n_steps=GLANCE_STEPS))
        chosen = _choose(result)
        if chosen is not None and (glance := Learnt.of(chosen, n_own)).clear:
            return _judge([glance])
    result, n_own = experiment.run(effort)
    chosen = _choose(result)
    if chosen is None:
        return _nothing(result)
    if data.n_classes is None:
        return _of_loss(chosen)
    learnt = [Learnt.of(chosen, n_own)]
    # The longer training uses the best learning rate.
    longer = Effort(LONG_EXAMPLES, LONG_STEPS, effort.n_others, (learnt[0].rate,))
    if not learnt[0].holds and longer.seconds(pass_s) < until_s - time.monotonic():
        result, n_own = experiment.run(longer)
        chosen = _choose(result)
        learnt += [Learnt.of(chosen, n_own)] if chosen is not None else []
    return _judge(learnt)


@dataclass(frozen=True)
class Experiment:
    """The task, the examples to learn from and the examples to test on."""

    task: Task
    values: Hyperparameters
    n_classes: int | None
    pool: Part  # examples to learn from
    held: Part
    val: Part
    seed: int
    until_s: float

    @classmethod
    def of(
        cls,
        task: Task,
        data: Data,
        values: Hyperparameters,
        seed: int,
        n_others: int,
        until_s: float,
    ) -> Experiment:
        """Create an experiment from examples drawn by ``seed``.

        A third of the training part is set aside, and ``held`` is taken from it.
        """
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed + 1))
        third, pool = (
            data.train.take(places)
            for places in (order[: len(order) // 3], order[len(order) // 3 :])
        )
        held, val = (
            part.take(spread(part, n_others, data.n_classes, seed)) for part in (third, data.val)
        )
        return cls(task, values, data.n_classes, pool, held, val, seed, until_s)

    @property
    def too_small(self) -> bool:
        """Whether there are too few examples to test on."""
        return min(len(self.held), len(self.val)) < FEWEST

    def run(self, effort: Effort) -> tuple[Trained, int]:
        """Train for one epoch and evaluate on all three parts.

        Returns:
            The result, and the number of examples to learn from.
        """
        own = self.pool.take(spread(self.pool, effort.n_examples, self.n_classes, self.seed))
        often = repeat(own, max(1, effort.n_steps * BATCH // len(own)))
        portion = Data(often, join_parts([own, self.held, self.val]), None, self.n_classes)
        measures = _metrics(own, self.held, self.val, self.n_classes)
        found = train_model(
            self.task,
            portion,
            self.values,
            BATCH,
            1,
            self.seed,
            self.until_s,
            effort.rates,
            metrics=measures,
        )
        return found, len(own)


def agreement(predicted: Tensor, targets: Tensor, n_classes: int) -> Tensor:
    """Return how many standard errors above chance the predictions agree with the labels, 0-d.

    Chance means that the labels are permuted among the examples. Mean and variance under
    permutation are exact, so unequal classes give no advantage, and neither does always predicting
    the most frequent class.

    Source: Hoeffding, "A combinatorial central limit theorem", Annals of Mathematical Statistics 22
    (1951), for the matrix of matches.

    Args:
        predicted: (n,) classes.
        targets: (n,) classes.
        n_classes: C.
    """
    n = len(targets)
    p, t = (
        (classes.unsqueeze(-1) == torch.arange(n_classes)).double().sum(0)
        for classes in (predicted, targets)
    )  # (C,) counts
    pairs = (p * t).sum()  # number of matching pairs of a prediction and a label
    variance = (pairs - (p * t * (p + t)).sum() / n + pairs.square() / n**2) / (n - 1)
    surplus = (predicted == targets).double().sum() - pairs / n
    return torch.where(variance > TINY, surplus / variance.clamp(min=TINY).sqrt(), 0.0)


@dataclass(frozen=True)
class Learnt:
    """The result of a training on its own examples and on others.

    Args:
        n_own: the number of examples it learnt from.
        rate: the learning rate.
        right: accuracy by part.
        sure: standard errors above chance by part.
    """

    n_own: int
    rate: float
    right: Mapping[str, float]
    sure: Mapping[str, float]

    @classmethod
    def of(cls, outcome: Outcome, n_own: int) -> Learnt:
        """Create the result from the last evaluation."""
        last = {name: values[-1] or 0.0 for name, values in outcome.curves.items() if values}
        right, sure = (
            {part: last[f"{what}_{part}"] for part in (OWN, HELD, VAL)}
            for what in ("right", "sure")
        )
        rate: Any = outcome.trial.hyperparameters["learning_rate"]
        return cls(n_own, float(rate), right, sure)

    @property
    def holds(self) -> bool:
        """Whether the predictions are better than chance on both kinds of other examples."""
        return self.sure[HELD] >= SURE and self.sure[VAL] >= SURE

    @property
    def clear(self) -> bool:
        """Whether the result is so far above chance that more steps cannot change the verdict."""
        return min(self.sure[HELD], self.sure[VAL]) >= CLEAR

    @property
    def told(self) -> str:
        """The result as a sentence."""
        parts = {
            f"of the {self.n_own} it learnt from": OWN,
            "of others held back": HELD,
            "of validation": VAL,
        }
        return "right: " + ", ".join(
            f"{self.right[part]:.1%} {words} ({self.sure[part]:+.0f} s.e.)"
            for words, part in parts.items()
        )

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures for the report."""
        return {
            **{f"right_{part}": v for part, v in self.right.items()},
            **{f"sure_{part}": v for part, v in self.sure.items()},
        }


def _metrics(own: Part, held: Part, val: Part, n_classes: int | None) -> dict[str, Measure]:
    """Return accuracy and agreement of each part, as metrics on the joined outputs of all three."""
    if n_classes is None:
        return {}
    ends = {OWN: len(own), HELD: len(own) + len(held), VAL: len(own) + len(held) + len(val)}
    starts = dict(zip(ends, [0, *ends.values()], strict=False))

    def right(part: str) -> Measure:
        rows = slice(starts[part], ends[part])
        return lambda outputs, targets: (outputs[rows].argmax(-1) == targets[rows]).double().mean()

    def sure(part: str) -> Measure:
        rows = slice(starts[part], ends[part])
        return lambda outputs, targets: agreement(
            outputs[rows].argmax(-1), targets[rows], n_classes
        )

    return {f"right_{part}": right(part) for part in ends} | {
        f"sure_{part}": sure(part) for part in ends
    }


def _choose(result: Trained) -> Outcome | None:
    """Return the outcome with the lowest training loss, or None if no training completed."""
    ended = [
        o for o in result.outcomes if o.state is TrialState.COMPLETED and o.curves["train_loss"]
    ]
    return min(ended, key=_train_loss, default=None)


def _train_loss(outcome: Outcome) -> float:
    last = outcome.curves["train_loss"][-1]
    return last if last is not None and math.isfinite(last) else math.inf


def _nothing(result: Trained) -> Finding:
    why = "the time for checks was up" if result.out_of_time else "no learning rate came to its end"
    return Finding(NAME, Status.LEFT_OUT, f"{why} after {result.steps} steps")


def _of_loss(outcome: Outcome) -> Finding:
    """Return the finding for a task without classes: the validation loss must have fallen.

    Without classes there is no guessing to compare with.
    """
    first, last = outcome.first_loss, outcome.curves["val_loss"][-1]
    figures: dict[str, Figure] = {"first_loss": first, "val_loss": last}
    if first is not None and last is not None and last < first:
        return Finding(
            NAME,
            Status.PASSED,
            f"validation loss {last:.4g} after a first loss of {first:.4g}",
            "",
            figures,
        )
    means = (
        "What is learnt from the training part does not apply to the validation part: check that "
        "targets and inputs are in the same order in both."
    )
    return Finding(
        NAME,
        Status.WARNING,
        f"validation loss {last} after a first loss of {first}",
        means,
        figures,
    )


def _judge(learnt: list[Learnt]) -> Finding:
    last = learnt[-1]
    if last.holds:
        return Finding(NAME, Status.PASSED, last.told, "", last.figures)
    if max(one.sure[OWN] for one in learnt) < SURE:
        means = (
            "Not even the training examples were learnt in so few steps: a hard task, a model that "
            "starts slowly, or shuffled labels."
        )
        return Finding(NAME, Status.WARNING, last.told, means, last.figures)
    where = "training" if last.sure[HELD] < SURE else "validation"
    if len(learnt) == 1:
        means = (
            f"What is learnt does not apply to other examples of the {where} part yet. This model "
            "is too slow here for a longer check."
        )
        return Finding(NAME, Status.WARNING, last.told, means, last.figures)
    means = (
        f"What is learnt by heart does not apply to other examples of the {where} part. Their "
        "labels are shuffled, or are in another order than the inputs. If the signal is known to "
        "be that weak, launch with --skip-check."
    )
    return Finding(NAME, Status.FAILED, last.told, means, last.figures)
