"""Explosions are seen, told with their figures, and touch nobody else."""

import math

import pytest
import torch

from common.search.stage import Stage
from common.search.trial import TrialState
from tests.unit.training.helpers import (
    FreeWatch,
    SmallDigits,
    boundaries,
    job,
    load,
    outcomes,
    states_at,
    weights,
)
from worker.training.stacked.explosion import (
    WINDOW,
    explain_explosion,
    first_explosions,
    small_loss,
)

CHANCE = math.log(10)


def judged(costs, first=None, recent=None, factor=3.0):
    column = torch.tensor(costs).unsqueeze(1)
    before = torch.zeros(WINDOW - 1, 1)
    if recent:
        before[-len(recent) :, 0] = torch.tensor(recent)
    return int(
        first_explosions(
            column,
            torch.tensor([first if first is not None else costs[0]]),
            before,
            torch.tensor([factor]),
            small_loss(CHANCE),
        )
    )


def test_the_first_cost_above_the_factor_counts():
    assert judged([2.3, 6.8, 2.0]) == 3
    assert judged([2.3, 7.0, 9.0]) == 1
    assert judged([2.3, 7.0, 9.0], factor=3.5) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts(bad):
    assert judged([2.3, 1.0, bad]) == 2
    assert judged([bad, 1.0]) == 0
    assert judged([0.1, 0.1, bad]) == 2


def test_a_small_first_loss_is_compared_with_the_mean_of_ten_steps():
    small = 0.09 * CHANCE
    unlucky = [small, 4 * small, *[small] * 10]
    assert judged(unlucky) == len(unlucky)
    assert (
        judged([4 * small] * 20, first=small) == 7
    )  # the eighth: 8 x 4 / 10 > 3; steps before the first count as nothing
    assert judged([5 * small], first=small, recent=[5 * small] * 9) == 0


@pytest.mark.parametrize("first", [0.0, -1.0, 1e-9])
def test_a_first_loss_that_is_no_measure_is_not_multiplied(first):
    assert judged([first, 50.0, 60.0]) == 3
    assert judged([first, 50.0, math.nan]) == 2


def test_an_infinite_factor_leaves_what_is_not_finite():
    assert judged([2.3, 1e30], factor=math.inf) == 2
    assert judged([2.3, math.inf], factor=math.inf) == 1


HOT = {"learning_rate": 30.0, "momentum": 0.9}


@pytest.mark.parametrize(
    ("options", "stage", "state"),
    [
        ({}, None, TrialState.EXPLODED),
        ({"explosion": "nan"}, None, TrialState.COMPLETED),
        ({}, "nan", TrialState.COMPLETED),
        ({"explosion": False}, True, TrialState.EXPLODED),
    ],
)
def test_the_rule_is_the_stage_s_or_else_the_search_s(options, stage, state):
    stages = {"coarse": Stage(name="coarse", trials=2, epochs=1, explosion=stage)}
    found = outcomes([job(0, 1, **HOT), job(1, 1)], stages=stages, **options)
    assert found["coarse-0000"].state is state
    assert found["coarse-0001"].state is TrialState.COMPLETED
    assert max(found["coarse-0000"].curves["train_loss"] or [99]) > 3 * CHANCE


class Breaking(SmallDigits):
    """Its loss is no number in the second epoch; weights stay what they are."""

    def loss(self, outputs, targets, hp):
        loss = torch.nn.functional.cross_entropy(outputs, targets)
        return torch.where(loss < hp["limit"], loss, math.nan * loss.detach())


@pytest.mark.parametrize(
    ("explosion", "state"), [("nan", TrialState.EXPLODED), (False, TrialState.COMPLETED)]
)
def test_a_number_that_is_not_finite_ends_a_trial_unless_nothing_shall(explosion, state):
    jobs = [job(0, 2, limit=0.5), job(1, 2, limit=1e9)]
    found = outcomes(jobs, task=Breaking(), explosion=explosion)
    assert found["coarse-0000"].state is state
    assert found["coarse-0001"].state is TrialState.COMPLETED


def test_the_reason_names_the_figures():
    assert (
        explain_explosion([12.1], 2.31, 3.0, 52, 16, small_loss(CHANCE))
        == "loss 12.1 above 3 x its first loss 2.31 at step 5 of epoch 4"
    )
    assert "not finite (nan) at step 1 of epoch 1" in explain_explosion(
        [math.nan], 2.3, 3.0, 0, 16, small_loss(CHANCE)
    )
    assert "mean of 10 losses 0.5 above" in explain_explosion(
        [0.5] * 10, 0.1, 3.0, 0, 16, small_loss(CHANCE)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_of_an_explosion_are_bitwise_what_they_are_without(dtype):
    calm = [job(i, 3, learning_rate=10.0**-i, dropout=0.2, momentum=0.9) for i in range(1, 5)]
    wild = job(7, 3, learning_rate=1e8, dropout=0.2, momentum=0.9)
    tame = job(7, 3, learning_rate=1e-4, dropout=0.2, momentum=0.9)
    beside_wild, beside_tame = (
        states_at([*calm[:2], third, *calm[2:]], 1, dtype=dtype) for third in (wild, tame)
    )
    assert wild.id not in beside_wild
    for one in calm:
        assert torch.equal(weights(beside_wild[one.id]), weights(beside_tame[one.id]))


def test_an_exploded_trial_tells_when_and_keeps_no_weights_of_an_unfinished_epoch():
    found = outcomes([job(0, 3, learning_rate=1e6), job(1, 3)])
    exploded = found["coarse-0000"]
    assert exploded.state == TrialState.EXPLODED
    assert "its first loss" in exploded.reason or "not finite" in exploded.reason
    assert 0 < exploded.epochs <= 1
    assert exploded.checkpoint is None and exploded.val_acc is None
    assert exploded.first_loss == pytest.approx(CHANCE, rel=0.5)
    assert found["coarse-0001"].state == TrialState.COMPLETED


def test_an_explosion_after_a_good_epoch_keeps_that_epoch():
    reached = states_at([job(0, 3), job(1, 3, learning_rate=0.01)], 1)
    state = reached["coarse-0001"]
    state["row"] = {
        **state["row"],
        "flat": torch.full_like(state["row"]["flat"], math.nan),
    }  # not those of its best epoch
    found = outcomes([job(1, 3, learning_rate=0.01, resume=state)])["coarse-0001"]
    assert found.state == TrialState.EXPLODED
    assert found.best_epoch == 1.0
    assert torch.isfinite(weights(load(found.checkpoint()))).all()


def test_the_first_loss_is_kept_over_a_resume():
    state = states_at([job(0, 3)], 1)["coarse-0000"]
    assert state["first_loss"] == outcomes([job(0, 3)])["coarse-0000"].first_loss
    state["first_loss"] = 1e-3  # so that any later mean is above three times it
    found = outcomes([job(0, 3, resume=state)])["coarse-0000"]
    assert found.state == TrialState.EXPLODED and "x its first loss 0.001" in found.reason


def test_when_all_have_exploded_the_array_is_left_at_once():
    watch = FreeWatch()
    found = outcomes([job(i, 3, learning_rate=1e9, batch_size=4) for i in range(3)], watch=watch)
    assert {outcome.state for outcome in found.values()} == {TrialState.EXPLODED}
    assert watch.beats < 40  # of the 80 steps of an epoch


def test_a_boundary_follows_every_epoch():
    epochs = [
        [view.epoch for view in boundary.running] for boundary in boundaries([job(0, 2), job(1, 3)])
    ]
    assert epochs == [[1.0, 1.0], [2.0], []]
