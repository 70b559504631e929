"""A trial promoted from rung to rung equals one trained to its last rung at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from common.search.stage import Stage
from common.search.trial import Claim, TrialState
from tests.unit.training.helpers import boundaries, job, load, outcomes
from worker.training.engine.array import TrialArray
from worker.training.stacked.slot import pack
from worker.training.types import Outcome

RUNGS = (1.0, 2.0, 7.0, 20.0)
PRACTICES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "momentum_start": 0.5, "momentum_epochs": 4.0},
    "adam": {"optimizer": "adam", "ema": 0.9},
}
SHARED = {"schedule": "cosine", "warmup_epochs": 1.5, "fade": 0.5, "weight_decay": 1e-2}
MEASURED = {"seconds"}  # no two runs take the same time


def trial(index: int, kind: str, epochs: float = RUNGS[0], max_epochs: float = RUNGS[-1]) -> Claim:
    rates = {"learning_rate": 0.02 * 0.5**index, "dropout": 0.2 * index}
    one = job(index, epochs, **SHARED, **PRACTICES[kind], **rates)
    return replace(one, trial=replace(one.trial, max_epochs=max_epochs))


def promoted(outcome: Outcome, epochs: float, through_a_file: bool = True) -> Claim:
    """The next attempt of a trial that has ended, with a longer budget."""
    assert outcome.resume is not None
    claim, state = outcome.claim, outcome.resume()
    fence = replace(claim.fence, attempt=claim.fence.attempt + 1)
    state = load(pack(state)) if through_a_file else state
    return replace(claim, trial=claim.trial.promote(epochs), fence=fence, resume=state)


def climbed(kind: str, through_a_file: bool, **more: Any) -> dict[str, Outcome]:
    ended = outcomes([trial(index, kind) for index in range(3)], **more)
    for rung in RUNGS[1:]:
        assert {outcome.state for outcome in ended.values()} == {TrialState.COMPLETED}
        ended = outcomes(
            [promoted(outcome, rung, through_a_file) for outcome in ended.values()], **more
        )
    return ended


def weights_of(outcome: Outcome) -> dict[str, Any]:
    assert outcome.checkpoint is not None
    return load(outcome.checkpoint())


@pytest.mark.parametrize("through_a_file", [True, False])
@pytest.mark.parametrize("kind", PRACTICES)
def test_rung_by_rung_it_is_bit_for_bit_the_trial_that_was_trained_at_once(
    kind: str, through_a_file: bool
) -> None:
    more = {"backend": "eager", "width": 3, "dtype": torch.float32}
    whole, ended = (
        outcomes([trial(index, kind, RUNGS[-1]) for index in range(3)], **more),
        climbed(kind, through_a_file, **more),
    )
    for name, one in whole.items():
        other = ended[name]
        assert {n: v for n, v in other.curves.items() if n not in MEASURED} == {
            n: v for n, v in one.curves.items() if n not in MEASURED
        }
        assert (other.value, other.best_epoch, other.metrics, other.epochs) == (
            one.value,
            one.best_epoch,
            one.metrics,
            one.epochs,
        )
        mine, theirs = weights_of(other), weights_of(one)
        assert all(torch.equal(mine["model"][n], tensor) for n, tensor in theirs["model"].items())
        last, alone = other.resume, one.resume
        assert last is not None and alone is not None
        for part, tensor in alone()["row"].items():
            assert torch.equal(last()["row"][part], tensor), part


def test_the_learning_rate_falls_over_the_longest_budget_not_over_the_rung() -> None:
    (at_once,) = outcomes([trial(0, "sgd", 2.0, 20.0)]).values()
    (alone,) = outcomes([trial(0, "sgd", 2.0, 0.0)]).values()
    assert at_once.curves["learning_rate"][-1] == pytest.approx(0.02, rel=0.05)
    assert alone.curves["learning_rate"][-1] == pytest.approx(0.0, abs=0.001)


def test_an_attempt_that_was_lost_after_its_last_state_ends_as_it_would_have() -> None:
    (first,) = outcomes([trial(1, "adam")]).values()
    assert first.resume is not None
    again = replace(first.claim, fence=replace(first.fence, attempt=2), resume=first.resume())
    second = outcomes([again, trial(2, "adam")], width=2)["coarse-0001"]
    assert (second.state, second.value, second.epochs, second.curves) == (
        first.state,
        first.value,
        first.epochs,
        first.curves,
    )


def test_a_state_beyond_the_budget_is_told_and_the_trial_starts_anew() -> None:
    said: list[str] = []
    (first,) = outcomes([trial(0, "sgd", 2.0)]).values()
    assert first.resume is not None
    found = outcomes([replace(trial(0, "sgd"), resume=first.resume())], log=said.append)
    assert "it has 2 epochs, more than its budget of 1" in said[0]
    assert found["coarse-0000"].epochs == 1 and found["coarse-0000"].curves["epoch"] == [1.0]


def test_promoted_trials_of_one_rung_see_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    first = outcomes([trial(index, "sgd") for index in range(3)], width=3)
    shared: list[bool] = []
    plan = TrialArray._plan

    def noted(array: TrialArray, n_steps: int) -> Any:
        found = plan(array, n_steps)
        shared.append(found.shared)
        return found

    monkeypatch.setattr(TrialArray, "_plan", noted)
    outcomes([promoted(outcome, 2.0) for outcome in first.values()], width=3)
    assert shared and all(shared)


def test_arrays_are_made_of_trials_that_stand_at_the_same_epoch() -> None:
    """This concerns several arrays.

    Each array then reads its batches once for all of its trials.
    """
    first = list(outcomes([trial(index, "sgd", 2.0) for index in range(2)]).values())
    jobs = [
        promoted(first[0], 4.0),
        trial(2, "sgd", 4.0),
        promoted(first[1], 4.0),
        trial(3, "sgd", 4.0),
    ]
    together: list[set[str]] = []
    for boundary in boundaries(jobs, width=2):
        group = {view.trial.id for view in boundary.running if view.epoch not in (0.0, 2.0)}
        together += [group] if group and group not in together else []
    assert {"coarse-0000", "coarse-0001"} in together and {"coarse-0002", "coarse-0003"} in together


def test_snapshots_are_spread_over_the_longest_budget() -> None:
    stages = {"coarse": Stage(name="coarse", trials=3, epochs=20.0, snapshots=4)}
    (rung,) = outcomes([trial(0, "sgd", 2.0)], stages=stages).values()
    assert rung.snapshots == ()
    (seventh,) = outcomes([promoted(rung, 7.0)], stages=stages).values()
    (last,) = outcomes([promoted(seventh, 20.0)], stages=stages).values()
    assert [snapshot.epoch for snapshot in last.snapshots] == [5.0, 10.0, 15.0, 20.0]


def test_patience_stops_a_promoted_trial_where_it_stops_one_without_rungs() -> None:
    stages = {"coarse": Stage(name="coarse", trials=3, epochs=20.0, patience=2)}
    idle = trial(0, "sgd", 2.0)
    still = {**idle.trial.hyperparameters, "learning_rate": 0.0}
    idle = replace(idle, trial=replace(idle.trial, hyperparameters=still))
    (rung,) = outcomes([idle], stages=stages).values()
    whole = outcomes([replace(idle, trial=replace(idle.trial, epochs=20.0))], stages=stages)[
        "coarse-0000"
    ]
    (ended,) = outcomes([promoted(rung, 3.0)], stages=stages).values()
    assert (whole.state, whole.epochs) == (ended.state, ended.epochs) == (TrialState.STOPPED, 3.0)
    assert ended.resume is None  # never promoted


def test_what_exploded_leaves_no_state() -> None:
    one = trial(0, "sgd")
    wild = {**one.trial.hyperparameters, "learning_rate": 1e9}
    (ended,) = outcomes([replace(one, trial=replace(one.trial, hyperparameters=wild))]).values()
    assert ended.state is TrialState.EXPLODED and ended.resume is None


def test_the_best_epoch_takes_no_second_place_in_a_state_that_ends_with_it() -> None:
    """Most young trials are best at their last epoch; their states would be twice as large."""
    (ended,) = outcomes([trial(0, "adam")]).values()
    assert ended.resume is not None and ended.best_epoch == 1.0
    content = ended.resume()
    assert content["best"] is content["row"]
    small = sum(tensor.nbytes for tensor in content["row"].values())
    assert len(pack(content)) < 1.5 * small + 10_000


def test_weights_hold_the_optimizer_s_state_once_a_trial_has_its_full_length() -> None:
    (rung,) = outcomes([trial(0, "adam")]).values()
    (full,) = outcomes([trial(0, "adam", 2.0, 2.0)]).values()
    assert weights_of(rung)["optimizer"]["state"] == {}
    assert set(weights_of(full)["optimizer"]["state"]) == {"exp_avg", "exp_avg_sq"}
    assert weights_of(rung)["model"].keys() == weights_of(full)["model"].keys()
