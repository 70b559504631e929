"""Device time: the slots of an array share it, and the sum is what the workers were held."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.folder.record import Record
from common.search.trial import Fence, Running, Trial, TrialState
from master.results.cost import (
    Held,
    cost_by_stage,
    describe_cost,
    device_seconds,
    held_by,
    held_now,
)


def held(trial: str, claimed: float, began: float, ended: float, **more: object) -> Held:
    return Held(trial, **{"worker": "w", **more}, claimed=claimed, began=began, ended=ended)  # type: ignore[arg-type]


def test_slots_share_the_time_of_their_array() -> None:
    found = device_seconds([held("a", 0, 2, 12), held("b", 0, 2, 7)])
    # 2 s of preparation and 5 s of training are shared; then a trains alone.
    assert found == {"a": pytest.approx(1 + 2.5 + 5), "b": pytest.approx(1 + 2.5)}


def test_who_waits_while_others_train_costs_nothing() -> None:
    found = device_seconds([held("a", 0, 0, 10), held("b", 0, 10, 20)])
    assert found == {"a": pytest.approx(10), "b": pytest.approx(10)}


def test_devices_and_attempts_add_up() -> None:
    found = device_seconds(
        [held("a", 0, 0, 10, devices=2), held("a", 50, 50, 55), held("b", 0, 0, 10, worker="v")]
    )
    assert found == {"a": pytest.approx(25), "b": pytest.approx(10)}


times = st.lists(st.integers(0, 40), min_size=3, max_size=3).map(sorted)


@given(st.lists(times, min_size=1, max_size=8))
def test_the_sum_is_what_the_worker_was_held(drawn: list[list[int]]) -> None:
    own = [held(f"t{n}", *map(float, three)) for n, three in enumerate(drawn)]
    moments = {second for one in drawn for second in range(one[0], one[2])}
    assert sum(device_seconds(own).values()) == pytest.approx(len(moments))


def record(**more: object) -> Record:
    return Record.model_validate(
        {"search_id": "s", "trial": "coarse-0001", "stage": "coarse", "index": 1, "seed": 1}
        | {"budget_epochs": 2.0, "hyperparameters": {}, "attempt": 1, "state": TrialState.COMPLETED}
        | more
    )


def test_a_record_says_when_its_devices_were_held() -> None:
    own = record(
        worker="w", device="cuda:0,cuda:1", seconds=4.0, claimed_at=10.0, began_at=12.0,
        trained_until=16.0, ended_at=17.0,
    )  # fmt: skip
    assert held_by(own) == Held("coarse-0001", "w", 10.0, 12.0, 17.0, 2)
    assert held_by(record(state=TrialState.KILLED)) is None, "it never trained"


def test_a_running_trial_costs_since_its_claim() -> None:
    trial = Trial("coarse-0001", "coarse", 1, 1, 2.0, {}, "{}")
    running = Running(trial, Fence(trial.id, 1, "t"), "w", 30.0, 0.0, None)
    assert device_seconds([held_now(running, 100.0)]) == {"coarse-0001": pytest.approx(30)}


def test_the_cost_of_stages_and_its_words() -> None:
    by_trial = {"coarse-0001": 30.0, "coarse-0002": 60.0, "fine-0000": 7200.0}
    assert cost_by_stage(by_trial) == {"coarse": 90.0, "fine": 7200.0}
    assert [describe_cost(s) for s in (0.25, 12.34, 90.0, 5040.0, 5e6)] == [
        "0.25 device-seconds", "12.3 device-seconds", "1.5 device-minutes", "1.4 device-hours",
        "1,389 device-hours",
    ]  # fmt: skip
