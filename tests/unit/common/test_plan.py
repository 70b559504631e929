"""Turning a budget into stages: costs, rungs, names, and what is refused."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.search.plan import StagePlan, plan, plan_more, rungs_of, stage_names
from common.search.search_file import Search, parse_search
from common.search.trial import STAGE_PATTERN

HEAD = 'name = "s"\ntask = "mine.py:Mine"\n[space]\nx = { uniform = [0, 1] }\n'
TRAININGS = st.floats(3.0, 400.0)
MAX_EPOCHS = st.integers(1, 300)
SLOTS = st.none() | st.integers(1, 500)


def budget(text: str, more: str = "") -> Search:
    return parse_search(f"{HEAD}[budget]\n{text}\n{more}", "search.toml")


def refused(text: str, more: str = "") -> str:
    with pytest.raises(ConfigError) as error:
        budget(text, more)
    assert str(error.value).startswith("search.toml: ") and "\n" not in str(error.value)
    return str(error.value).removeprefix("search.toml: ")


def total(plans: list[StagePlan], resumes: bool = True) -> float:
    """Counted trial by trial: each pays the epochs that it is trained on each rung."""
    paid = 0.0
    for own in plans:
        for number, (n, rung) in enumerate(zip(own.keep, own.rungs, strict=True)):
            paid += n * (rung - (own.rungs[number - 1] if number and resumes else 0))
    return paid


@given(trainings=TRAININGS, max_epochs=MAX_EPOCHS, slots=SLOTS, resumes=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_plan_never_costs_more_than_its_budget_and_leaves_little_of_it(
    trainings: float, max_epochs: int, slots: int | None, resumes: bool
) -> None:
    epochs = trainings * max_epochs
    plans = plan(epochs, max_epochs, slots, resumes)
    cost = sum(own.cost(resumes) for own in plans)
    assert cost == pytest.approx(total(plans, resumes))
    dearest = max(own.cost(resumes) / own.keep[0] for own in plans)
    least = sum(
        StagePlan(own.rungs, (1,) * len(own.rungs)).cost(resumes) for own in plans
    )  # one trial a stage
    assert cost <= epochs + 1e-6 or (not resumes and cost <= least + 1e-6)
    assert cost >= epochs - 3 * dearest - max_epochs or not resumes


@given(trainings=TRAININGS, max_epochs=MAX_EPOCHS, slots=SLOTS, resumes=st.booleans())
@settings(max_examples=300, deadline=None)
def test_rungs_ascend_to_the_longest_training_and_fewer_go_on_to_each(
    trainings: float, max_epochs: int, slots: int | None, resumes: bool
) -> None:
    plans = plan(trainings * max_epochs, max_epochs, slots, resumes)
    for own in plans:
        assert len(own.rungs) == len(own.keep) >= 1
        assert all(low < high for low, high in pairwise(own.rungs)) and set(own.rungs) <= set(
            rungs_of(max_epochs)
        )
        assert all(more >= fewer >= 1 for more, fewer in pairwise(own.keep))
    assert plans[-1].rungs[-1] == max_epochs, "the search ends with full trainings"
    assert plans[0].rungs[0] == rungs_of(max_epochs)[0], "it begins with the shortest"


@given(max_epochs=st.integers(1, 1_000_000))
@settings(max_examples=200, deadline=None)
def test_rungs_are_whole_epochs_a_third_apart(max_epochs: int) -> None:
    rungs = rungs_of(max_epochs)
    assert rungs[0] in (1, 2) and rungs[-1] == max_epochs
    assert all(1.4 <= high / low <= 5 for low, high in pairwise(rungs))


def test_the_rungs_of_twenty_epochs() -> None:
    assert rungs_of(20) == (1, 2, 7, 20) and rungs_of(1) == (1,) and rungs_of(2) == (1, 2)


def test_more_epochs_make_more_stages_and_more_slots_fewer() -> None:
    assert [len(plan(n * 20, 20)) for n in (5, 15, 60, 120)] == [2, 4, 6, 10]
    assert len(plan(300, 20, slots=8)) == 2 < len(plan(300, 20, slots=1))


def test_who_cannot_resume_pays_more_for_the_same_trials_and_so_gets_fewer() -> None:
    resumed, anew = plan(300, 20), plan(300, 20, resumes=False)
    for own in (*resumed, *anew):
        assert own.cost(resumes=False) > own.cost() or len(own.rungs) == 1
    assert sum(own.keep[0] for own in anew) < sum(own.keep[0] for own in resumed)
    assert (
        StagePlan((1.0, 3.0), (9, 3)).cost() == 15
        and StagePlan((1.0, 3.0), (9, 3)).cost(resumes=False) == 18
    )


@given(trainings=st.floats(1.0, 100.0), max_epochs=MAX_EPOCHS)
@settings(max_examples=100, deadline=None)
def test_what_is_added_later_costs_no_more_than_it_may_and_ends_with_full_trainings(
    trainings: float, max_epochs: int
) -> None:
    added = plan_more(trainings * max_epochs, max_epochs)
    least = sum(StagePlan(own.rungs, (1,) * len(own.rungs)).cost() for own in added)
    assert total(added) <= max(trainings * max_epochs, least) + 1e-6
    assert added[-1].rungs[-1] == max_epochs


@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_no_two_stages_have_the_same_name_however_often_more_are_added(counts: list[int]) -> None:
    names: list[str] = []
    for n in counts:
        added = stage_names(n, names)
        assert len(added) == n
        names += added
    assert len(set(names)) == len(names) and all(
        STAGE_PATTERN.fullmatch(name) and name != "all" for name in names
    )


def test_stages_have_the_names_that_commands_use() -> None:
    assert stage_names(2) == ["coarse", "fine"] and stage_names(1) == ["coarse"]
    assert stage_names(6) == ["coarse", "middle", "fine", "finer", "finer2", "finer3"]
    assert stage_names(2, ["coarse", "fine"]) == ["finer", "finer2"]
    assert stage_names(1, ["coarse", "middle", "fine", "finer", "finer2"]) == ["finer3"]


def test_a_budget_plans_the_stages_that_come_first() -> None:
    search = budget(
        "epochs = 300",
        (
            '[stages.sure]\nkind = "confirm"\nepochs = 20\n[stages.again]\nkind = "seeds"\n'
            "trials = 3\nepochs = 20"
        ),
    )
    assert [stage.name for stage in search.stages] == [
        "coarse",
        "middle",
        "fine",
        "finer",
        "sure",
        "again",
    ]
    assert [stage.plan for stage in search.stages[:4]] == plan(300, 20)
    assert sum(stage.plan.cost() for stage in search.stages[:4]) <= 300
    assert (search.stage("sure").trials, search.stage("sure").plan) == (
        15,
        StagePlan((20.0,), (15,)),
    )
    assert search.max_epochs == 20


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ("", 300),
        ("full_trainings = 30", 600),
        ("epochs = 100", 100),
        ("max_epochs = 9", 135),
        ("epochs = 60.0", 60),
    ],
)
def test_a_budget_is_epochs_or_full_trainings(text: str, epochs: float) -> None:
    search = budget(text)
    assert search.budget is not None and search.budget.total_epochs == epochs
    assert [stage.plan for stage in search.stages] == plan(epochs, search.budget.max_epochs)


@given(
    epochs=st.integers(60, 3000),
    max_epochs=st.integers(1, 20),
    slots=st.none() | st.integers(1, 100),
    resumes=st.booleans(),
    repeats=st.integers(1, 5),
)
@settings(max_examples=100, deadline=None)
def test_repeats_are_so_many_trials_in_the_place_of_each_and_the_budget_pays_for_all(
    epochs: int, max_epochs: int, slots: int | None, resumes: bool, repeats: int
) -> None:
    once = plan(epochs, max_epochs, slots, resumes)
    several = slots and slots * repeats
    found = plan(epochs * repeats, max_epochs, several, resumes, repeats)
    assert [own.rungs for own in found] == [own.rungs for own in once]
    assert [own.keep for own in found] == [tuple(n * repeats for n in own.keep) for own in once]
    assert total(found, resumes) == pytest.approx(repeats * total(once, resumes))


@pytest.mark.parametrize("top", ["", 'sampler = "sobol"'])
def test_a_budget_with_repeats_is_read_back_as_launch_planned_it(top: str) -> None:
    search = parse_search(f"{top}\n{HEAD}[budget]\nepochs = 300\nrepeats = 3\n")
    assert search.budget is not None
    tables = search.budget.stages(shape=search.shape)
    assert all(n % 3 == 0 for own in search.stages for n in own.plan.keep)
    assert sum(own.plan.cost() for own in search.stages) <= 300
    lines = [
        "[[plan]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
        for table in tables
    ]
    text = f"{top}\n{HEAD}[budget]\nepochs = 300\nrepeats = 3\n{''.join(lines)}"
    assert parse_search(text).stages == search.stages
    with pytest.raises(ConfigError, match="trials is no stage that launch plans"):
        parse_search(text.replace("repeats = 3\n[[", "repeats = 2\n[["))


def _toml(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def test_policies_of_a_budget_are_those_of_all_its_stages() -> None:
    search = budget(
        "patience = 3\nchance_epochs = 2.0\nsnapshots = 4",
        '[stages.again]\nkind = "seeds"\ntrials = 3\nepochs = 20',
    )
    assert {
        (stage.patience, stage.chance_epochs, stage.snapshots)
        for stage in search.stages
        if stage.searches
    } == {(3, 2, 4)}
    assert search.stage("again").patience is None


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        (
            "epochs = 10",
            "",
            (
                "[budget]: 10 epochs are fewer than 3 trainings of max_epochs = 20; allow at "
                "least 60, or lower max_epochs"
            ),
        ),
        (
            "full_trainings = 2",
            "",
            "[budget]: 40 epochs are fewer than 3 trainings of max_epochs = 20; allow at least 60",
        ),
        (
            "epochs = 100\nrepeats = 2",
            "",
            (
                "[budget]: 100 epochs are fewer than 3 trainings of max_epochs = 20 with repeats "
                "= 2; allow at least 120, or lower max_epochs or repeats"
            ),
        ),
        ("repeats = 0", "", "[budget] repeats = 0: input should be greater than or equal to 1"),
        (
            "epochs = 100\nminutes = 3",
            "",
            "[budget]: epochs and minutes say the same thing twice; keep one of them",
        ),
        ("epochs = 0", "", "[budget] epochs = 0: input should be greater than 0"),
        ("epochs = nan", "", "[budget] epochs = nan: input should be"),
        ("epochs = '300'", "", "[budget] epochs = '300': input should be a valid number"),
        ("max_epochs = 2.5", "", "[budget] max_epochs = 2.5: input should be a valid integer"),
        (
            "max_epochs = 0",
            "",
            "[budget] max_epochs = 0: input should be greater than or equal to 1",
        ),
        ("slots = 0", "", "[budget] slots = 0: input should be greater than or equal to 1"),
        (
            "epoch = 100",
            "",
            (
                "[budget] epoch = 100: unknown key; remove it or use one of epochs, "
                "full_trainings, minutes, max_epochs"
            ),
        ),
        (
            "epochs = 1e9\nmax_epochs = 1",
            "",
            "[budget]: comes to 100,000,000 trials in one stage, more than 1,000,000; allow less",
        ),
        (
            "",
            "[strategy]\nclip = 1.5",
            "[strategy] clip = 1.5: input should be less than or equal to 1",
        ),
        (
            "",
            "[strategy]\ndensities = 1",
            "[strategy] densities = 1: unknown key; remove it or use one of clip, plain, density",
        ),
        (
            "",
            "[stages.more]\ntrials = 3\nepochs = 1",
            "[stages.more]: the stages that search are planned from the [budget]; remove one of",
        ),
        (
            "",
            "[stages.fine]\nkind = 'confirm'\nepochs = 1",
            "[stages.fine]: the budget plans a stage of this name; choose another",
        ),
        (
            "",
            "[stages.sure]\nkind = 'confirm'\nepochs = 1\nrungs = [1]",
            "[stages.sure] rungs: is planned from a [budget]; remove rungs = [1]",
        ),
        (
            "",
            "[[plan]]\nname = '../x'\ntrials = 3\nepochs = 1.0",
            "[[plan]] '../x': (1.0,) epochs, (3,) trials is no stage that launch plans",
        ),
        (
            "",
            "[[plan]]\nname = 'x'\ntrials = 3\nepochs = 1.0\nrungs = [1.0, 0.5]\nkeep = [3, 1]",
            (
                "[[plan]] 'x': (1.0, 0.5) epochs, (3, 1) trials is no stage that launch "
                "plans; launch wrote it: undo what was changed"
            ),
        ),
    ],
)
def test_what_is_wrong_with_a_budget_is_told_with_place_value_and_remedy(
    text: str, more: str, message: str
) -> None:
    assert refused(text, more).startswith(message)


def test_a_budget_that_is_no_table() -> None:
    with pytest.raises(
        ConfigError, match=r"\[budget\]: 3 is not a table; write epochs = 300 below \[budget\]"
    ):
        parse_search("budget = 3\n" + HEAD)


def test_a_file_without_budget_and_stages_lacks_a_budget() -> None:
    with pytest.raises(
        ConfigError, match=r"\[budget\] is missing; `master init` writes a complete example"
    ):
        parse_search(HEAD)


def test_stages_of_the_users_own_have_one_rung() -> None:
    search = parse_search(
        HEAD + "[stages.coarse]\ntrials = 20\nepochs = 0.5\n[stages.fine]\ntrials = 5\nepochs = 8\n"
    )
    assert [stage.plan for stage in search.stages] == [
        StagePlan((0.5,), (20,)),
        StagePlan((8.0,), (5,)),
    ]
    assert search.max_epochs == 8 and search.budget is None
