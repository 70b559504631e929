"""Each word of the diagnosis, from curves written by hand and from small real trainings."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from common.diagnosis import DiagnosisWord as Word
from common.folder.record import Diagnosis
from common.search.trial import Claim, TrialState
from tests.unit.training.helpers import digits, job, outcomes
from worker.tasks.base import Data, Part
from worker.tasks.digits import Digits
from worker.training.history.curve_reader import Evidence, Values
from worker.training.history.diagnosis import RULES, diagnose, diagnose_trial
from worker.training.types import Outcome

EVIDENCE = Evidence(
    TrialState.COMPLETED,
    hyperparameters={"learning_rate": 0.1, "weight_decay": 0.0, "batch_size": 64},
    first_loss=2.4,
    n_classes=10,
    chance_loss=math.log(10),
    n_val=360,
)
SETTLED: Mapping[str, Values] = {  # a good trial
    "epoch": [1, 2, 3, 4, 5, 6, 7, 8],
    "train_loss": [1.0, 0.4, 0.2, 0.15, 0.12, 0.1, 0.1, 0.1],
    "train_acc": [0.7, 0.9, 0.95, 0.97, 0.98, 0.98, 0.98, 0.98],
    "val_loss": [0.6, 0.3, 0.22, 0.2, 0.2, 0.2, 0.2, 0.2],
    "val_acc": [0.8, 0.92, 0.94, 0.95, 0.95, 0.95, 0.95, 0.95],
    "update_ratio.0": [4e-3] * 8,
    "update_ratio.2": [2e-3] * 8,
    "dead.1": [0.05] * 8,
    "wiggle": [0.1] * 8,
}


def told(word: Word, e: Evidence) -> Diagnosis:
    found = diagnose(e)
    assert found is not None
    assert found.word == word, found.sentence
    assert found.sentence.endswith(".") and "\n" not in found.sentence
    return found


def evidence(curves: Mapping[str, Any] = {}, **more: Any) -> Evidence:
    """The good trial, but for these curves."""
    return replace(EVIDENCE, curves={**SETTLED, **curves}, **more)


def only(**curves: Values) -> Evidence:
    """Nothing but these curves."""
    return replace(EVIDENCE, curves=curves)


def test_a_good_trial_is_good_with_its_figures() -> None:
    found = told(Word.GOOD, evidence())
    assert "val_acc 0.95, val_loss 0.2 after 8 epochs" in found.sentence
    assert found.figures["train_acc"] == 0.98 and found.figures["update_ratio"] == pytest.approx(
        3e-3
    )


def test_the_rules_are_in_the_order_of_the_words() -> None:
    assert [rule.__name__ for rule in RULES] == [word.name.lower() for word in Word]


def test_killed_and_failed_trials_have_none() -> None:
    assert (
        diagnose(evidence(state=TrialState.KILLED))
        is diagnose(evidence(state=TrialState.FAILED))
        is None
    )
    assert diagnose(only()) is None  # nothing was measured


def test_an_explosion_is_told_with_its_reason_and_comes_before_all_else() -> None:
    found = told(
        Word.EXPLODED,
        evidence(
            {"dead.1": [1.0] * 8},
            state=TrialState.EXPLODED,
            reason="loss 9 above 3 x its first loss 2.4",
        ),
    )
    assert "(0.1) is too high: loss 9 above" in found.sentence


def test_at_chance_says_which_side_by_the_updates() -> None:
    chance = {
        "val_acc": [0.11] * 8,
        "val_loss": [2.31] * 8,
        "train_acc": [0.1] * 8,
        "train_loss": [2.31] * 8,
    }
    assert (
        "is too low for this many epochs"
        in told(Word.NOT_LEARNING, evidence(chance | {"update_ratio.0": [1e-6] * 8})).sentence
    )
    large = {"update_ratio.0": [0.3] * 8, "update_ratio.2": [0.2] * 8}
    assert "is too high" in told(Word.NOT_LEARNING, evidence(chance | large)).sentence
    dead = told(Word.NOT_LEARNING, evidence(chance | {"dead.1": [1.0] * 8})).sentence
    assert "100% of a layer's units are dead" in dead and "is too high" in dead
    strong = replace(evidence(chance), hyperparameters={"learning_rate": 0.1, "weight_decay": 0.9})
    assert "weight_decay (0.9) may hold" in told(Word.NOT_LEARNING, strong).sentence
    blind = told(Word.NOT_LEARNING, only(epoch=[1.0], val_acc=[0.1], val_loss=[2.3])).sentence
    assert "too low, or so high" in blind


def test_a_loss_that_barely_changes_is_not_learning_though_the_accuracy_is_above_chance() -> None:
    """The notes' example: a rate of 1e-6 leaves the loss at 2.3026 with an accuracy of 20 %."""
    notes = only(
        epoch=[10.0], train_loss=[2.3025], train_acc=[0.206], val_loss=[2.3025], val_acc=[0.192]
    )
    assert "2.302 in" not in told(Word.NOT_LEARNING, notes).sentence
    sure = only(epoch=[1.0], train_loss=[1.5], train_acc=[0.6], val_loss=[3.0], val_acc=[0.66])
    # It has learned and is overconfident.
    assert diagnose(sure).word != Word.NOT_LEARNING  # type: ignore[union-attr]


def reported(**curves: Values) -> Evidence:
    """What a loop of the task's own reported, which has set nothing besides."""
    first = next(iter(curves.get("train_loss", [])), None)
    return replace(
        only(**curves), is_reported=True, first_loss=first, n_classes=None, chance_loss=None
    )


def test_a_single_report_says_nothing_that_needs_curves() -> None:
    """LightGBM: a loss after all rounds. The training loss is no mean on the way, nor a start."""
    assert diagnose(reported(epoch=[100.0], val_acc=[0.96], val_loss=[0.11])) is None
    assert diagnose(reported(epoch=[100.0], train_loss=[0.02], val_loss=[0.11])) is None
    assert diagnose(reported(epoch=[100.0], train_loss=[0.2], val_loss=[0.11])) is None
    guess = replace(reported(epoch=[100.0], val_acc=[0.51]), n_classes=2)
    assert "no better than guessing" in told(Word.NOT_LEARNING, guess).sentence
    assert told(Word.EXPLODED, replace(guess, state=TrialState.EXPLODED)).word == Word.EXPLODED


def test_the_first_loss_of_a_report_is_not_that_of_a_model_that_knows_nothing() -> None:
    quick = reported(epoch=[1.0, 2.0], train_loss=[0.02, 0.01], val_loss=[0.12, 0.12])
    assert "settled" in told(Word.GOOD, quick).sentence
    flat = {"epoch": [1.0, 2.0, 3.0], "train_loss": [0.7, 0.69, 0.7]}
    sentence = told(Word.NOT_LEARNING, reported(**flat)).sentence
    assert "Training loss was 0.7 at the first report, and 0.69 is the lowest since" in sentence
    assert told(Word.GOOD, reported(**flat, val_acc=[0.9] * 3))


def test_a_trial_that_forgot_is_not_learning() -> None:
    lost = {
        "val_acc": [0.8, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
        "val_loss": [0.6, 0.4, 2.4, 2.31, 2.31, 2.31, 2.31, 2.31],
    }
    assert "though it had 0.900 once" in told(Word.NOT_LEARNING, evidence(lost)).sentence


def test_a_flat_high_loss_is_a_plateau_only_with_large_updates() -> None:
    flat = {
        "train_loss": [1.2, 0.7, 0.6, 0.61, 0.6, 0.59, 0.6, 0.6],
        "val_loss": [0.9, 0.7, 0.65, 0.64, 0.66, 0.65, 0.64, 0.65],
        "train_acc": [0.6, 0.78] + [0.8] * 6,
        "val_acc": [0.7, 0.77] + [0.79] * 6,
    }
    found = told(
        Word.PLATEAUED_HIGH,
        evidence(flat | {"update_ratio.0": [2e-2] * 8, "update_ratio.2": [2e-2] * 8}),
    )
    assert "stays at about 0.6" in found.sentence and "2.0e-02" in found.sentence
    found = told(Word.UNDERFITTING, evidence(flat))
    assert (
        "settled at 0.800 and validation accuracy at 0.790" in found.sentence
        and "raise learning_rate" not in found.sentence
    )
    slow = told(
        Word.UNDERFITTING,
        evidence(flat | {"update_ratio.0": [3e-4] * 8, "update_ratio.2": [3e-4] * 8}),
    )
    assert "or raise learning_rate" in slow.sentence


def test_a_penalty_on_activations_is_named_where_units_are_dead() -> None:
    hp = {**EVIDENCE.hyperparameters, "activation_l1": 0.02}
    dead = {"dead.1": [0.55] * 8}
    found = told(Word.DEAD_UNITS, evidence(dead, hyperparameters=hp)).sentence
    assert "lower learning_rate or activation_l1 (0.02), or use" in found
    chance = {name: [2.31] * 8 for name in ("train_loss", "val_loss")}
    chance |= {name: [0.1] * 8 for name in ("train_acc", "val_acc")} | dead
    found = told(Word.NOT_LEARNING, evidence(chance, hyperparameters=hp)).sentence
    assert "or activation_l1 (0.02) too strong" in found
    loss = evidence(chance_loss=None, hyperparameters=hp)
    assert loss.start is None and evidence(chance_loss=None).start == EVIDENCE.first_loss


def test_dead_and_saturated_units() -> None:
    found = told(Word.DEAD_UNITS, evidence({"dead.1": [0.0] * 7 + [0.55], "dead.3": [0.1] * 8}))
    assert found.sentence.startswith("55% of the units of layer 1 are dead")
    found = told(Word.DEAD_UNITS, evidence({"saturated.1": [0.9] * 8}))
    assert found.sentence.startswith("90% of the units of layer 1 are saturated")
    told(
        Word.GOOD, evidence({"saturated.1": [0.05] + [0.9] * 7})
    )  # it became sure of itself: no harm


def test_updates_far_from_a_thousandth_say_on_which_side() -> None:
    assert (
        "lower learning_rate"
        in told(
            Word.LARGE_UPDATES, evidence({"update_ratio.0": [0.1] * 8, "update_ratio.2": [0.2] * 8})
        ).sentence
    )
    assert (
        "raise learning_rate"
        in told(
            Word.SMALL_UPDATES,
            evidence({"update_ratio.0": [1e-5] * 8, "update_ratio.2": [2e-5] * 8}),
        ).sentence
    )
    decayed = [4e-3, 1e-3] + [1e-6] * 6  # a schedule brought the rate down: that is as it should be
    told(Word.GOOD, evidence({"update_ratio.0": decayed, "update_ratio.2": decayed}))


def test_noise_counts_only_while_the_loss_is_not_low() -> None:
    noise = {"wiggle": [0.9] * 8}
    told(Word.GOOD, evidence(noise))
    high = {
        "train_loss": [1.0, 0.8, 0.7, 0.65] + [0.62] * 4,
        "val_loss": [0.8, 0.7, 0.65, 0.6] + [0.6] * 4,
    }
    found = told(Word.NOISY, evidence(noise | high | {"train_acc": [0.93] * 8}))
    assert "90% of their mean 0.62" in found.sentence and "(64)" in found.sentence
    told(
        Word.GOOD,
        evidence(noise | high | {"train_acc": [0.93] * 8, "val_loss": SETTLED["val_loss"]}),
    )  # that is dropout's noise


def test_a_big_gap_is_overfitting() -> None:
    found = told(Word.OVERFITTING, evidence({"train_acc": [1.0] * 8, "val_acc": [0.8] * 8}))
    assert "0.200 above validation accuracy 0.800" in found.sentence and found.figures[
        "gap"
    ] == pytest.approx(0.2)


def test_without_accuracies_a_rising_validation_loss_is_overfitting() -> None:
    regression = replace(only(), n_classes=None, chance_loss=None, metric="val_loss", mode="min")
    curves = {
        "epoch": [1, 2, 3, 4],
        "train_loss": [1.0, 0.5, 0.3, 0.2],
        "val_loss": [0.9, 0.6, 0.7, 0.8],
    }
    assert (
        "rose from 0.6 to 0.8"
        in told(Word.OVERFITTING, replace(regression, curves=curves)).sentence
    )
    falling = curves | {"val_loss": [0.9, 0.6, 0.5, 0.4]}
    assert (
        "val_loss 0.4 after 4 epochs"
        in told(Word.STILL_IMPROVING, replace(regression, curves=falling)).sentence
    )
    settled = curves | {"train_loss": [1.0, 0.5, 0.5, 0.5], "val_loss": [0.9, 0.5, 0.5, 0.5]}
    told(Word.GOOD, replace(regression, curves=settled))
    still = curves | {"train_loss": [2.4, 2.4, 2.39, 2.38], "val_loss": [2.4, 2.39, 2.39, 2.38]}
    told(Word.NOT_LEARNING, replace(regression, curves=still))


def test_still_improving_says_how_much_and_of_what() -> None:
    falling = {"val_loss": [0.6, 0.5, 0.45, 0.4, 0.37, 0.34, 0.31, 0.28]}
    assert (
        "Validation loss still fell by 18% in the last 2 of 8 evaluations"
        in told(Word.STILL_IMPROVING, evidence(falling)).sentence
    )
    noise = {
        "val_loss": [0.6, 0.2, 0.5, 0.4, 0.5, 0.5, 0.45, 0.4]
    }  # it fell lately, and was lower before
    told(Word.GOOD, evidence(noise))
    metric_alone = replace(only(epoch=[1, 2, 3, 4], val_acc=[0.5, 0.6, 0.7, 0.8]), chance_loss=None)
    assert told(Word.STILL_IMPROVING, metric_alone).sentence.startswith(
        "1 - val_acc still fell by 33%"
    )


def test_one_evaluation_says_what_it_can() -> None:
    one = only(epoch=[0.5], train_loss=[2.0], train_acc=[0.4], val_loss=[1.2], val_acc=[0.7])
    assert "at the end of 0.5 epochs" in told(Word.STILL_IMPROVING, one).sentence
    level = only(epoch=[1.0], train_loss=[1.2], train_acc=[0.65], val_loss=[1.19], val_acc=[0.66])
    assert "after a single evaluation" in told(Word.GOOD, level).sentence
    gap = only(epoch=[1.0], train_loss=[0.2], train_acc=[0.95], val_loss=[0.9], val_acc=[0.75])
    told(Word.OVERFITTING, gap)


def test_what_is_missing_or_not_finite_is_passed_over() -> None:
    holes = evidence(
        {
            "wiggle": [None] * 8,
            "dead.1": [math.nan] * 8,
            "update_ratio.0": [None, 1e-3, None, math.inf, 1e-3, 1e-3, 1e-3, 1e-3],
        }
    )
    told(Word.GOOD, holes)


# -- real trainings --------------------------------------------------------------------------------


class Few(Digits):
    """Forty training examples: easily learned by heart."""

    def data(self) -> Data:
        whole = digits()
        return Data(
            Part(whole.train.inputs[:40], whole.train.targets[:40]),
            whole.val,
            whole.test,
            whole.n_classes,
        )


def word_of(outcome: Outcome) -> Word:
    found = diagnose_trial(outcome, "val_acc", "max")
    assert found is not None
    return Word(found.word)


def words(jobs: list[Claim], task: Any = None, **options: Any) -> list[Word]:
    ended = outcomes(jobs, task=task or Digits(), dtype=torch.float32, **options)
    return [word_of(ended[one.id]) for one in jobs]


def test_real_trainings_of_an_array_show_the_words() -> None:
    shared: dict[str, Any] = {"hidden": 32, "momentum": 0.9, "weight_decay": 0.0}
    rates = {
        1e-5: Word.NOT_LEARNING,
        2e-3: Word.STILL_IMPROVING,
        0.05: Word.GOOD,
        5.0: Word.EXPLODED,
    }
    assert words(
        [job(i, epochs=12, **shared, learning_rate=rate) for i, rate in enumerate(rates)]
    ) == list(rates.values())


def test_a_real_rate_that_is_too_high_without_exploding() -> None:
    adam: dict[str, Any] = {"hidden": 64, "optimizer": "adam", "learning_rate": 0.1}
    assert words([job(0, epochs=8, **adam)], explosion_factor=1e3) == [Word.PLATEAUED_HIGH]
    assert words([job(0, epochs=1, **adam)], explosion_factor=1e3)[0] in (
        Word.DEAD_UNITS,
        Word.LARGE_UPDATES,
    )


def test_real_saturation_overfitting_and_underfitting() -> None:
    start: dict[str, Any] = {
        "activation": "tanh",
        "init": "gaussian",
        "init_scale": 0.7,
        "hidden": 64,
    }
    assert words([job(0, epochs=3, learning_rate=0.05, **start)]) == [Word.DEAD_UNITS]
    assert words([job(0, epochs=25, batch_size=20, learning_rate=0.1)], Few()) == [Word.OVERFITTING]
    assert words([job(0, epochs=25, hidden=2, depth=1, momentum=0.9, learning_rate=0.05)]) == [
        Word.UNDERFITTING
    ]


def test_real_noise_of_batches_of_one() -> None:
    assert words([job(0, epochs=0.5, batch_size=1, learning_rate=0.015)], explosion_factor=1e3) == [
        Word.NOISY
    ]


def test_the_updates_of_a_real_good_start_are_healthy() -> None:
    [first] = outcomes(
        [job(0, epochs=6, learning_rate=0.1, momentum=0.9)], task=Digits(), dtype=torch.float32
    ).values()
    assert word_of(first) in (Word.GOOD, Word.STILL_IMPROVING)
    ratios = [values for name, values in first.curves.items() if name.startswith("update_ratio.")]
    assert len(ratios) == 3 and all(
        1e-4 < value < 5e-2 for values in ratios for value in values if value is not None
    )
