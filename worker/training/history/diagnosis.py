"""Diagnosis of a trial from its curves, as one word and one sentence with the figures behind it.

The rules are tried in the order of ``RULES``, which is that of the words in ``common.diagnosis``.
The first that applies is the diagnosis. Causes come before their effects: an exploded trial says
nothing about its capacity, and a learning rate that is too high leaves dead units. Each rule uses
only what is known: without accuracies there is no gap between them, and a single evaluation shows
no plateau.

Source: CS231n notes, "Neural networks 3": "Babysitting the learning process" and "Hyperparameter
optimization"; "Neural networks 1" (dead and saturated units).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

from common.diagnosis import DiagnosisWord
from common.folder.record import Diagnosis
from common.search.trial import TrialState
from worker.training.history.curve_reader import Evidence, fall, later, recent
from worker.training.history.phrases import (
    after,
    length,
    of_value,
    standing,
    what_falls,
    with_accuracy,
)
from worker.training.history.stopping import at_chance
from worker.training.types import Outcome

# A lowest loss less than this share below that of guessing is "barely changing" (the notes'
# example: 2.3026 after ten epochs).
BARELY = 0.05
# Share of the way from chance to accuracy 1. A more accurate model has learned, whatever its loss
# (the notes' example had 0.2 with ten classes).
LITTLE_KNOWN = 0.25
# Validation examples if their number is not known. Accuracies up to 0.16 with ten classes then
# count as chance.
ASSUMED_VAL = 100
# Ratio of norms, fifty times what the notes advise: twenty steps replace the weights, whatever they
# had learned.
LARGE_RATIO = 5e-2
# A tenth of what the notes advise: ten thousand steps to move the weights by their own size.
SMALL_RATIO = 1e-4
# Half of what the notes advise: enough to learn, but a model that has settled at a low accuracy may
# only be slow.
SLOW_RATIO = 5e-4
# Ten times what the notes advise, with a loss that no longer falls: the steps go back and forth.
PLATEAU_RATIO = 1e-2
PLATEAU_POINTS = 4  # fewest evaluations, to compare a middle part with a last one
FLAT = 0.1  # on a plateau the loss falls by less than this share from the middle third to the last
# Share of the loss of guessing. Below it the batch losses come from few hard examples, and no level
# counts as high.
HIGH_LEVEL = 0.1
# Share of a layer's units. "As much as 40 %" of a network can die if the rate is too high (the
# notes on ReLU).
SILENT_SHARE = 0.4
# Relative to the mean: batches of 64 show 0.05 to 0.2 on digits while the loss is high, batches of
# 8 about 1.
NOISY_WIGGLE = 0.5
# Gap between training and validation accuracy: the notes' figure of strong overfitting. A good
# digits model shows 0.03.
BIG_GAP = 0.1
# Relative rise of the validation loss above its lowest while the training loss goes on falling:
# more than one epoch's noise.
RISE = 0.1
# Relative fall of the validation loss over the last quarter: a run that has settled shows 1 to 2 %.
IMPROVING = 0.05
# Relative distance of the loss at the end of the first epoch below that epoch's mean, if the loss
# is still falling.
ONE_EPOCH = 0.1
LOW_ACCURACY = 0.9  # training accuracy: a model of enough capacity can learn that part by heart
STRONG_DECAY = 0.1  # from this value on, weight_decay can hold the weights at zero

Rule = Callable[[Evidence], Diagnosis | None]


def diagnose_trial(outcome: Outcome, metric: str, mode: str) -> Diagnosis | None:
    """Return the diagnosis of a trial that ended. ``metric`` and ``mode`` are the search's."""
    return diagnose(
        Evidence(
            outcome.state,
            outcome.reason,
            outcome.curves,
            outcome.trial.hyperparameters,
            outcome.first_loss,
            outcome.n_classes,
            outcome.guess_loss,
            outcome.n_val,
            metric,
            mode,
            outcome.is_reported,
        )
    )


def diagnose(evidence: Evidence) -> Diagnosis | None:
    """Return the diagnosis; None for a killed or failed trial, or one without measurements.

    A loop or program that reported once has no curves: only an explosion and guessing can be seen.
    """
    if evidence.state in (TrialState.KILLED, TrialState.FAILED):
        return None
    once = evidence.is_reported and len(evidence.curve("epoch")) < 2
    rules = WITHOUT_CURVES if once else RULES
    return next((found for rule in rules if (found := rule(evidence)) is not None), None)


def exploded(e: Evidence) -> Diagnosis | None:
    """Diagnose a loss that passed the limit or is not finite."""
    if e.state is not TrialState.EXPLODED:
        return None
    sentence = (
        f"The learning rate{of_value(e, 'learning_rate')} is too high: "
        f"{e.reason or 'the loss exploded'}; lower it."
    )
    return _say(
        DiagnosisWord.EXPLODED,
        sentence,
        learning_rate=e.number("learning_rate"),
        first_loss=e.first_loss,
    )


def not_learning(e: Evidence) -> Diagnosis | None:
    """Diagnose a trial that ends no better than guessing, or whose loss hardly moved."""
    guessing, barely = _guessing(e), _barely(e)
    if guessing is None and barely is None:
        return None
    sentence = f"{guessing or barely}: {_side(e)}."
    figures = {
        "val_acc": e.last("val_acc"),
        "val_loss": e.last("val_loss"),
        "start_loss": e.start,
        "update_ratio": _middle(e.ratios),
    }
    return _say(DiagnosisWord.NOT_LEARNING, sentence, **figures)


def plateaued_high(e: Evidence) -> Diagnosis | None:
    """Diagnose a loss that fell at first and then stays at a high level, with large steps."""
    curves = [
        values
        for values in (e.curve("train_loss"), e.curve("val_loss"))
        if len(values) >= PLATEAU_POINTS
    ]
    ratio = _middle(later(e.ratios))
    if not curves or ratio is None or ratio < PLATEAU_RATIO:
        return None
    third = len(curves[0]) // 3
    middle, last = median(curves[0][third:-third]), median(curves[0][-third:])
    level, start = min(median(later(values)) for values in curves), e.start or curves[0][0]
    if last < (1 - FLAT) * middle or level < HIGH_LEVEL * start:
        return None
    sentence = (
        f"Loss fell from {start:.3g} at first and then stays at about {last:.3g}, with updates of "
        f"{ratio:.1e} of the weights: the learning rate{of_value(e, 'learning_rate')} is too high "
        "to go further down; lower it, or let it fall with a schedule."
    )
    return _say(
        DiagnosisWord.PLATEAUED_HIGH,
        sentence,
        train_loss=last,
        start_loss=start,
        update_ratio=ratio,
    )


def dead_units(e: Evidence) -> Diagnosis | None:
    """Diagnose a layer with many units that pass no gradient."""
    if e.silent is None or e.silent[1] < SILENT_SHARE:
        return None
    (name, share), (kind, _, layer) = e.silent, e.silent[0].partition(".")
    what = f"{share:.0%} of the units of layer {layer}"
    strength = e.number("activation_l1")
    active = f" or activation_l1 ({strength:.3g})" if strength else ""
    sentence = (
        f"{what} are dead, zero for every example looked at: lower learning_rate{active}, or use "
        "leaky_relu or batch_norm."
        if kind == "dead"
        else f"{what} are saturated ever since the first evaluation: start from smaller weights "
        "(init), or use relu or batch_norm."
    )
    return _say(DiagnosisWord.DEAD_UNITS, sentence, **{name: share})


def large_updates(e: Evidence) -> Diagnosis | None:
    """Diagnose steps that move the weights by far more than a thousandth of their size."""
    ratio = _middle(e.ratios)
    if ratio is None or ratio < LARGE_RATIO:
        return None
    sentence = (
        f"A step changes the weights by {ratio:.1e} of their size, far above the 1e-3 that is "
        f"healthy: lower learning_rate{of_value(e, 'learning_rate')} or begin with warmup_epochs "
        f"({standing(e)})."
    )
    return _say(DiagnosisWord.LARGE_UPDATES, sentence, update_ratio=ratio)


def noisy(e: Evidence) -> Diagnosis | None:
    """Diagnose batch losses that scatter about their trend while the loss is not low yet."""
    losses, wiggle = e.curve("train_loss"), _middle(later(e.curve("wiggle")))
    if wiggle is None or wiggle < NOISY_WIGGLE or not losses:
        return None
    if min(losses[-1], *e.curve("val_loss")[-1:], math.inf) < HIGH_LEVEL * (e.start or losses[0]):
        return None
    sentence = (
        f"The losses of an epoch's batches scatter by {wiggle:.0%} of their mean {losses[-1]:.3g} "
        f"about the trend: the batch{of_value(e, 'batch_size')} is too small for this learning "
        f"rate{of_value(e, 'learning_rate')}; enlarge it or lower the rate."
    )
    return _say(
        DiagnosisWord.NOISY,
        sentence,
        wiggle=wiggle,
        train_loss=losses[-1],
        batch_size=e.number("batch_size"),
    )


def overfitting(e: Evidence) -> Diagnosis | None:
    """Diagnose a big gap between training and validation accuracy.

    Without accuracies, or if the search ranks by the loss, it diagnoses a validation loss that
    rises again.
    """
    train, val = e.last("train_acc"), e.last("val_acc")
    if train is not None and val is not None and train - val >= BIG_GAP:
        sentence = (
            f"Training accuracy {train:.3f} lies {train - val:.3f} above validation accuracy "
            f"{val:.3f}: a big gap; {_regularise(e)}."
        )
        return _say(
            DiagnosisWord.OVERFITTING, sentence, train_acc=train, val_acc=val, gap=train - val
        )
    losses, trained = e.curve("val_loss"), e.curve("train_loss")
    if (
        (val is not None and e.metric != "val_loss")
        or len(losses) < 2
        or len(losses) != len(trained)
    ):
        return None
    low = losses.index(min(losses))
    if losses[-1] < (1 + RISE) * losses[low] or trained[-1] >= trained[low]:
        return None
    sentence = (
        f"Validation loss rose from {losses[low]:.3g} to {losses[-1]:.3g} while training loss "
        f"fell to {trained[-1]:.3g}; {_regularise(e)}."
    )
    return _say(
        DiagnosisWord.OVERFITTING,
        sentence,
        val_loss=losses[-1],
        lowest_val_loss=losses[low],
        train_loss=trained[-1],
    )


def small_updates(e: Evidence) -> Diagnosis | None:
    """Diagnose updates that are far below a thousandth of the weights in every epoch."""
    ratio = max(e.ratios, default=None)
    if ratio is None or ratio >= SMALL_RATIO:
        return None
    sentence = (
        f"A step changes the weights by at most {ratio:.1e} of their size, far below the 1e-3 that "
        f"is healthy: raise learning_rate{of_value(e, 'learning_rate')} ({standing(e)})."
    )
    return _say(DiagnosisWord.SMALL_UPDATES, sentence, update_ratio=ratio)


def still_improving(e: Evidence) -> Diagnosis | None:
    """Diagnose a trial that was still improving when its budget ended."""
    lately, losses, mean = fall(e.costs), e.curve("val_loss"), e.last("train_loss")
    if lately is not None and lately >= IMPROVING:
        when = f"in the last {recent(e.costs)} of {len(e.costs)} evaluations".replace(
            "last 1 of", "last of"
        )
        sentence = (
            f"{what_falls(e)} still fell by {lately:.0%} {when} ({standing(e)}): train longer."
        )
        return _say(
            DiagnosisWord.STILL_IMPROVING,
            sentence,
            recent_fall=lately,
            val_loss=e.last("val_loss"),
            val_acc=e.last("val_acc"),
        )
    if lately is None and losses and mean is not None and losses[-1] < (1 - ONE_EPOCH) * mean:
        sentence = (
            f"Validation loss was still falling: {losses[-1]:.3g} at the end of {length(e)}, "
            f"below the mean training loss on the way, {mean:.3g}{with_accuracy(e)}; train longer."
        )
        return _say(
            DiagnosisWord.STILL_IMPROVING,
            sentence,
            val_loss=losses[-1],
            train_loss=mean,
            val_acc=e.last("val_acc"),
        )
    return None


def underfitting(e: Evidence) -> Diagnosis | None:
    """Diagnose a trial that settled at a low training accuracy, with validation no worse.

    At least two evaluations are needed.
    """
    train, val = e.last("train_acc"), e.last("val_acc")
    if train is None or val is None or len(e.costs) < 2 or max(train, val) >= LOW_ACCURACY:
        return None
    ratio = _middle(e.ratios)
    slow = (
        f", or raise learning_rate, since updates are {ratio:.1e} of the weights"
        if ratio is not None and ratio < SLOW_RATIO
        else ""
    )
    sentence = (
        f"Training accuracy has settled at {train:.3f} and validation accuracy at {val:.3f}, "
        f"without a big gap: give the model more capacity, or regularise less{slow}."
    )
    return _say(
        DiagnosisWord.UNDERFITTING,
        sentence,
        train_acc=train,
        val_acc=val,
        gap=train - val,
        update_ratio=ratio,
    )


def good(e: Evidence) -> Diagnosis | None:
    """Diagnose a trial to which no other rule applies."""
    if not e.costs:
        return None
    once = len(e.costs) == 1
    sentence = f"""{
        "Nothing is wrong after a single evaluation"
        if once
        else "It settled without a sign of trouble"
    }: {standing(e)}."""
    figures = {name: e.last(name) for name in ("val_acc", "val_loss", "train_acc", "train_loss")}
    return _say(DiagnosisWord.GOOD, sentence, update_ratio=_middle(e.ratios), **figures)


RULES: tuple[Rule, ...] = (
    exploded,
    not_learning,
    plateaued_high,
    dead_units,
    large_updates,
    noisy,
    overfitting,
    small_updates,
    still_improving,
    underfitting,
    good,
)
WITHOUT_CURVES: tuple[Rule, ...] = (exploded, not_learning)


def _guessing(e: Evidence) -> str | None:
    accuracy, loss = e.last("val_acc"), e.last("val_loss")
    if e.n_classes is None or accuracy is None:
        return None
    chance = math.nan if e.chance_loss is None else e.chance_loss
    n = e.n_val or ASSUMED_VAL
    if (
        at_chance(
            [accuracy],
            [loss],
            [e.epochs],
            grace=0,
            n_classes=e.n_classes,
            n_examples=n,
            chance=chance,
        )
        is None
    ):
        return None
    before = max(e.curve("val_acc"))
    had = f", though it had {before:.3f} once" if before > 2 * accuracy else ""
    return (
        f"Validation accuracy {accuracy:.3f} {after(e)} is no better than guessing "
        f"({1 / e.n_classes:.3g}){had}"
    )


def _barely(e: Evidence) -> str | None:
    start, losses = e.start, e.curve("val_loss") or e.curve("train_loss")
    if e.is_reported:  # nothing is known from before the first update
        reported = e.curve("train_loss")
        start, losses = (reported[0], reported[1:]) if reported else (None, [])
    if start is None or not losses or min(losses) < (1 - BARELY) * start:
        return None
    accuracy, n_classes = e.last("val_acc"), e.n_classes or 2
    if accuracy is not None and accuracy > (1 + LITTLE_KNOWN * (n_classes - 1)) / n_classes:
        return None
    lowest = min(losses)
    if e.is_reported:
        return (
            f"Training loss was {start:.4g} at the first report, and {lowest:.4g} is the lowest "
            f"since, in {length(e)}{with_accuracy(e)}"
        )
    return (
        f"The lowest loss in {length(e)} is {lowest:.4g}, and a model that knows nothing has "
        f"{start:.4g}{with_accuracy(e)}"
    )


def _side(e: Evidence) -> str:
    """Describe whether the learning rate is too high or too low, as far as the updates show."""
    ratio, decay = _middle(e.ratios), e.number("weight_decay") or 0.0
    if ratio is None:
        return (
            f"the learning rate{of_value(e, 'learning_rate')} is too low, or so high that nothing "
            "stays learned"
        )
    name, share = e.silent or ("", 0.0)
    if share >= SILENT_SHARE and name.startswith("saturated"):
        return f"{share:.0%} of a layer's units are saturated; start from smaller weights (init)"
    dead = f" and {share:.0%} of a layer's units are dead" if share >= SILENT_SHARE else ""
    if ratio >= LARGE_RATIO or dead:
        other = f", or weight_decay ({decay:.3g}) too strong" if decay >= STRONG_DECAY else ""
        if dead and (strength := e.number("activation_l1")):
            other += f", or activation_l1 ({strength:.3g}) too strong"
        return (
            f"updates are {ratio:.1e} of the weights{dead}, so "
            f"learning_rate{of_value(e, 'learning_rate')} is too high{other}"
        )
    if decay >= STRONG_DECAY:
        return f"weight_decay ({decay:.3g}) may hold the weights at zero; lower it"
    return (
        f"updates are {ratio:.1e} of the weights, so learning_rate{of_value(e, 'learning_rate')} "
        "is too low for this many epochs; raise it"
    )


def _regularise(e: Evidence) -> str:
    decay = e.number("weight_decay")
    own = f" (weight_decay is {decay:.3g})" if decay is not None else ""
    return f"regularise more{own}, or take a smaller model"


def _middle(values: list[float]) -> float | None:
    return median(values) if values else None


def _say(word: DiagnosisWord, sentence: str, **figures: float | None) -> Diagnosis:
    return Diagnosis(
        word=word,
        sentence=sentence,
        figures={name: value for name, value in figures.items() if value is not None},
    )
