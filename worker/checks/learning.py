"""Whether what is learnt from some examples holds for others: with labels that were shuffled it cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.space import Hyperparameters
from common.trial import TrialState
from worker.checks.report import Figure, Finding, Status
from worker.checks.training import Trained, joined, repeated, spread, take, trained
from worker.tasks.base import Data, Measure, Part, Task
from worker.training.engine import Outcome

EXAMPLES, LONG_EXAMPLES = 256, 4000  # to learn from, at most: enough for all but weak signals; where that was not enough
STEPS, LONG_STEPS, BATCH = 200, 1000, 32
LOOKS = 4  # evaluations in a training: they take longer than its steps
OTHERS = 1000  # examples of each part that it is tried on, at most
FEWEST = 30  # fewer say nothing
SURE = 3.1  # standard errors: one-sided p of 0.001
TINY = 1e-12  # a variance below is that of one class always predicted
NAME = "learns"
OWN, HELD, VAL = "its_own", "held_back", "validation"  # what it learnt from, others of the training part, the validation part


def generalises(task: Task, data: Data, values: Hyperparameters, seed: int, until_s: float) -> Finding:
    """A short training on some training examples has to tell something about others: of the training part, and of the validation part.

    Examples held back of the training part show labels that were shuffled there, those of the validation part labels that were shuffled
    there or belong to other inputs. (Validation alone would not do: a model of shuffled labels gives each cluster of inputs the label that
    happens to be the most frequent there, so that its accuracy on true labels varies far more than by the number of examples.) How
    much better than by chance is measured by ``agreement``. Where it is not enough, a longer training with more examples decides. Of
    several learning rates the one with the lowest training loss counts, so that nothing is chosen by what is tested.
    """
    order = spread(data.train, LONG_EXAMPLES + OTHERS, data.n_classes, seed + 1)
    n_held = min(OTHERS, len(order) // 3)
    held, rest = take(data.train, order[:n_held]), order[n_held:]
    val = take(data.val, spread(data.val, OTHERS, data.n_classes, seed))
    if min(len(held), len(val)) < FEWEST:
        return Finding(
            NAME, Status.LEFT_OUT, f"{len(held)} examples held back and {len(val)} of validation are too few to tell learning from luck"
        )
    learnt: list[Learnt] = []
    for n_examples, n_steps in ((EXAMPLES, STEPS), (LONG_EXAMPLES, LONG_STEPS)):
        own = take(data.train, rest[:n_examples])
        result = trained(
            task,
            _portion(own, held, val, data.n_classes, n_steps),
            values,
            BATCH,
            LOOKS,
            seed,
            until_s,
            metrics=_metrics(own, held, val, data),
        )
        chosen = _chosen(result)
        if chosen is None:
            break
        if data.n_classes is None:
            return _of_loss(chosen)
        learnt.append(Learnt.of(chosen, len(own)))
        if learnt[-1].holds:
            break
    return _judged(learnt) if learnt else _nothing(result)


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
    right: Mapping[str, float]
    sure: Mapping[str, float]

    @classmethod
    def of(cls, outcome: Outcome, n_own: int) -> Learnt:
        """From the last evaluation."""
        last = {name: values[-1] or 0.0 for name, values in outcome.curves.items() if values}
        return cls(
            n_own, {part: last[f"right_{part}"] for part in (OWN, HELD, VAL)}, {part: last[f"sure_{part}"] for part in (OWN, HELD, VAL)}
        )

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


def _portion(own: Part, held: Part, val: Part, n_classes: int | None, n_steps: int) -> Data:
    """Epochs so long that there are few evaluations, each of all three parts."""
    times = max(1, n_steps * BATCH // (LOOKS * len(own)))
    return Data(repeated(own, times), joined([own, held, val]), None, n_classes)


def _metrics(own: Part, held: Part, val: Part, data: Data) -> dict[str, Measure]:
    """For each part its accuracy and its agreement, from the outputs for all three."""
    if data.n_classes is None:
        return {}
    n_classes, ends = data.n_classes, {OWN: len(own), HELD: len(own) + len(held), VAL: len(own) + len(held) + len(val)}
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
    means = (
        f"What is learnt by heart does not hold for others of the {where} part: there the labels were shuffled, or are in another order "
        "than the inputs. If the signal is known to be that weak, launch with --skip-check."
    )
    return Finding(NAME, Status.FAILED, last.told, means, last.figures)
