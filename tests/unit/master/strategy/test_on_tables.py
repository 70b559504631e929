"""The whole strategy on functions with a known optimum.

It finds the optimum, and its clock keeps its promises.
"""

from __future__ import annotations

from statistics import mean

import pytest

from benchmarks.search_tables import clocked, rivals, trials
from benchmarks.search_tables.suites import tasks_of
from benchmarks.search_tables.tables import Task
from common.search.plan import plan
from common.search.stage import Strategy
from master.strategy.clock import budget_within, makespan

BUDGET = 300


def regret(task: Task, value: float) -> float:
    assert task.best is not None
    return task.best - value


@pytest.mark.parametrize("suite", ["syn-12d", "syn-choices", "syn-beyond"])
def test_it_comes_far_nearer_to_the_optimum_than_random_search_at_equal_epochs(suite: str) -> None:
    tasks = tasks_of(suite, None, [], 20, None)
    own = [
        regret(task, task.outcome(trials.ours(task, BUDGET, n, Strategy()))[0])
        for n, task in enumerate(tasks)
    ]
    random = [
        regret(task, task.outcome(rivals.random_search(task, BUDGET, n))[0])
        for n, task in enumerate(tasks)
    ]
    assert mean(own) < 0.6 * mean(random)


def test_a_search_pays_what_its_plan_says() -> None:
    (task,) = tasks_of("syn-choices", None, ["0"], 20, None)
    for resumes in (True, False):
        plans = plan(BUDGET, 20, None, resumes)
        search = trials.staged(task, plans, 1, Strategy(resumes=resumes))
        assert search.spent == sum(own.cost(resumes) for own in plans) <= BUDGET


def test_a_range_that_ends_too_early_is_left() -> None:
    (task,) = tasks_of("syn-beyond", None, ["0"], 20, None)
    search = trials.staged(task, plan(1200, 20), 1, Strategy())
    assert float(search.chosen["h0"]) > 1.1  # the optimum lies at 1.3 of a range that ends at 1
    kept = trials.staged(task, plan(1200, 20), 1, Strategy(), borders=False)
    assert float(kept.chosen["h0"]) <= 1.0


@pytest.mark.parametrize("overlap", [True, False])
def test_promotions_that_are_certain_never_lengthen_the_search(overlap: bool) -> None:
    (task,) = tasks_of("syn-12d", None, ["0"], 20, None)
    plans = plan(budget_within(100, 20, 8, overlap), 20, 8)
    search = trials.staged(task, plans, 1, Strategy(overlap=overlap))
    span, barrier = clocked.clock(search, plans, 8, overlap), makespan(plans, 8, overlap)
    assert span.work == barrier.work and span.time <= barrier.time


def test_an_asynchronous_search_is_always_busy_and_ends_in_time() -> None:
    (task,) = tasks_of("syn-12d", None, ["0"], 20, None)
    _, used = clocked.asynchronous(task, 8, 100, 1, Strategy())
    assert 0.9 < used <= 1.0
