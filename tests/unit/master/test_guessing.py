"""Whether the best trial differs from guessing.

It is reported where nothing learns, and never for a search that learns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from common.folder.record import Record
from common.folder.records import SearchFolder
from common.search.space import Space
from common.search.stage import Stage
from common.search.trial import TrialState
from master.stages.source import Before, make_proposal, read_seen_before
from master.stages.standings import Standings
from master.strategy.guessing import at_least, guessing, guessing_so_far, look_of
from master.strategy.ranges import write_frozen
from master.strategy.rates import Direction
from tests.unit.master.made import exploded, record, searching

CHANCE = math.log(10)
TEN = {"n_val": 360, "guess_acc": 0.1, "guess_loss": CHANCE, "epoch_steps": 67}  # digits
SPACE = Space.parse(
    {"learning_rate": {"log_uniform": [1e-9, 1e-7]}, "weight_decay": {"log_uniform": [1e-7, 1e-2]}}
)


def trial(
    index: int,
    *accuracies: float | None,
    loss: float = 2.8,
    ratio: float | None = 1e-9,
    **more: Any,
) -> Record:
    """Make a digits trial with these accuracies, one an epoch.

    ``ratio`` None means that nothing was watched.
    """
    n = len(accuracies)
    curves: dict[str, Any] = {
        "epoch": [float(i + 1) for i in range(n)],
        "val_acc": list(accuracies),
        "val_loss": [loss] * n,
    }
    watched = (
        {}
        if ratio is None
        else {"update_ratio.0": [ratio] * n, "update_ratio.3": [ratio / 2] * n, "dead.1": [0.0] * n}
    )
    known = [value for value in accuracies if value is not None and math.isfinite(value)]
    values = {
        "budget_epochs": float(n),
        "val_acc": max(known, default=None),
        "val_loss": loss,
        "curves": {**curves, **watched},
        **TEN,
    }
    return record(
        index, {"learning_rate": 1e-8, "weight_decay": 1e-6 * (index + 1)}, **{**values, **more}
    )


def all_at(accuracy: float, n: int = 60, **more: Any) -> list[Record]:
    return [trial(i, accuracy, **more) for i in range(n)]


def told(records: Sequence[Record]) -> bool:
    """Whether the best can be told from guessing, as far as is known."""
    return guessing(records) is None


def test_weights_that_did_not_move_learned_nothing_whatever_they_guessed_by_luck() -> None:
    """An untrained network had an accuracy of 0.2278 on digits.

    By guessing, this happens once in 10^12 times.
    """
    found = guessing([*all_at(0.1, 59), trial(59, 0.2278)])
    assert found is not None and found.n_measured == 60
    assert found.text.startswith(
        "Nothing was learned: the best of 60 trials cannot be told from guessing; a step "
        "changes the weights by"
    )
    assert (
        found.text.endswith("; try learning_rate = { log_uniform = [0.001, 1] }.")
        and "\n" not in found.text
    )
    assert (
        "6 decades below the 0.001 that is healthy, and none exploded: raise learning_rate"
        in found.text
    )


@pytest.mark.parametrize(
    ("best", "is_told"),
    [
        (trial(60, 0.3, loss=1.9, ratio=1e-3), True),  # learns
        (
            trial(60, 0.18, loss=2.29, ratio=5e-4),
            True,
        ),  # a little above chance: 29 hits more than 36, in 61 evaluations
        (trial(60, 0.12, loss=2.2, ratio=1e-3), True),  # the loss tells before the accuracy does
        (
            trial(60, 0.14, loss=2.31, ratio=1e-2),
            False,
        ),  # 50 hits: one guesser in a hundred has as many, and there are 61
        (trial(60, 0.14, loss=2.31, ratio=None), False),
        (trial(60, 0.18, loss=2.31, ratio=None), True),
        (trial(60, 0.6, loss=2.8, ratio=1e-9), True),  # trained before: it knew that from the start
        (
            trial(60, 0.2, loss=2.5, ratio=5e-4),
            False,
        ),  # moved by 3 %, and worse than guessing: as an untrained one
        (
            trial(60, 0.2, loss=2.5, ratio=5e-3),
            True,
        ),  # moved by a third: beyond what guessing gives
        (
            trial(60, 0.5, loss=2.8, ratio=1e-9, guess_acc=None, n_val=None),
            False,
        ),  # no classes known: as its weights did not move
        (
            trial(60, 0.5, loss=2.8, ratio=1e-4, guess_acc=None, n_val=None),
            True,
        ),  # nothing is known of it
        (
            trial(60, 0.1, ratio=1e-9, epoch_steps=None, n_val=None),
            True,
        ),  # a record of an older version: nothing is known
        (trial(60, math.nan, loss=math.nan, ratio=1e-9), False),
        (trial(60, None, ratio=1e-9, state=TrialState.FAILED), False),
        (
            record(
                60, {"learning_rate": 1e-8}, state=TrialState.FAILED, val_acc=None, val_loss=None
            ),
            False,
        ),
        (
            record(
                60, {"learning_rate": 1e-8}, state=TrialState.KILLED, val_acc=None, val_loss=None
            ),
            False,
        ),
        (
            trial(60, 0.1, 0.9, loss=0.4, ratio=1e-2, state=TrialState.EXPLODED),
            True,
        ),  # it had learned before
    ],
)
def test_one_that_learned_or_of_which_nothing_is_known_keeps_silence(
    best: Record, is_told: bool
) -> None:
    assert told([*all_at(0.1, 60), best]) is is_told


def test_a_layer_that_starts_at_zero_may_have_learned() -> None:
    own = trial(0, 0.3)
    assert not told([own])
    assert told([own.model_copy(update={"curves": {**own.curves, "update_ratio.3": [None]}})])
    assert told(
        [own.model_copy(update={"curves": {**own.curves, "update_ratio.3": [0.1]}})]
    )  # only the largest counts


def test_few_examples_and_two_classes_take_a_long_way_to_be_told() -> None:
    two = {"n_val": 20, "guess_acc": 0.5, "guess_loss": math.log(2), "loss": 0.7, "ratio": None}
    lucky = trial(1, 0.85, **two)  # 17 of 20: once in 800 guesses
    assert told([lucky])
    assert not told([lucky, *(trial(i, 0.5, **two) for i in range(2, 62))])
    assert told([trial(1, 1.0, **two), *(trial(i, 0.5, **two) for i in range(2, 62))])
    assert told(
        [
            trial(1, 0.52, **{**two, "n_val": 100_000}),
            *(trial(i, 0.5, **{**two, "n_val": 100_000}) for i in range(2, 62)),
        ]
    )


def test_every_evaluation_of_every_trial_may_be_the_lucky_one() -> None:
    one = trial(0, 0.145, loss=2.31, ratio=None)  # 52 hits: once in 250 guesses
    assert told([one])
    assert not told([trial(0, *[0.1] * 19, 0.145, loss=2.31, ratio=None)])


def test_naming_the_largest_class_is_guessing() -> None:
    rare = {"guess_acc": 0.9, "guess_loss": None, "n_val": 400, "ratio": None}
    assert not told([trial(i, 0.9, **rare) for i in range(10)])
    assert told([trial(i, 0.9, **{**rare, "guess_acc": 0.5}) for i in range(10)])
    own = trial(
        0, 0.9, **rare, metric="val_auc", value=0.8
    )  # which may know what accuracy does not
    assert told([own.model_copy(update={"curves": {**own.curves, "val_auc": [0.8]}})])


def test_a_regression_is_judged_by_its_weights_and_by_what_moved() -> None:
    plain = {
        "guess_acc": None,
        "guess_loss": None,
        "n_val": 100,
        "metric": "val_mae",
        "mode": "min",
    }

    def of(*values: float, ratio: float | None = 1e-9) -> Record:
        own = trial(0, *[None] * len(values), ratio=ratio, **plain)
        return own.model_copy(
            update={"curves": {**own.curves, "val_mae": list(values)}, "value": min(values)}
        )

    assert not told([of(0.9)]) and not told([of(0.9, 0.8999)])
    assert told([of(0.9, 0.8)])  # small steps, and yet
    assert told([of(0.9, ratio=1e-4)])  # 0.7 % of the weights: who knows
    assert told([of(0.9, ratio=None)])  # a loop of the user's own


def test_a_single_trial_and_none() -> None:
    found = guessing([trial(0, 0.1)])
    assert (
        found is not None
        and "the only trial that was measured cannot be told from guessing" in found.text
    )
    assert guessing([]) is None


def test_all_exploded_and_all_failed() -> None:
    found = guessing(exploded([1e2, 1e3, 1e5]))
    assert found is not None and found.advice.direction is Direction.LOWER
    why = "3 of 3 trials exploded: lower learning_rate"
    assert (
        found.text
        == f"Nothing was learned: {why}; try learning_rate = {{ log_uniform = [1e-05, 10] }}."
    )
    failed = [
        record(i, {"learning_rate": 1.0}, state=TrialState.FAILED, val_acc=None, val_loss=None)
        for i in range(9)
    ]
    assert told(failed) and told([*failed, *exploded([1e2])])  # what failed says nothing of rates
    assert not told([*failed[:1], *exploded([1e2, 1e3])])


@pytest.mark.parametrize(
    ("hits", "n", "share"),
    [
        (50, 360, 0.1),
        (17, 20, 0.5),
        (400, 400, 0.9),
        (52_000, 100_000, 0.5),
        (0, 5, 0.2),
        (5, 5, 1.0),
    ],
)
def test_the_tail_is_that_of_the_binomial_distribution(hits: int, n: int, share: float) -> None:
    own = at_least(hits, n, share)
    if hits <= n * share:
        assert own == 1.0
    else:
        exact = math.fsum(
            math.exp(
                math.lgamma(n + 1)
                - math.lgamma(k + 1)
                - math.lgamma(n - k + 1)
                + k * math.log(share)
                + (n - k) * math.log1p(-share)
            )
            for k in range(hits, n + 1)
        )
        assert own == pytest.approx(exact, rel=1e-6)


def test_nothing_is_said_before_a_first_stage_has_ended() -> None:
    search = searching(
        SPACE, Stage(name="coarse", trials=3, epochs=1), Stage(name="fine", trials=3, epochs=2)
    )
    assert guessing_so_far(search, all_at(0.1, 2)) is None
    assert guessing_so_far(search, all_at(0.1, 3)) is not None
    later = trial(9, 0.8, loss=0.5, ratio=1e-3, stage="fine", trial="fine-0000")
    assert guessing_so_far(search, [*all_at(0.1, 3), later]) is None


def searched(accuracies: Sequence[float], **more: Any) -> Before:
    """Make a first stage whose last rung is known.

    Twenty trials have these accuracies at epochs 1 and 3.
    """
    records = [
        trial(i, accuracy, accuracy, accuracy, passed=(1.0,), **more)
        for i, accuracy in enumerate(accuracies)
    ]
    return Before(records, [], Standings(searching(SPACE)))


def test_the_next_stage_knows_nothing_and_no_range_moves_where_nothing_was_learned(
    tmp_path: Path,
) -> None:
    fine = Stage(name="fine", trials=10, epochs=3)
    search = searching(SPACE, Stage(name="coarse", trials=20, epochs=1), fine)
    folder = SearchFolder(tmp_path, "s")
    folder.stage("coarse").make()
    write_frozen(folder.stage("coarse").ranges, SPACE)
    luck = [0.2 - 0.005 * i for i in range(20)]  # the best ten have the least weight decay
    noise, learned = searched(luck), searched(luck, ratio=1e-2)
    assert read_seen_before(search, folder, fine, noise) == []
    assert len(read_seen_before(search, folder, fine, learned)) == 20
    proposal = make_proposal(search, folder, search.stages[0], fine, noise)
    assert proposal.space == search.space and set(proposal.notes.values()) == {
        "kept: no trial has learned anything yet"
    }


def test_what_a_later_rung_brought_is_not_asked_by_a_stage_that_does_not_know_it() -> None:
    """Else what is frozen would depend on when it is asked."""
    own = trial(0, 0.1, 0.1, 0.9, loss=2.31, ratio=1e-3)
    assert look_of(own).n == 3 and not look_of(own).has_learned_nothing(100)
    short = trial(0, 0.1, 0.1, loss=2.31, ratio=1e-3)
    assert look_of(own, until=3.0) == look_of(short)
    lost = own.model_copy(update={"state": TrialState.EXPLODED})
    assert look_of(lost, until=3.0) == look_of(short) and look_of(lost).steps.exploded
