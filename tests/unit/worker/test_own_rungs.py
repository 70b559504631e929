"""Loops of the user's own that are called again with a longer budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from common.search.trial import Claim, TrialState
from tests.unit.worker.test_own_loop import job, loaded, outcome, same, search
from worker.own import OwnTrial
from worker.own.saved import pack
from worker.training.types import Outcome

RUNGS = (1.0, 2.0, 7.0, 20.0)


def descending(trial: OwnTrial) -> None:
    """Noisy descent with a cosine schedule and momentum; all that it needs is in its state."""
    rng = np.random.default_rng(trial.seed)
    weights, speed = torch.ones(3), torch.zeros(3)
    if trial.resume is not None:
        weights, speed = trial.resume["weights"], trial.resume["speed"]
        rng.bit_generator.state = {
            **rng.bit_generator.state,
            "state": {k: int(v) for k, v in trial.resume["rng"].items()},
        }
    for epoch in range(round(trial.epoch) + 1, round(trial.epochs) + 1):
        rate = 0.1 * (1 + np.cos(np.pi * epoch / trial.max_epochs)) / 2
        speed.mul_(0.9).add_(weights + 0.1 * torch.from_numpy(rng.normal(size=3)).float())
        weights.sub_(float(rate) * speed)
        numbers = {
            name: str(number) for name, number in rng.bit_generator.state["state"].items()
        }  # too long for a file's integers
        state = {"weights": weights, "speed": speed, "rng": numbers}
        trial.report(epoch, train_loss=1.0, val_acc=1 - float(weights.abs().sum()), state=state)


def stateless(trial: OwnTrial) -> None:
    for epoch in range(round(trial.epoch) + 1, round(trial.epochs) + 1):
        trial.report(epoch, train_loss=1.0, val_acc=epoch / 100)


def at(epochs: float, resume: dict[str, Any] | None = None) -> Claim:
    one = job(0, epochs, resume)
    return replace(one, trial=replace(one.trial, max_epochs=RUNGS[-1]))


def climbed(loop: Callable[[OwnTrial], None], through_a_file: bool, **more: Any) -> Outcome:
    ended = outcome(loop, at(RUNGS[0]), **more)
    for rung in RUNGS[1:]:
        state = ended.resume() if ended.resume is not None else None
        ended = outcome(
            loop,
            at(rung, loaded(pack(state)) if through_a_file and state is not None else state),
            **more,
        )
    return ended


@pytest.mark.parametrize("through_a_file", [True, False])
def test_rung_by_rung_it_is_bit_for_bit_the_trial_that_was_trained_at_once(
    through_a_file: bool,
) -> None:
    whole, ended = outcome(descending, at(RUNGS[-1])), climbed(descending, through_a_file)
    assert (ended.state, ended.epochs, ended.value, ended.best_epoch) == (
        whole.state,
        whole.epochs,
        whole.value,
        whole.best_epoch,
    )
    assert {n: v for n, v in ended.curves.items() if n != "seconds"} == {
        n: v for n, v in whole.curves.items() if n != "seconds"
    }
    assert (
        ended.resume is not None
        and whole.resume is not None
        and ended.checkpoint is not None
        and whole.checkpoint is not None
    )
    assert same(ended.resume()["loop"]["state"], whole.resume()["loop"]["state"])
    assert same(loaded(ended.checkpoint())["state"], loaded(whole.checkpoint())["state"])


def test_a_loop_without_a_state_starts_anew_and_that_is_said_once() -> None:
    said: list[str] = []
    first = outcome(stateless, at(2.0), log=said.append)
    assert first.resume is None
    assert (
        sum(
            "the loop reports no state, so a trial that is promoted starts anew" in line
            for line in said
        )
        == 1
    )
    again = outcome(stateless, at(7.0))
    assert (again.epochs, again.curves["epoch"]) == (7.0, [float(epoch) for epoch in range(1, 8)])


def test_a_loop_at_its_longest_budget_is_not_told_that_it_cannot_go_on() -> None:
    said: list[str] = []
    outcome(stateless, at(RUNGS[-1]), log=said.append)
    assert not any("promoted" in line for line in said)


def test_an_attempt_that_was_lost_after_its_last_state_is_not_called_again() -> None:
    first = outcome(descending, at(2.0))
    assert first.resume is not None

    def never(trial: OwnTrial) -> None:
        raise AssertionError("its budget is used up")

    second = outcome(never, at(2.0, first.resume()))
    assert (second.state, second.value, second.epochs, second.curves) == (
        TrialState.COMPLETED,
        first.value,
        2.0,
        first.curves,
    )


def test_patience_stops_a_loop_at_a_rung_where_it_would_stop_it_without_one() -> None:
    def idle(trial: OwnTrial) -> None:
        for epoch in range(round(trial.epoch) + 1, round(trial.epochs) + 1):
            trial.report(epoch, train_loss=1.0, val_acc=0.5, state={"epoch": epoch})

    patient = search(options="patience = 2")
    whole, rung = outcome(idle, at(20.0), found=patient), outcome(idle, at(3.0), found=patient)
    assert (whole.state, whole.epochs) == (rung.state, rung.epochs) == (TrialState.STOPPED, 3.0)
    assert rung.resume is None
