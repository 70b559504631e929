"""Whether the best trial of a search can be distinguished from guessing.

If it cannot, its configuration says nothing. A trial has learned nothing that can be seen if one of
two conditions holds:

- None of its accuracies is beyond what guessing gives, and none of its losses is below that of
  guessing. The number of hits of a guesser is binomial. The best of many evaluations, of all trials
  together, is the luckiest of them, so the level is divided among them (Bonferroni).
- Its weights are as good as the initial ones. That is so if all its steps together moved no layer
  by a thousandth of its size. It is also so if they moved none by a twentieth and no loss is below
  that of guessing. This condition is needed beside the first one, because an untrained network does
  not guess each example independently: it gives like examples the same answer, and so is right or
  wrong for whole classes. A model that was trained before has a better accuracy than that, and no
  claim is made about it.

If the data are not sufficient to decide, a trial counts as having learned. So a search that may be
fine gets no warning.

Source: CS231n notes, "Neural networks 3" (loss at chance; ratio of updates to weights).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import median

from common.folder.record import ROUNDING_EPOCHS, Record
from common.search.search_file import Search
from common.search.trial import TrialState
from master.strategy.rates import Advice, Steps, advise

LEVEL = 0.05  # probability that a search passes as learning by guessing alone
# A loss that is lower than that of guessing by this share is learning. The policy ``chance_epochs``
# uses the same share.
LOSS_SHARE = 0.01
# Share of the way from the accuracy of guessing to 1. A model that is above it knows something, for
# instance because it was trained before.
LITTLE_KNOWN = 0.25
UNMOVED = 1e-3  # movement of a layer in all steps, as a share of the size of its weights
# The same if no loss is below that of guessing. Models on digits begin to learn at this share.
BARELY_MOVED = 5e-2
# Share of a metric's first value. A larger change is learning, however small the steps.
IMPROVED = 0.01


@dataclass(frozen=True)
class Look:
    """What the curves of a trial say.

    ``luck`` is the probability that one evaluation of a guesser is as good as the trial's best one.
    It is None if it is not known, or if the loss shows that the trial has learned. ``unmoved`` is
    whether the weights are still about the initial ones, and these know nothing.
    """

    n: int  # number of evaluations; 0 if the trial has no value of the search's metric
    luck: float | None
    unmoved: bool
    steps: Steps

    def has_learned_nothing(self, n: int) -> bool:
        """Return whether the trial cannot be distinguished from guessing.

        ``n`` is the number of evaluations of all trials.
        """
        return self.unmoved or (self.luck is not None and self.luck * n > LEVEL)


@dataclass(frozen=True)
class Guessing:
    """The finding that the best trial cannot be distinguished from guessing, and advice.

    ``n_measured`` is the number of measured trials. It is 0 if every trial that ended by itself
    exploded.
    """

    n_measured: int
    advice: Advice

    @property
    def words(self) -> str:
        """The sentence without the ranges and without its full stop."""
        if not self.n_measured:
            return f"Nothing was learned: {self.advice.words}"
        n = (
            f"the best of {self.n_measured} trials"
            if self.n_measured > 1
            else "the only trial that was measured"
        )
        return f"Nothing was learned: {n} cannot be told from guessing; {self.advice.words}"

    @property
    def text(self) -> str:
        """One sentence, with the ranges in the form that a search file takes."""
        lines = " and ".join(self.advice.lines)
        return f"{self.words}; try {lines}." if lines else f"{self.words}."

    @property
    def as_json(self) -> dict[str, object]:
        """The finding in the form that the dashboard's API returns."""
        ranges = {name: own.plain() for name, own in self.advice.ranges.items()}
        return {"sentence": self.text, "direction": self.advice.direction.value, "ranges": ranges}


def guessing(records: Sequence[Record]) -> Guessing | None:
    """Return why the best of these trials cannot be distinguished from guessing.

    Return None if it can be distinguished, or if that is not known.
    """
    measured = [(value, one) for one in records if (value := one.measured) is not None]
    known = [(value, one) for value, one in measured if math.isfinite(value)]
    if known:
        # One trial that has learned is enough, and the best is the likeliest.
        pick = max if known[0][1].mode == "max" else min
        look = look_of(pick(known, key=itemgetter(0))[1])
        most = sum(len(record.curves.get("epoch", ())) for record in records)  # evaluations
        if look.n and not look.has_learned_nothing(most):
            return None
    return guessing_of([look_of(record) for record in records])


def guessing_of(looks: Sequence[Look]) -> Guessing | None:
    """Return the same as ``guessing``, given what was read from the trials' curves."""
    measured = [look for look in looks if look.n]
    n = sum(look.n for look in measured)
    if not all(look.has_learned_nothing(n) for look in measured):
        return None
    ended = [look.steps for look in looks if look.n or look.steps.exploded]
    if not ended or (not measured and 2 * len(ended) <= len(looks)):
        return None  # failed and killed trials say nothing about learning rates
    return Guessing(len(measured), advise(ended))


def guessing_so_far(search: Search, records: Sequence[Record]) -> Guessing | None:
    """Return the same as ``guessing`` for a search that may go on.

    Return None before any stage has ended.
    """
    searched = [record for record in records if search.stage(record.stage).searches]
    return guessing(searched) if has_ended(search, [record.stage for record in searched]) else None


def has_ended(search: Search, stages: Collection[str]) -> bool:
    """Return whether any stage has a record of each of its trials.

    Args:
        search: as launched.
        stages: the name of the stage of each record.
    """
    counted = list(stages)
    return any(counted.count(name) >= search.stage(name).trials for name in set(counted))


def look_of(record: Record, until: float = math.inf) -> Look:
    """Return what the curves of a trial say.

    Args:
        record: the trial's last record.
        until: epoch from which on evaluations are ignored.
    """
    epochs = [
        epoch
        for epoch in record.curves.get("epoch", ())
        if epoch is not None and epoch < until - ROUNDING_EPOCHS
    ]
    if not _is_known(record, record.metric, len(epochs)):
        epochs = []  # without a value of the metric it cannot be the best trial
    exploded = (
        record.state is TrialState.EXPLODED and record.budget_epochs < until - ROUNDING_EPOCHS
    )
    ratios = _ratios(record, len(epochs))
    middle = [
        median(known) for row in ratios if (known := [ratio for ratio in row if ratio is not None])
    ]
    steps = Steps(
        exploded,
        record.hyperparameters,
        median(middle) if middle else None,
        _dead(record, len(epochs)),
    )
    return Look(len(epochs), _luck(record, len(epochs)), _is_unmoved(record, epochs, ratios), steps)


def at_least(hits: int, n: int, share: float) -> float:
    """Return the probability of at least ``hits`` hits in ``n`` guesses.

    Each guess is right with probability ``share``. The result is 1 if ``hits`` is at most the mean.
    """
    if hits <= n * share or share >= 1:
        return 1.0
    term = total = 1.0  # as multiples of the probability of exactly ``hits`` hits
    for k in range(hits, n):
        term *= (n - k) / (k + 1) * share / (1 - share)
        total += term
        if term < 1e-9 * total:
            break
    log = (
        math.lgamma(n + 1)
        - math.lgamma(hits + 1)
        - math.lgamma(n - hits + 1)
        + hits * math.log(share)
        + (n - hits) * math.log1p(-share)
    )
    return min(1.0, math.exp(log) * total)


def _luck(record: Record, n: int) -> float | None:
    share, accuracies = record.guess_acc, _is_known(record, "val_acc", n)
    if not share or not record.n_val or not accuracies or _tells_by_loss(record, n):
        return None
    if record.guess_loss is None and record.metric != "val_acc":
        return None  # a custom metric may show learning that the accuracy does not show
    hits = min(round(max(accuracies) * record.n_val), record.n_val)
    return at_least(hits, record.n_val, share)


def _tells_by_loss(record: Record, n: int) -> bool:
    losses = _is_known(record, "val_loss", n)
    return (
        record.guess_loss is not None
        and bool(losses)
        and min(losses) < (1 - LOSS_SHARE) * record.guess_loss
    )


def _is_unmoved(
    record: Record, epochs: Sequence[float], ratios: Sequence[Sequence[float | None]]
) -> bool:
    moved, last = 0.0, 0.0
    if not epochs or record.epoch_steps is None:
        return False
    for epoch, row in zip(epochs, ratios, strict=True):
        known = [ratio for ratio in row if ratio is not None]
        # A layer whose weights start at zero has no ratio, and may learn.
        if not known or len(known) < len(row):
            return False
        moved += max(known) * (epoch - last) * record.epoch_steps
        last = epoch
    accuracies = _is_known(record, "val_acc", len(epochs))
    if record.guess_acc is None or not accuracies:
        return moved < UNMOVED and not _has_improved(record, len(epochs))
    if max(accuracies) > record.guess_acc + LITTLE_KNOWN * (1 - record.guess_acc):
        return False
    losses = _is_known(record, "val_loss", len(epochs))
    no_better = record.guess_loss is not None and bool(losses) and min(losses) >= record.guess_loss
    return moved < (BARELY_MOVED if no_better else UNMOVED)


def _has_improved(record: Record, n: int) -> bool:
    values = _is_known(record, record.metric, n)
    best = max(values) if record.mode == "max" else min(values)
    return abs(best - values[0]) > IMPROVED * abs(values[0])


def _ratios(record: Record, n: int) -> list[list[float | None]]:
    """Return the ratio of update to weight of each layer, one row per evaluation."""
    layers = [
        values[:n] for name, values in record.curves.items() if name.startswith("update_ratio.")
    ]
    return [
        [
            values[row] if row < len(values) and _is_number(values[row]) else None
            for values in layers
        ]
        for row in range(n)
    ]


def _dead(record: Record, n: int) -> float:
    """Return the largest share of dead units in one layer at the last of ``n`` evaluations."""
    curves = [_is_known(record, name, n) for name in record.curves if name.startswith("dead.")]
    return max((values[-1] for values in curves if values), default=0.0)


def _is_known(record: Record, name: str, n: int) -> list[float]:
    return [
        value
        for value in record.curves.get(name, ())[:n]
        if value is not None and math.isfinite(value)
    ]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
