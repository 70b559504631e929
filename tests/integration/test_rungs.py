"""A search in stages with rungs gives the same result.

It does not depend on who trains it, how fast, and what is killed in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.climbing import KILLED, LAUNCH_AGAIN, STAGES, Climb
from tests.integration.commands import Place, place, wait_for

faults = pytest.mark.faults
DEATHS = ("coarse 1", "coarse 3", "middle 2", "middle 9", "finer 5")
OVERLAP = {"strategy": "overlap = true"}
REPEATED = {"budget": "epochs = 180\nrepeats = 2"}


@pytest.fixture
def climb(here: Place) -> Climb:
    return Climb(here)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Climb]:
    """The search as one worker has trained it, without a fault."""
    yield from _by_one_worker(tmp_path_factory)


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Climb]:
    """The same where the last rung of a stage runs beside the next stage."""
    yield from _by_one_worker(tmp_path_factory, **OVERLAP)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Climb]:
    """The same with each configuration under two seeds."""
    yield from _by_one_worker(tmp_path_factory, **REPEATED)


def _by_one_worker(tmp_path_factory: pytest.TempPathFactory, **options: str) -> Iterator[Climb]:
    with place(tmp_path_factory.mktemp("alone")) as here:
        climb = Climb(here)
        climb.write(**options)
        climb.launch("--stage", "all", "--workers", "1")
        yield climb


def assert_same(climb: Climb, reference: Climb) -> None:
    climb.assert_all_has_ended()
    found, expected = climb.outcome(), reference.outcome()
    for what in expected:
        assert found[what] == expected[what], what


def test_what_the_search_is_made_of(alone: Climb) -> None:
    found = alone.outcome()
    n_trials = Counter(trial.rpartition("-")[0] for trial in found["trials"])
    assert n_trials == {"coarse": 13, "middle": 9, "fine": 4, "finer": 6, "sure": 4}
    n_promoted = {
        stage: {epochs: len(trials) for epochs, trials in own.items()}
        for stage, own in found["promotions"].items()
    }
    assert n_promoted == {
        "coarse": {3.0: 4},
        "middle": {3.0: 3, 9.0: 1},
        "fine": {9.0: 1},
        "finer": {9.0: 2},
    }
    states = Counter(known["state"] for known in found["trials"].values())
    assert states["exploded"] > 0 and states["completed"] > 25
    assert {known["drawn"] for known in found["trials"].values()} > {"sobol", "child"}
    alone.assert_each_rung_is_recorded_once()
    alone.assert_all_has_ended()


def test_who_goes_on_is_the_best_of_those_that_stood_there(alone: Climb) -> None:
    records = alone.records()
    at_one = {
        trial: own[0]["value"]
        for trial, own in records.items()
        if trial.startswith("coarse") and own[0]["state"] == "completed"
    }
    best = sorted(at_one, key=lambda trial: -at_one[trial])[:4]
    assert alone.promotions()["coarse"][3.0] == sorted(best)
    names = [row[0] for row in alone.outcome()["ranking"]]
    full = {
        trial
        for trial, own in records.items()
        if own[-1]["budget_epochs"] == 9.0 and own[-1]["state"] == "completed"
    }
    assert set(names[: len(full)]) == full  # the longest budget first, then the value
    values = [records[trial][-1]["value"] for trial in names[: len(full)]]
    assert values == sorted(values, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [2, pytest.param(4, marks=faults)])
def test_the_number_of_workers_changes_nothing(alone: Climb, climb: Climb, n_workers: int) -> None:
    climb.write()
    climb.launch("--stage", "all", "--workers", str(n_workers))
    assert_same(climb, alone)
    climb.assert_each_rung_is_recorded_once()


@faults
def test_one_stage_after_the_other_comes_to_the_same(alone: Climb, climb: Climb) -> None:
    climb.write()
    for stage in (*STAGES, "sure"):
        said = climb.launch("--stage", stage, "--workers", "2")
        assert ", 0 new" not in said
    assert_same(climb, alone)
    climb.assert_each_rung_is_recorded_once()
    before = climb.records()
    assert ", 0 new" in climb.launch("--stage", "fine", "--workers", "2")
    assert climb.records() == before  # a stage that has ended is looked at, and nothing else


@faults
def test_workers_killed_in_the_middle_of_rungs(alone: Climb, climb: Climb) -> None:
    climb.write()
    climb.launch("--stage", "all", "--workers", "2", **climb.deaths(*DEATHS))
    assert {mark.name for mark in climb.marks.iterdir()} == set(DEATHS)
    assert_same(climb, alone)
    climb.assert_each_rung_is_recorded_once()


@faults
def test_masters_killed_between_a_decision_and_the_word_to_redis(
    alone: Climb, climb: Climb
) -> None:
    climb.write()
    ends = climb.insist("--stage", "all", "--workers", "2", **climb.harmed("die", 3))
    assert ends == {KILLED: 3}
    assert_same(climb, alone)
    climb.assert_each_rung_is_recorded_once()


@faults
def test_redis_emptied_in_the_middle_of_a_promotion(alone: Climb, climb: Climb) -> None:
    climb.write()
    ends = climb.insist("--stage", "all", "--workers", "2", **climb.harmed("empty", 2))
    assert len(list(climb.marks.iterdir())) == 2 and ends[LAUNCH_AGAIN]
    assert_same(climb, alone)
    for (
        trial,
        records,
    ) in climb.records().items():  # one may have been trained twice, but to the same end
        budgets = [record["budget_epochs"] for record in records]
        assert budgets == sorted(budgets) and set(budgets) == {
            *records[-1]["passed"],
            records[-1]["budget_epochs"],
        }, trial


@faults
def test_two_masters_on_one_search(alone: Climb, here: Place, open_server: str) -> None:
    here.redis_url = open_server
    climb = Climb(here)
    climb.write()
    launch = ("master", "launch", "--stage", "all", "--workers", "1")
    masters = [here.start(*launch, log="one.log"), here.start(*launch, log="other.log")]
    wait_for(lambda: all(master.poll() is not None for master in masters), "both masters to end")
    assert [master.returncode for master in masters] == [0, 0], here.output(
        "one.log"
    ) + here.output("other.log")
    assert_same(climb, alone)
    climb.assert_each_rung_is_recorded_once()


@faults
@pytest.mark.parametrize("faulty", [False, True])
def test_the_last_rung_beside_the_next_stage(
    overlapping: Climb, alone: Climb, climb: Climb, faulty: bool
) -> None:
    climb.write(**OVERLAP)
    if faulty:
        environment = {**climb.harmed("die", 3), **climb.deaths(*DEATHS)}
        assert climb.insist("--stage", "all", "--workers", "2", **environment) == {KILLED: 3}
    else:
        climb.launch("--stage", "all", "--workers", "2")
    assert_same(climb, overlapping)
    climb.assert_each_rung_is_recorded_once()
    assert overlapping.outcome()["frozen"] != alone.outcome()["frozen"]  # it knows less


@faults
def test_configurations_under_two_seeds_by_two_workers_that_are_killed(
    repeated: Climb, climb: Climb
) -> None:
    climb.write(**REPEATED)
    environment = {**climb.harmed("die", 3), **climb.deaths(*DEATHS)}
    assert climb.insist("--stage", "all", "--workers", "2", **environment) == {KILLED: 3}
    assert_same(climb, repeated)
    climb.assert_each_rung_is_recorded_once()
    n_promoted = {
        stage: {epochs: len(trials) for epochs, trials in own.items()}
        for stage, own in repeated.promotions().items()
    }
    assert n_promoted == {
        "coarse": {3.0: 8},
        "middle": {3.0: 6, 9.0: 2},
        "fine": {9.0: 2},
        "finer": {9.0: 4},
    }


@pytest.mark.slow
def test_decisions_that_are_lost_after_their_stage_are_made_again(climb: Climb) -> None:
    climb.write()
    for stage in ("coarse", "middle"):
        climb.launch("--stage", stage, "--workers", "2")
    before, records = climb.promotions(), climb.records()
    for decision in (climb.here.root / "climb" / "coarse" / "promotions").iterdir():
        decision.unlink()
    climb.launch("--stage", "middle", "--workers", "2")
    assert climb.promotions() == before and climb.records() == records


@pytest.mark.slow
def test_more_budget_goes_on_where_the_search_ended(climb: Climb) -> None:
    climb.write()
    climb.launch("--stage", "all", "--workers", "2")
    before, records = climb.outcome(), climb.records()
    climb.launch("--stage", "all", "--workers", "2", "--more", "45")
    after = climb.outcome()
    new = after["trials"].keys() - before["trials"].keys()
    assert {trial.rpartition("-")[0] for trial in new} == {"finer2"}
    spent = sum(_epochs(own) for own in climb.records().values()) - sum(
        _epochs(own) for own in records.values()
    )
    assert 0 < spent <= 45
    assert all(
        own[: len(records[trial])] == records[trial]
        for trial, own in climb.records().items()
        if trial in records
    )
    assert all(after["frozen"][stage] == known for stage, known in before["frozen"].items())
    assert all(after["promotions"][stage] == known for stage, known in before["promotions"].items())
    climb.assert_each_rung_is_recorded_once()
    climb.assert_all_has_ended()
    assert ", 0 new" in climb.launch("--stage", "all", "--workers", "2")


def _epochs(records: list[dict[str, Any]]) -> float:
    """What the attempts of one trial have trained, each going on where the one before stood."""
    return float(records[-1]["epochs"])


@faults
@pytest.mark.parametrize("harm", ["", "die"])
def test_asynchronous_promotions_lose_nothing_and_count_nothing_twice(
    climb: Climb, harm: str
) -> None:
    climb.write('schedule = "async"')
    environment = climb.deaths("coarse 1", "coarse 3", "coarse 5", "coarse 9")
    if harm:
        ends = climb.insist(
            "--stage", "all", "--workers", "2", **{**environment, **climb.harmed(harm, 3)}
        )
        assert ends == {KILLED: 3}
    else:
        climb.launch("--stage", "all", "--workers", "2", **environment)
    climb.assert_all_has_ended()
    climb.assert_each_rung_is_recorded_once()
    found = climb.outcome()
    stage = found["promotions"]["coarse"]
    assert all(len(trials) == len(set(trials)) for trials in stage.values())
    for epochs, trials in stage.items():
        reached = {
            trial
            for trial, known in found["trials"].items()
            if epochs in (*known["passed"], known["budget_epochs"])
        }
        assert reached - {trial for trial in reached if trial.startswith("sure")} == set(trials)
    indices = sorted(
        int(trial.rpartition("-")[2]) for trial in found["trials"] if trial.startswith("coarse")
    )
    assert indices == list(range(len(indices))) and len(found["ranking"]) == len(found["trials"])
