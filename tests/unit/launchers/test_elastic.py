"""How many jobs a launch submits."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from master.launchers.cluster import Bounds, Demand, count_new


def demand(waiting: int, running: int = 0, busy: str = "", idle: str = "") -> Demand:
    return Demand(waiting, running, frozenset(busy.split()), frozenset(idle.split()))


def test_many_trials_get_the_most() -> None:
    assert count_new(demand(200), [], Bounds(0, 4)) == 4


def test_few_trials_get_a_job_each() -> None:
    assert count_new(demand(3), [], Bounds(0, 8)) == 3


def test_no_trial_gets_no_job() -> None:
    assert count_new(demand(0), [], Bounds(2, 8)) == 0


def test_jobs_that_are_queued_or_start_are_counted_on() -> None:
    assert count_new(demand(3), ["1_1", "1_2"], Bounds(0, 8)) == 1
    assert count_new(demand(2), ["1_1", "1_2"], Bounds(0, 8)) == 0


def test_an_idle_worker_is_counted_on_and_a_busy_one_is_not() -> None:
    assert count_new(demand(1, idle="1_1"), ["1_1"], Bounds(0, 8)) == 0
    assert count_new(demand(1, 5, busy="1_1"), ["1_1"], Bounds(0, 8)) == 1


def test_the_most_is_never_exceeded() -> None:
    assert count_new(demand(100, 9, busy="1_1 1_2"), ["1_1", "1_2"], Bounds(0, 3)) == 1
    assert count_new(demand(100, 9), ["1_1", "1_2", "1_3"], Bounds(0, 2)) == 0


def test_the_least_are_kept_while_trials_run() -> None:
    assert count_new(demand(0, 5, busy="1_1"), ["1_1"], Bounds(3, 8)) == 2
    assert count_new(demand(0, 5, busy="1_1"), ["1_1"], Bounds(0, 8)) == 0


def test_a_number_of_workers_is_the_most() -> None:
    assert Bounds.parse("8", "slurm") == Bounds(0, 8)
    assert Bounds.parse("2:8", "slurm") == Bounds(2, 8)


@pytest.mark.parametrize("text", ["auto", "", "0", "8:2", "2:", "-1", "1:2:3", "0:0", "٣"])
def test_what_is_no_number_of_jobs_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--workers"):
        Bounds.parse(text, "slurm")
