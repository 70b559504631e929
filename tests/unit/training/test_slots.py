"""Slots that come and go: refills, resumes, stops, lost leases, fractions of epochs.

A trial's results do not depend on them.
"""

import pytest
import torch

from common.search.trial import TrialState
from tests.unit.training.helpers import (
    FreeWatch,
    LostAfter,
    StopAfter,
    boundaries,
    engine,
    job,
    load,
    outcomes,
    state,
    weights,
)
from worker.training.engine.array import TrialArray

STEPS = 5  # of an epoch of SmallDigits
MIXED = [
    {
        "learning_rate": 10.0 ** -(i % 4),
        "weight_decay": 10.0 ** -(i + 1),
        "dropout": 0.1 * (i % 5 + 1),
    }
    for i in range(7)
]


def assert_same(found, expected, tolerance=1e-12):
    assert found.keys() == expected.keys()
    for trial_id, one in expected.items():
        other = found[trial_id]
        assert (other.state, other.reason, other.epochs, other.best_epoch) == (
            one.state,
            one.reason,
            one.epochs,
            one.best_epoch,
        )
        assert other.first_loss == pytest.approx(one.first_loss, rel=tolerance)
        for name in ("train_loss", "train_acc", "val_loss", "val_acc", "epoch"):
            assert other.curves[name] == pytest.approx(
                one.curves[name], rel=tolerance, abs=tolerance
            ), (trial_id, name)
        if one.checkpoint and other.checkpoint:
            gap = (weights(load(other.checkpoint())) - weights(load(one.checkpoint()))).abs().max()
            assert gap <= tolerance


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_refilled_slots_compute_what_they_compute_together(optimizer):
    jobs = [job(i, 1 + i % 3, optimizer=optimizer, **hp) for i, hp in enumerate(MIXED)]
    together = outcomes(jobs, width=7)
    for width in (1, 2, 3):
        assert_same(outcomes(jobs, width=width), together)


def test_refill_is_asked_for_as_many_as_are_free_and_only_when_nobody_waits():
    later = [[job(i, 2)] for i in range(10, 13)]
    asked = []

    def refill(n_free):
        asked.append(n_free)
        return later.pop(0) if later else []

    found = outcomes([job(0, 1), job(1, 3), job(2, 3)], width=2, refill=refill)
    assert sorted(found) == [
        "coarse-0000",
        "coarse-0001",
        "coarse-0002",
        "coarse-0010",
        "coarse-0011",
        "coarse-0012",
    ]
    assert all(outcome.state == TrialState.COMPLETED for outcome in found.values())
    assert set(asked) <= {1, 2}
    assert_same(
        found,
        outcomes([job(0, 1), job(1, 3), job(2, 3), job(10, 2), job(11, 2), job(12, 2)], width=6),
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("beats", [2, STEPS, STEPS + 4, 2 * STEPS + 2])
def test_a_trial_resumed_from_its_saved_state_is_the_uninterrupted_one(optimizer, beats):
    more = {"optimizer": optimizer, **({"momentum": 0.9} if optimizer == "sgd" else {})}
    whole = outcomes([job(i, 3, **hp, **more) for i, hp in enumerate(MIXED)])
    ended, resumed = {}, []
    for boundary in boundaries(
        [job(i, 3, **hp, **more) for i, hp in enumerate(MIXED)],
        watch=StopAfter(beats + len(MIXED) + 1),
    ):
        ended.update({outcome.trial.id: outcome for outcome in boundary.ended})
        resumed = [
            job(
                view.trial.index,
                3,
                resume=state(view),
                **MIXED[view.trial.index],
                **more,
            )
            for view in boundary.running
        ]
    assert resumed and boundary.waiting == []
    fresh = job(90, 2, **more)  # a newcomer that stands elsewhere in its epoch
    ended.update(outcomes([*resumed, fresh], width=16))
    whole.update(outcomes([fresh]))
    assert_same(ended, whole)


def test_told_to_stop_before_it_began_it_hands_everything_back():
    jobs = [job(0), job(1)]
    (only,) = boundaries(jobs, watch=StopAfter(0))
    assert [one.id for one in only.waiting] == ["coarse-0000", "coarse-0001"]
    assert only.running == [] and only.ended == []


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_told_to_stop_at_a_boundary_there_is_one_more_that_says_so(n_jobs):
    class Switch(FreeWatch):
        stop = False

        def stopping(self):
            return self.stop

    watch = Switch()
    running = boundaries([job(i, 1 + i) for i in range(n_jobs)], width=1, watch=watch)
    first = next(running)
    watch.stop = True
    (last,) = running
    assert [outcome.trial.id for outcome in first.ended] == ["coarse-0000"]
    assert last.ended == [] and [one.id for one in last.waiting] == ["coarse-0001"][: n_jobs - 1]


def test_trials_beyond_the_width_wait_and_are_handed_back():
    *_, last = boundaries([job(i) for i in range(4)], width=2, watch=StopAfter(8))
    assert {view.trial.id for view in last.running} == {"coarse-0000", "coarse-0001"}
    assert [one.id for one in last.waiting] == ["coarse-0002", "coarse-0003"]


def test_a_saved_state_that_does_not_fit_is_told_and_the_trial_starts_anew():
    said = []
    broken = {"format": 1, "trial": "coarse-0000"}
    found = outcomes([job(0, resume=broken)], log=said.append)
    assert "coarse-0000: its saved state does not fit" in said[0]
    assert_same(found, outcomes([job(0)]))


def test_fractions_of_epochs_train_the_nearest_number_of_steps_and_end_with_an_evaluation():
    found = outcomes([job(0, 0.5), job(1, 1.5), job(2, 0.01), job(3, 2)])
    assert [found[f"coarse-{i:04d}"].epochs for i in range(4)] == [
        pytest.approx(e) for e in (0.4, 1.6, 0.2, 2.0)
    ]
    assert found["coarse-0001"].curves["epoch"] == [1.0, 1.6]
    assert found["coarse-0000"].val_acc is not None
    assert_same({"coarse-0001": found["coarse-0001"]}, outcomes([job(1, 1.5)]))


def test_a_slot_whose_lease_is_gone_leaves_without_an_outcome():
    watch = LostAfter(9, {"coarse-0001", "coarse-0005"})
    jobs = [job(i, 2) for i in range(6)]
    found = outcomes(jobs, width=3, watch=watch)
    assert sorted(found) == ["coarse-0000", "coarse-0002", "coarse-0003", "coarse-0004"]
    assert_same(found, outcomes([one for one in jobs if one.id in found]))


def test_when_all_leases_are_gone_it_stops_computing():
    watch = LostAfter(8, {"coarse-0000", "coarse-0001"})
    assert outcomes([job(0, 50), job(1, 50)], watch=watch) == {}
    assert watch.beats < 15


def test_a_trial_that_was_lost_before_trains_with_nobody_beside_it():
    found = outcomes([job(0), job(1, alone=True), job(2)])
    assert found["coarse-0001"].array_width == 1
    assert found["coarse-0000"].array_width == 2
    assert_same(found, outcomes([job(0), job(1), job(2)]))


def test_batch_sizes_and_optimizers_train_in_arrays_of_their_own():
    kinds = [
        {"batch_size": 32},
        {"batch_size": 64},
        {"optimizer": "adam"},
        {"momentum": 0.9, "nesterov": True},
        {"hidden": 8},
    ]
    jobs = [job(i, 2, **kinds[i % len(kinds)]) for i in range(10)]
    found = outcomes(jobs)
    assert len(found) == 10 and {outcome.array_width for outcome in found.values()} == {2}


def test_a_batch_larger_than_the_data_is_the_data():
    assert outcomes([job(0, 2, batch_size=5000)])["coarse-0000"].epochs == 2


def test_every_step_and_every_validation_beats():
    watch = FreeWatch()
    outcomes([job(0, 3)], watch=watch)
    assert watch.beats >= 3 * STEPS + 3
    assert watch.phases == {"loading", "training"}


def test_the_width_is_measured_once_for_a_structure_where_there_is_work_enough():
    watch, one = FreeWatch(), engine(dtype=torch.float32)
    jobs = [job(i, 150, hidden=4, depth=1) for i in range(16)]
    next(iter(one.train(jobs, lambda n: [], watch)))
    assert "measuring" in watch.phases
    assert one.width(jobs[0].trial.hyperparameters) >= 1
    assert engine(width=5).width(jobs[0].trial.hyperparameters) == 5


def test_views_tell_epoch_accuracy_and_pace():
    seen = [view for boundary in boundaries([job(0, 4)]) for view in boundary.running]
    assert [view.epoch for view in seen] == [1.0, 2.0, 3.0]
    assert seen[0].last_epoch_s is None and seen[1].last_epoch_s > 0
    assert seen[-1].metrics["val_acc"] == max(
        outcomes([job(0, 4)])["coarse-0000"].curves["val_acc"][:3]
    )


def rows_of(array):
    """Copies of the tensors of each slot, by trial."""
    if not array.slots:
        return {}
    return {
        slot.claim.id: {name: one.clone() for name, one in array.stack.row(place).items()}
        for place, slot in enumerate(array.slots)
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_tensors_stay_where_they_are_while_trials_leave_join_and_explode(monkeypatch, optimizer):
    places, widths, dropped = set(), set(), []
    advance, drop = TrialArray.advance, TrialArray.drop

    def advancing(self, watch):
        stack = self.stack
        tensors = [*stack.rows.values(), stack.tensors.weights["0.weight"], *stack.noise.masks]
        places.add(tuple(one.data_ptr() for one in [*tensors, stack._gradients]))
        widths.add(self.width)
        advance(self, watch)

    def dropping(self, positions):
        before, gone = rows_of(self), {self.slots[p].claim.id for p in positions}
        drop(self, positions)
        after = rows_of(self)
        assert after.keys() == before.keys() - gone
        for trial_id, row in after.items():
            for name, one in row.items():
                assert torch.equal(one, before[trial_id][name]), (trial_id, name)
        dropped.extend(gone)

    monkeypatch.setattr(TrialArray, "advance", advancing)
    monkeypatch.setattr(TrialArray, "drop", dropping)
    more = {"optimizer": optimizer, "dropout": 0.2}
    # The second of the first five explodes.
    jobs = [
        job(0, 6, **more),
        job(1, 6, **more, **({"learning_rate": 1e6} if optimizer == "sgd" else {})),
        job(2, 1, **more),
        *[job(i, 1 + i % 3, **more) for i in range(3, 12)],
    ]
    later = [jobs[5:6], jobs[6:7], jobs[7:9], jobs[9:12]]
    found = outcomes(jobs[:5], width=5, refill=lambda n: later.pop(0) if later else [])
    assert len(places) == 1 and len(widths) > 2 and set(dropped) == found.keys()
    assert (found["coarse-0001"].state == TrialState.EXPLODED) == (optimizer == "sgd")
    monkeypatch.undo()
    assert_same(found, outcomes(jobs, width=12))


def test_few_trials_take_no_memory_for_more(monkeypatch):
    rows, advance = [], TrialArray.advance

    def advancing(self, watch):
        flat = self.stack.rows["flat"]
        rows.append((self.width, flat.untyped_storage().nbytes() // flat[0].nbytes))
        advance(self, watch)

    monkeypatch.setattr(TrialArray, "advance", advancing)
    later = [[job(2, 2)]]
    outcomes([job(0, 1), job(1, 2)], width=64, refill=lambda n: later.pop() if later else [])
    assert rows[0] == (2, 2) and max(room for _, room in rows) <= 3
