"""Trials' standings, by their current budget, whatever old news says.

The tests also cover what a later stage may know of them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from common.folder.record import Record
from common.search.constraint import Constraint
from common.search.space import Space
from common.search.stage import Stage
from common.search.trial import Result, Trial, TrialState, trial_id
from master.stages.promotions import Decision
from master.stages.standings import Standings, make_seen, trial_of
from master.strategy.freezing import rank_seen
from master.strategy.promotion import choose
from tests.unit.master.made import ID, record, searching

SPACE = Space.parse({"x": {"uniform": [0.0, 1.0]}})
STAGE = Stage(name="coarse", trials=3, epochs=1.0, rungs=(1.0, 3.0, 9.0), keep=(3, 2, 1))
COMPLETED, EXPLODED, STOPPED = TrialState.COMPLETED, TrialState.EXPLODED, TrialState.STOPPED
KILLED, FAILED = TrialState.KILLED, TrialState.FAILED
TO_3, TO_9 = (
    Decision("coarse", 3.0, ("coarse-0001", "coarse-0002"), True, 1),
    Decision("coarse", 9.0, ("coarse-0001",), True, 1),
)


def trial(index: int) -> Trial:
    return Trial(trial_id("coarse", index), "coarse", index, index, 1.0, {"x": 0.5}, "{}", 9.0)


@pytest.fixture
def standings() -> Standings:
    return begun()


def begun(mode: str = "max") -> Standings:
    found = Standings(searching(SPACE, STAGE, mode=mode))
    for index in range(3):
        found.add(trial(index))
    return found


def candidates(standings: Standings, epochs: float) -> dict[str, float]:
    return {one.trial: one.goodness for one in standings.candidates(epochs)}


def test_a_promoted_trial_has_a_longer_budget_and_waits_again(standings: Standings) -> None:
    standings.note("coarse-0001", Result(COMPLETED, value=0.5))
    assert [(t.id, t.epochs, t.passed, t.horizon) for t in standings.promote(TO_3)] == [
        ("coarse-0001", 3.0, (1.0,), 9.0),
        ("coarse-0002", 3.0, (1.0,), 9.0),
    ]
    assert {t.id for t in standings.find_unfinished()} == {
        "coarse-0000",
        "coarse-0001",
        "coarse-0002",
    }
    assert (
        standings.n_unfinished(1.0),
        standings.n_unfinished(3.0),
        candidates(standings, 1.0),
    ) == (1, 2, {})
    assert standings.promote(TO_3) == [], "nobody goes on twice"
    assert standings.promote(Decision("coarse", 3.0, ("coarse-0009",))) == [], (
        "nor who is not there"
    )


def test_the_costliest_go_first_and_what_nobody_has_timed_before_them() -> None:
    found = Standings(searching(SPACE, STAGE))
    costs = {"slow": 3.0, "quick": 0.5, "middle": 1.0}  # seconds of an epoch of one trial
    trials = [
        replace(trial(index), group=group)
        for index, group in enumerate([*costs, "unknown", *costs])
    ]
    for one in trials:
        found.add(one)
    for index, (group, seconds) in enumerate(costs.items()):
        found.note(
            f"coarse-{index:04d}",
            Result(COMPLETED, value=0.5, epochs=2.0, seconds=8 * seconds, array_width=4),
        )
        assert trials[index].group == group
    assert [t.index for t in found.costliest_first(trials)] == [3, 0, 4, 2, 6, 1, 5]
    assert [
        t.index
        for t in found.promote(
            Decision("coarse", 3.0, ("coarse-0001", "coarse-0002", "coarse-0000"))
        )
    ] == [0, 2, 1]


def test_the_end_of_an_earlier_rung_says_nothing_of_the_budget_now(standings: Standings) -> None:
    standings.promote(TO_3)
    for state in (COMPLETED, EXPLODED, STOPPED):
        standings.note("coarse-0001", Result(state, value=0.9, rung=0))
    assert standings.n_unfinished(3.0) == 2
    standings.note("coarse-0001", Result(COMPLETED, value=0.7, rung=1))
    assert candidates(standings, 3.0) == {"coarse-0001": 0.7}


@pytest.mark.parametrize("state", [KILLED, FAILED])
def test_a_verdict_counts_whatever_the_rung(standings: Standings, state: TrialState) -> None:
    """A master writes it, and names no rung."""
    standings.promote(TO_3)
    standings.note("coarse-0001", Result(state, "by hand", rung=0))
    assert standings.n_unfinished(3.0) == 1 and candidates(standings, 3.0) == {}
    assert standings.states(["coarse-0001", "coarse-0002"]) == {state.value: 1}


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_who_completed_without_a_finite_metric_is_no_candidate(
    standings: Standings, value: float | None
) -> None:
    standings.note("coarse-0000", Result(COMPLETED, value=value))
    assert (
        candidates(standings, 1.0) == {}
        and standings.n_unfinished(1.0) == 2
        and not standings.has_value
    )


def test_where_less_is_better_the_sign_says_so() -> None:
    standings = begun("min")
    standings.note("coarse-0000", Result(COMPLETED, value=0.25))
    assert candidates(standings, 1.0) == {"coarse-0000": -0.25}


def test_the_ends_of_rungs_whose_decisions_are_heard_of_later_wait_for_them(
    standings: Standings,
) -> None:
    for rung, value in enumerate((0.1, 0.3, 0.9)):
        standings.note("coarse-0001", Result(COMPLETED, value=value, rung=rung))
    standings.promote(TO_3)
    assert candidates(standings, 3.0) == {"coarse-0001": 0.3} and standings.n_unfinished(3.0) == 1
    standings.promote(TO_9)
    assert candidates(standings, 9.0) == {"coarse-0001": 0.9}


WHY = "violates latency_ms < 20 (latency_ms = 31)"


def test_who_violates_a_constraint_is_promoted_after_all_that_satisfy_it(
    standings: Standings,
) -> None:
    standings.note("coarse-0000", Result(COMPLETED, WHY, value=0.9))
    standings.note("coarse-0001", Result(COMPLETED, value=0.2))
    standings.note("coarse-0002", Result(COMPLETED, WHY, value=0.8))
    names = [trial_id("coarse", n) for n in (1, 0, 2)]
    assert choose(standings.candidates(1.0), 3) == names == standings.find_reached(1.0)
    known = {one.trial: one.measured for one in standings.read_seen()}
    assert known["coarse-0000"] == ((1.0, -math.inf),) and known["coarse-0001"] == ((1.0, 0.2),)
    assert [one.trial for one in rank_seen(standings.read_seen())] == ["coarse-0001"]


def test_who_satisfies_a_constraint_with_a_longer_budget_is_a_parent_again(
    standings: Standings,
) -> None:
    standings.note("coarse-0001", Result(COMPLETED, WHY, value=0.9))
    standings.note("coarse-0002", Result(COMPLETED, WHY, value=0.8))
    standings.promote(TO_3)
    standings.note("coarse-0001", Result(COMPLETED, value=0.95, rung=1))
    standings.note("coarse-0002", Result(COMPLETED, WHY, value=0.99, rung=1))
    known = {one.trial: one.measured for one in standings.read_seen()}
    assert known["coarse-0001"] == ((1.0, 0.9), (3.0, 0.95))
    assert known["coarse-0002"] == ((1.0, -math.inf), (3.0, -math.inf))


def test_a_later_stage_knows_at_which_of_the_rungs_it_may_know_a_trial_violates() -> None:
    constraints = [Constraint.parse("latency_ms < 20")]

    def known(own: Record, **unseen: float) -> list[float]:
        (found,) = make_seen([own], {"coarse": 0}, 1.0, unseen, constraints)
        return [goodness for _, goodness in found.measured]

    own = at(1.0, budget=3.0, reason=WHY)
    slow = own.model_copy(update={"curves": {**own.curves, "latency_ms": [10.0, 10.0, 31.0]}})
    assert known(slow) == [-math.inf, -math.inf]
    # The longer budget runs beside the stage: only what was known at the first rung counts.
    assert known(slow, **{"coarse-0001": 3.0}) == [pytest.approx(0.1)]
    fast = own.model_copy(
        update={"reason": None, "curves": {**own.curves, "latency_ms": [31.0, 31.0, 10.0]}}
    )
    assert known(fast) == [pytest.approx(0.1), pytest.approx(0.3)]
    assert known(fast, **{"coarse-0001": 3.0}) == [-math.inf]
    assert known(own, **{"coarse-0001": 3.0}) == [pytest.approx(0.1)]  # in no curve


@pytest.mark.parametrize(
    ("curve", "losses", "mode", "expected"),
    [
        ([0.1, 0.9, 0.5], [3.0, 2.0, 1.0], "max", 2.0),
        ([0.9, 0.9, 0.5], [3.0, 2.0, 1.0], "max", 2.0),  # of equals, the lower loss
        ([0.9, 0.5, 0.5], [3.0, 2.0, 1.0], "min", 3.0),
        ([0.9, None, 0.8], [3.0, 2.0, 1.0], "max", 1.0),
    ],
)
def test_metrics_are_those_of_the_best_epoch_within_a_budget(
    curve: list[Any], losses: list[float], mode: str, expected: float
) -> None:
    own = at(budget=3.0, curve=curve, mode=mode)
    own = own.model_copy(update={"curves": {**own.curves, "val_loss": losses}})
    assert own.metrics_at(3.0)["epoch"] == expected
    assert own.metrics_at(0.5) == {}


def at(
    *passed: float,
    budget: float,
    state: TrialState = COMPLETED,
    curve: list[float] | None = None,
    **more: object,
) -> Record:
    """A record of trial 1 with the metric after 1, 2, ... epochs."""
    values = curve if curve is not None else [0.1 * (n + 1) for n in range(int(budget))]
    curves = {"epoch": [float(n + 1) for n in range(len(values))], "val_acc": values}
    last = values[-1] if values else None
    return record(
        1,
        {"x": 0.5},
        passed=passed,
        budget_epochs=budget,
        state=state,
        curves=curves,
        value=last,
        **more,
    )


def test_a_record_becomes_its_trial_again() -> None:
    own = at(1.0, budget=3.0, max_epochs=9.0, drawn="child", parents=("coarse-0000",))
    again = trial_of(own)
    assert (again.id, again.epochs, again.passed, again.horizon, again.rung) == (
        "coarse-0001",
        3.0,
        (1.0,),
        9.0,
        1,
    )
    assert (again.drawn, again.parents, again.hyperparameters) == (
        "child",
        ("coarse-0000",),
        {"x": 0.5},
    )
    assert Record.of(ID, again, 1, own.result(), curves=own.curves) == own


def seen(own: Record, sign: float = 1.0, **unseen: float) -> list[tuple[float, float]]:
    named = {name.replace("_", "-"): epochs for name, epochs in unseen.items()}
    (found,) = make_seen([own], {"coarse": 0}, sign, named)
    assert (found.trial, found.stage, found.index, found.hyperparameters) == (
        "coarse-0001",
        0,
        1,
        {"x": 0.5},
    )
    return [(epochs, pytest.approx(goodness)) for epochs, goodness in found.measured]


def test_a_later_stage_knows_the_metric_at_each_rung() -> None:
    assert seen(at(1.0, 3.0, budget=9.0)) == [(1.0, 0.1), (3.0, 0.3), (9.0, 0.9)]
    assert seen(at(1.0, budget=3.0), sign=-1.0) == [(1.0, -0.1), (3.0, -0.3)]


def test_the_metric_at_a_rung_is_the_best_until_then() -> None:
    assert seen(at(1.0, 3.0, budget=9.0, curve=[0.5, 0.7, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6])) == [
        (1.0, 0.5),
        (3.0, 0.7),
        (9.0, 0.7),
    ]


def test_what_runs_beside_the_stage_is_left_out_ended_or_not() -> None:
    assert (
        seen(at(1.0, 3.0, budget=9.0), coarse_0001=9.0)
        == seen(at(1.0, budget=3.0))
        == [(1.0, 0.1), (3.0, 0.3)]
    )
    exploded = at(1.0, 3.0, budget=9.0, state=EXPLODED, curve=[0.1, 0.2, 0.3, 0.2])
    assert seen(exploded, coarse_0001=9.0) == [(1.0, 0.1), (3.0, 0.3)]
    assert seen(at(1.0, budget=3.0), coarse_0002=1.0) == [(1.0, 0.1), (3.0, 0.3)], "another trial's"
    assert seen(at(1.0, budget=3.0), coarse_0001=1.0) == []


def test_an_explosion_is_the_worst_at_its_budget_and_leaves_what_was_before() -> None:
    assert seen(at(1.0, budget=3.0, state=EXPLODED, curve=[0.1, 0.2])) == [
        (1.0, 0.1),
        (3.0, -math.inf),
    ]
    assert seen(at(budget=1.0, state=EXPLODED, curve=[])) == [(1.0, -math.inf)]


@pytest.mark.parametrize("state", [FAILED, KILLED, STOPPED])
def test_who_did_not_end_well_says_nothing_at_that_budget(state: TrialState) -> None:
    """STOPPED at chance: nobody knows what it would have reached."""
    assert seen(at(1.0, budget=3.0, state=state, curve=[0.1, 0.2])) == [(1.0, 0.1)]
    assert seen(at(budget=1.0, state=state)) == []


def test_who_stopped_since_nothing_got_better_counts_as_if_trained_to_its_budget() -> None:
    own = at(
        1.0, budget=9.0, state=STOPPED, curve=[0.1, 0.8, 0.7], reason="no progress for 2 epochs"
    )
    assert seen(own) == [(1.0, 0.1), (9.0, 0.8)]


def test_a_metric_that_was_never_finite_is_not_measured() -> None:
    assert seen(at(1.0, budget=3.0, curve=[math.nan, math.nan, 0.3])) == [(3.0, 0.3)]
