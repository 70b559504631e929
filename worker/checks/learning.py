"""Whether what is learnt from some examples holds for others: with labels that were shuffled it cannot."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.space import Hyperparameters
from common.trial import TrialState
from worker.checks.report import Figure, Finding, Status
from worker.checks.training import RATES, SLOW_RATES, Trained, joined, repeated, spread, take, trained
from worker.tasks.base import Data, Measure, Part, Task
from worker.training.engine import Outcome

EXAMPLES, LONG_EXAMPLES = 256, 4000  # to learn from, at most: enough for all but weak signals; where that was not enough
STEPS, SLOW_STEPS, LONG_STEPS, BATCH = 200, 100, 1000, 32
OTHERS, SLOW_OTHERS = 1000, 200  # examples of each part that it is tried on, at most; of a model that is slow
FORWARD = 1 / 3  # of the time of an example's forward and backward pass
FEWEST = 30  # fewer say nothing
SURE = 3.1  # standard errors: one-sided p of 0.001
TINY = 1e-12  # a variance below is that of one class always predicted
NAME = "learns"
OWN, HELD, VAL = "its_own", "held_back", "validation"  # what it learnt from, others of the training part, the validation part


@dataclass(frozen=True)
class Effort:
    """How long a training is."""

    n_examples: int  # at most
    n_steps: int
    n_others: int  # of each part, at most
    rates: tuple[float, ...]

    def seconds(self, pass_s: float) -> float:
        """What it takes, from the seconds of one example forward and backward."""
        return len(self.rates) * pass_s * (self.n_steps * BATCH + FORWARD * (self.n_examples + 2 * self.n_others))


EFFORTS = (  # the first that the time suffices for
    Effort(EXAMPLES, STEPS, OTHERS, RATES),
    Effort(EXAMPLES, STEPS, OTHERS, SLOW_RATES),
    Effort(EXAMPLES, SLOW_STEPS, SLOW_OTHERS, SLOW_RATES),
)


def generalises(task: Task, data: Data, values: Hyperparameters, seed: int, seconds: float, pass_s: float) -> Finding:
    """A short training on some training examples has to tell something about others: of the training part, and of the validation part.

    Examples held back of the training part show labels that were shuffled there, those of the validation part labels that were shuffled
    there or belong to other inputs. (Validation alone would not do: a model of shuffled labels gives each cluster of inputs the label that
    happens to be the most frequent there, so that its accuracy on true labels varies far more than by the number of examples.) How
    much better than by chance is measured by ``agreement``. Where it is not enough, a longer training with more examples decides. Of
    several learning rates the one with the lowest training loss counts, so that nothing is chosen by what is tested.
    """
    until_s = time.monotonic() + seconds
    effort = next((effort for effort in EFFORTS if effort.seconds(pass_s) < seconds), None)
    if effort is None:
        return Finding(NAME, Status.LEFT_OUT, f"it would take {EFFORTS[-1].seconds(pass_s):.0f} s with this model on one core")
    experiment = Experiment.of(task, data, values, seed, effort.n_others, until_s)
    if experiment.too_small:
        told = f"{len(experiment.held)} examples held back and {len(experiment.val)} of validation are too few to tell learning from luck"
        return Finding(NAME, Status.LEFT_OUT, told)
    result, n_own = experiment.run(effort)
    chosen = _chosen(result)
    if chosen is None:
        return _nothing(result)
    if data.n_classes is None:
        return _of_loss(chosen)
    learnt = [Learnt.of(chosen, n_own)]
    longer = Effort(LONG_EXAMPLES, LONG_STEPS, effort.n_others, (learnt[0].rate,))  # the rate that did best goes on with more
    if not learnt[0].holds and longer.seconds(pass_s) < until_s - time.monotonic():
        result, n_own = experiment.run(longer)
        chosen = _chosen(result)
        learnt += [Learnt.of(chosen, n_own)] if chosen is not None else []
    return _judged(learnt)


@dataclass(frozen=True)
class Experiment:
    """Who learns from which examples, and what it is tried on."""

    task: Task
    values: Hyperparameters
    n_classes: int | None
    pool: Part  # what may be learnt from
    held: Part
    val: Part
    seed: int
    until_s: float

    @classmethod
    def of(cls, task: Task, data: Data, values: Hyperparameters, seed: int, n_others: int, until_s: float) -> Experiment:
        """Holds back some of a third of the training part; drawn by seed."""
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed + 1))
        third, pool = (take(data.train, places) for places in (order[: len(order) // 3], order[len(order) // 3 :]))
        held, val = (take(part, spread(part, n_others, data.n_classes, seed)) for part in (third, data.val))
        return cls(task, values, data.n_classes, pool, held, val, seed, until_s)

    @property
    def too_small(self) -> bool:
        """Whether the others are too few to say anything."""
        return min(len(self.held), len(self.val)) < FEWEST

    def run(self, effort: Effort) -> tuple[Trained, int]:
        """A training of one epoch, so that all three parts are looked at once; and how many examples it learnt from."""
        own = take(self.pool, spread(self.pool, effort.n_examples, self.n_classes, self.seed))
        often = repeated(own, max(1, effort.n_steps * BATCH // len(own)))
        portion = Data(often, joined([own, self.held, self.val]), None, self.n_classes)
        measures = _metrics(own, self.held, self.val, self.n_classes)
        found = trained(self.task, portion, self.values, BATCH, 1, self.seed, self.until_s, effort.rates, metrics=measures)
        return found, len(own)


def agreement(predicted: Tensor, targets: Tensor, n_classes: int) -> Tensor:
    """0-d: by how many standard errors predictions are right more often than if the labels were dealt out among the examples anew.

    Exact mean and variance under permutation, so that unequal classes, or always predicting the most frequent one, count as nothing.

    Source: Hoeffding, "A combinatorial central limit theorem", Annals of Mathematical Statistics 22 (1951), for the matrix of matches.

    Args:
        predicted: (n,) classes.
        targets: (n,) classes.
        n_classes: C.
    """
    n = len(targets)
    p, t = ((classes.unsqueeze(-1) == torch.arange(n_classes)).double().sum(0) for classes in (predicted, targets))  # (C,) counts
    pairs = (p * t).sum()  # pairs of a prediction and a label that match
    variance = (pairs - (p * t * (p + t)).sum() / n + pairs.square() / n**2) / (n - 1)
    surplus = (predicted == targets).double().sum() - pairs / n
    return torch.where(variance > TINY, surplus / variance.clamp(min=TINY).sqrt(), 0.0)


@dataclass(frozen=True)
class Learnt:
    """What a training knows of its own examples and of others: accuracies, and standard errors above chance."""

    n_own: int
    rate: float
    right: Mapping[str, float]
    sure: Mapping[str, float]

    @classmethod
    def of(cls, outcome: Outcome, n_own: int) -> Learnt:
        """From the last evaluation."""
        last = {name: values[-1] or 0.0 for name, values in outcome.curves.items() if values}
        right, sure = ({part: last[f"{what}_{part}"] for part in (OWN, HELD, VAL)} for what in ("right", "sure"))
        return cls(n_own, float(outcome.job.claim.trial.hyperparameters["learning_rate"]), right, sure)

    @property
    def holds(self) -> bool:
        """Whether it does for both kinds of others."""
        return self.sure[HELD] >= SURE and self.sure[VAL] >= SURE

    @property
    def told(self) -> str:
        """As a sentence."""
        parts = {f"of the {self.n_own} it learnt from": OWN, "of others held back": HELD, "of validation": VAL}
        return "right: " + ", ".join(f"{self.right[part]:.1%} {words} ({self.sure[part]:+.0f} s.e.)" for words, part in parts.items())

    @property
    def figures(self) -> dict[str, Figure]:
        """For the report."""
        return {**{f"right_{part}": v for part, v in self.right.items()}, **{f"sure_{part}": v for part, v in self.sure.items()}}


def _metrics(own: Part, held: Part, val: Part, n_classes: int | None) -> dict[str, Measure]:
    """For each part its accuracy and its agreement, from the outputs for all three."""
    if n_classes is None:
        return {}
    ends = {OWN: len(own), HELD: len(own) + len(held), VAL: len(own) + len(held) + len(val)}
    starts = dict(zip(ends, [0, *ends.values()], strict=False))

    def right(part: str) -> Measure:
        rows = slice(starts[part], ends[part])
        return lambda outputs, targets: (outputs[rows].argmax(-1) == targets[rows]).double().mean()

    def sure(part: str) -> Measure:
        rows = slice(starts[part], ends[part])
        return lambda outputs, targets: agreement(outputs[rows].argmax(-1), targets[rows], n_classes)

    return {f"right_{part}": right(part) for part in ends} | {f"sure_{part}": sure(part) for part in ends}


def _chosen(result: Trained) -> Outcome | None:
    """The training that fits its own examples best, None if none came to its end."""
    ended = [o for o in result.outcomes if o.state is TrialState.COMPLETED and o.curves["train_loss"]]
    return min(ended, key=_train_loss, default=None)


def _train_loss(outcome: Outcome) -> float:
    last = outcome.curves["train_loss"][-1]
    return last if last is not None and math.isfinite(last) else math.inf


def _nothing(result: Trained) -> Finding:
    why = "the time for checks was up" if result.out_of_time else "no learning rate came to its end"
    return Finding(NAME, Status.LEFT_OUT, f"{why} after {result.steps} steps")


def _of_loss(outcome: Outcome) -> Finding:
    """Without classes there is no guessing to compare with: the validation loss has to fall at all."""
    first, last = outcome.first_loss, outcome.curves["val_loss"][-1]
    figures: dict[str, Figure] = {"first_loss": first, "val_loss": last}
    if first is not None and last is not None and last < first:
        return Finding(NAME, Status.PASSED, f"validation loss {last:.4g} after a first loss of {first:.4g}", "", figures)
    means = "What is learnt from the training part does not hold on the validation part: are targets and inputs in the same order in both?"
    return Finding(NAME, Status.WARNING, f"validation loss {last} after a first loss of {first}", means, figures)


def _judged(learnt: list[Learnt]) -> Finding:
    last = learnt[-1]
    if last.holds:
        return Finding(NAME, Status.PASSED, last.told, "", last.figures)
    if max(one.sure[OWN] for one in learnt) < SURE:
        means = "Nothing was learnt in so few steps, not even by heart: a hard task, a model that starts slowly, or shuffled labels."
        return Finding(NAME, Status.WARNING, last.told, means, last.figures)
    where = "training" if last.sure[HELD] < SURE else "validation"
    if len(learnt) == 1:
        means = f"What is learnt does not hold for others of the {where} part yet; this model is too slow here for a longer look."
        return Finding(NAME, Status.WARNING, last.told, means, last.figures)
    means = (
        f"What is learnt by heart does not hold for others of the {where} part: there the labels were shuffled, or are in another order "
        "than the inputs. If the signal is known to be that weak, launch with --skip-check."
    )
    return Finding(NAME, Status.FAILED, last.told, means, last.figures)
