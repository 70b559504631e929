"""When a stage stops a trial that goes on without promise."""

import math

import pytest

from worker.training.history.stopping import at_chance, no_progress

EPOCHS = [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("values", "mode", "patience", "stops"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5], "max", 1, False),
        ([0.5, 0.4, 0.3, 0.2, 0.1], "min", 1, False),
        ([0.1, 0.5, 0.4, 0.4, 0.4], "max", 3, True),
        ([0.1, 0.5, 0.4, 0.4, 0.4], "max", 3.5, False),
        ([0.1, 0.5, 0.5, 0.5, 0.5], "max", 3, True),  # the same again is no progress
        ([0.5, 0.1, 0.2, 0.2, 0.2], "min", 3, True),
        ([0.5, None, math.nan, math.inf, 0.1], "max", 4, True),
        ([None, None, None, None, None], "max", 1, False),  # nothing to judge by
        (
            [0.9, 0.1, 0.2, 0.3, 0.4],
            "max",
            4,
            True,
        ),  # better than before is not better than the best
    ],
)
def test_patience(values, mode, patience, stops):
    reason = no_progress(values, EPOCHS, mode, patience)
    assert (reason is not None) == stops, reason


def test_the_reason_names_the_best_value_and_how_long_ago_it_was():
    assert no_progress([0.1, 0.5, 0.4, 0.4, 0.4], EPOCHS, "max", 3) == (
        "no progress: best value 0.5 at epoch 2, none better in 3 epochs"
    )


def test_fractions_of_epochs_count():
    assert no_progress([0.3, 0.3], [0.1, 0.4], "max", 0.3)
    assert not no_progress([0.3, 0.3], [0.1, 0.3], "max", 0.3)


LN10 = math.log(10)


@pytest.mark.parametrize(
    ("accuracies", "losses", "stops"),
    [
        ([0.10] * 5, [2.3026] * 5, True),
        ([0.118] * 5, [2.3026] * 5, True),  # two standard errors of 1000 examples are 0.019
        ([0.120] * 5, [2.3026] * 5, False),
        ([0.10] * 5, [2.3, 2.3, 2.2, 2.3, 2.3], False),  # the loss learned
        ([0.10] * 5, [2.29] * 5, True),  # by less than 1 %
        ([0.10, 0.5, 0.10, 0.10, 0.10], [2.3] * 5, False),  # it did learn once
        ([0.10] * 5, [math.inf] * 5, True),
        ([None] * 5, [2.3] * 5, False),  # nothing to judge by
    ],
)
def test_no_better_than_guessing(accuracies, losses, stops):
    reason = at_chance(accuracies, losses, EPOCHS, grace=5, n_classes=10, n_examples=1000)
    assert (reason is not None) == stops, reason


def test_nothing_is_judged_before_the_grace_is_over():
    assert not at_chance([0.1] * 5, [LN10] * 5, EPOCHS, grace=5.5, n_classes=10, n_examples=1000)


def test_a_hinge_loss_brings_its_own_chance():
    assert at_chance(
        [0.1] * 5, [9.0] * 5, EPOCHS, grace=1, n_classes=10, n_examples=1000, chance=9.0
    )
    assert not at_chance(
        [0.1] * 5, [8.0] * 5, EPOCHS, grace=1, n_classes=10, n_examples=1000, chance=9.0
    )


def test_a_loss_without_a_chance_leaves_it_to_the_accuracy():
    assert at_chance(
        [0.1] * 5, [0.01] * 5, EPOCHS, grace=1, n_classes=10, n_examples=1000, chance=math.nan
    )
    assert not at_chance(
        [0.2] * 5, [0.01] * 5, EPOCHS, grace=1, n_classes=10, n_examples=1000, chance=math.nan
    )


def test_the_reason_has_the_figures():
    assert at_chance([0.1] * 5, [LN10] * 5, EPOCHS, grace=5, n_classes=10, n_examples=1000) == (
        "no better than guessing after 5 epochs: best accuracy 0.1 (up to 0.119 is "
        "chance), lowest loss 2.303 (chance: 2.303)"
    )
