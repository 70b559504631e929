from __future__ import annotations

import pytest

from common.search.plan import StagePlan, plan
from master.strategy.clock import budget_within, makespan, waits_for

TWO = [StagePlan((1.0, 2.0), (4, 2)), StagePlan((2.0, 7.0), (3, 1))]


def test_one_slot_works_all_the_time() -> None:
    span = makespan(TWO, 1)
    assert span.time == span.work == sum(own.cost() for own in TWO) and span.compute_use(1) == 1.0


def test_rungs_wait_for_each_other() -> None:
    assert makespan(TWO, 100).time == 1 + 1 + 2 + 5
    assert makespan(TWO, 2).time == 2 + 1 + 4 + 5


def test_a_task_that_cannot_resume_pays_again() -> None:
    assert makespan(TWO, 100, resumes=False).time == 1 + 2 + 2 + 7


def test_with_overlap_the_last_rung_runs_beside_the_next_stage() -> None:
    assert waits_for(TWO, overlap=False)[1, 0] == {(0, 0), (0, 1)} and waits_for(TWO, overlap=True)[
        1, 0
    ] == {(0, 0)}
    assert waits_for(TWO, overlap=True)[1, 1] == {
        (1, 0),
        (0, 1),
    }  # who reaches 2 epochs late may go on to 7 as well
    assert makespan(TWO, 100, overlap=True).time == 1 + 2 + 5


def test_a_stage_of_one_rung_overlaps_with_nothing() -> None:
    assert waits_for([StagePlan((1.0,), (4,)), StagePlan((2.0,), (2,))], overlap=True)[1, 0] == {
        (0, 0)
    }


@pytest.mark.parametrize(("slots", "time"), [(8, 150), (32, 100)])
def test_many_slots_are_used_by_overlapping_stages(slots: int, time: int) -> None:
    epochs = budget_within(time, 20, slots, overlap=True)
    span = makespan(plan(epochs, 20, slots), slots, overlap=True)
    assert span.time <= time and span.compute_use(slots, time) >= 0.88
    assert span.compute_use(slots, time) > makespan(
        plan(budget_within(time, 20, slots), 20, slots), slots
    ).compute_use(slots, time)


def test_more_time_pays_for_more_epochs() -> None:
    budgets = [budget_within(time, 20, 4, overlap=True) for time in (60, 100, 150, 300)]
    assert budgets == sorted(budgets) and budgets[0] > 150
