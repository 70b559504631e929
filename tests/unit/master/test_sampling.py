from __future__ import annotations

import json
import math
import subprocess
import sys
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.search.space import Space
from common.search.stage import Stage
from common.search.trial import DRAWN, Trial
from master.stages.sampling import crowding, unit
from tests.unit.master.made import first_trials, searching

SPACE = Space.parse(
    {
        "learning_rate": {"log_uniform": [1e-6, 1e1]},
        "dropout": {"uniform": [0.0, 0.8]},
        "depth": {"int_uniform": [1, 4]},
        "hidden": {"log_int_uniform": [16, 512]},
        "activation": {"choice": ["relu", "tanh"]},
        "optimizer": "sgd",
    }
)
STAGE = Stage(name="coarse", trials=200, epochs=0.5)
SAMPLERS = ["staged", "random", "sobol"]


def drawn(
    sampler: str, indices: range, seed: int = 1, space: Space = SPACE, stage: Stage = STAGE
) -> list[Trial]:
    """Trials of a search's first stage."""
    return first_trials(searching(space, stage, seed=seed, sampler=sampler), indices)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "grid"])
@given(seed=st.integers(0, 2**63 - 1), start=st.integers(0, 300), n=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_a_configuration_does_not_depend_on_how_many_are_drawn(
    sampler: str, seed: int, start: int, n: int
) -> None:
    alone = drawn(sampler, range(start, start + n), seed)
    together = drawn(sampler, range(start + n + 7), seed)
    assert alone == together[start : start + n]


@pytest.mark.parametrize("sampler", [*SAMPLERS, "grid"])
def test_another_process_draws_the_same(sampler: str) -> None:
    code = (
        "import json; from tests.unit.master.test_sampling import *;"
        f"print(json.dumps([t.hyperparameters for t in drawn({sampler!r}, range(20, 30), 231)]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(other.stdout) == [
        t.hyperparameters for t in drawn(sampler, range(20, 30), 231)
    ]


def test_the_first_values_of_seed_231_never_change() -> None:
    """Later versions extend launched stages, so a changed draw would mix two searches."""
    assert unit(231, "coarse", 0, "learning_rate") == 0.9802665697660315


@pytest.mark.parametrize("sampler", [*SAMPLERS, "grid"])
@given(seed=st.integers(0, 2**63 - 1))
@settings(max_examples=25, deadline=None)
def test_values_stay_in_their_ranges(sampler: str, seed: int) -> None:
    for trial in drawn(sampler, range(64), seed):
        h = trial.hyperparameters
        assert list(h) == list(SPACE.parameters)
        assert isinstance(h["learning_rate"], float) and 1e-6 <= h["learning_rate"] <= 1e1
        assert isinstance(h["dropout"], float) and 0.0 <= h["dropout"] <= 0.8
        assert h["depth"] in (1, 2, 3, 4) and isinstance(h["depth"], int)
        assert isinstance(h["hidden"], int) and 16 <= h["hidden"] <= 512
        assert h["activation"] in ("relu", "tanh")
        assert h["optimizer"] == "sgd"
        json.dumps(h, allow_nan=False)


def test_random_values_do_not_depend_on_other_hyperparameters() -> None:
    fewer = Space({name: p for name, p in SPACE.parameters.items() if name != "dropout"})
    with_it = drawn("random", range(50), 5)
    without = drawn("random", range(50), 5, fewer)
    assert [t.hyperparameters["learning_rate"] for t in with_it] == [
        t.hyperparameters["learning_rate"] for t in without
    ]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds_stages_and_trials_differ(sampler: str) -> None:
    def rates(seed: int, stage: Stage) -> list[object]:
        return [
            t.hyperparameters["learning_rate"] for t in drawn(sampler, range(50), seed, stage=stage)
        ]

    other = STAGE.model_copy(update={"name": "fine"})
    values = rates(1, STAGE) + rates(2, STAGE) + rates(1, other)
    assert len(set(values)) == 150


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_values_are_uniform_in_the_scale_they_are_sampled_on(sampler: str) -> None:
    trials = drawn(sampler, range(2000), 3)
    decades = [math.log10(float(t.hyperparameters["learning_rate"])) for t in trials]
    assert mean(decades) == pytest.approx(-2.5, abs=0.15)
    assert sum(d < -4.25 for d in decades) / 2000 == pytest.approx(0.25, abs=0.04)
    depths = [t.hyperparameters["depth"] for t in trials]
    assert [depths.count(d) / 2000 for d in (1, 2, 3, 4)] == pytest.approx([0.25] * 4, abs=0.04)


def test_sobol_covers_more_evenly_than_random() -> None:
    """Of 64 points in 64 equal cells, a Sobol sequence leaves none empty.

    Random points leave about a third empty.
    """

    def empty(sampler: str) -> int:
        trials = drawn(
            sampler, range(64), 9, Space.parse({"x": {"uniform": [0, 1]}, "y": {"uniform": [0, 1]}})
        )
        cells = {
            (int(float(t.hyperparameters["x"]) * 8), int(float(t.hyperparameters["y"]) * 8))
            for t in trials
        }
        return 64 - len(cells)

    assert empty("sobol") == empty("staged") == 0
    assert empty("random") > 10


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_space_of_fixed_values_gives_the_same_configuration_with_different_seeds(
    sampler: str,
) -> None:
    trials = drawn(sampler, range(3), space=Space.parse({"learning_rate": 0.1}))
    assert [t.hyperparameters for t in trials] == [{"learning_rate": 0.1}] * 3
    assert len({t.seed for t in trials}) == 3


def test_a_trial_knows_its_stage_budget_and_group() -> None:
    trial = drawn("random", range(42, 43))[0]
    assert (trial.id, trial.stage, trial.index, trial.epochs) == ("coarse-0042", "coarse", 42, 0.5)
    assert json.loads(trial.group).keys() == {"depth", "hidden", "activation"}
    assert (
        trial.horizon == 0.5 and not trial.passed
    )  # nobody promotes it, so its schedules run over its budget


def test_a_trial_that_may_be_promoted_knows_the_longest_budget_that_it_may_get() -> None:
    stage = Stage(name="coarse", trials=9, epochs=1, rungs=(1.0, 3.0), keep=(9, 3))
    later = Stage(name="middle", trials=3, epochs=3, rungs=(3.0, 8.0), keep=(3, 1))
    budget = {"epochs": 40.0, "max_epochs": 8}
    trial = first_trials(searching(SPACE, stage, later, sampler="random", budget=budget), range(1))[
        0
    ]
    assert (trial.epochs, trial.horizon, trial.rung) == (1.0, 8.0, 0)


@pytest.mark.parametrize(
    ("sampler", "word"),
    [("staged", "sobol"), ("random", "plain"), ("sobol", "sobol"), ("grid", "grid")],
)
def test_a_trial_tells_how_it_was_drawn(sampler: str, word: str) -> None:
    assert {trial.drawn for trial in drawn(sampler, range(5))} == {word} <= DRAWN.keys()
    assert not any(trial.parents for trial in drawn(sampler, range(5)))


def test_a_grid_has_every_combination_once() -> None:
    space = Space.parse(
        {
            "x": {"uniform": [0.0, 3.0]},
            "activation": {"choice": ["relu", "tanh"]},
            "optimizer": "sgd",
        }
    )
    trials = drawn("grid", range(6), space=space, stage=Stage(name="coarse", trials=6, epochs=1))
    combinations = {(t.hyperparameters["x"], t.hyperparameters["activation"]) for t in trials}
    assert combinations == {(x, own) for x in (0.5, 1.5, 2.5) for own in ("relu", "tanh")}


def test_no_numbers_give_no_trials() -> None:
    assert drawn("sobol", range(0)) == drawn("staged", range(0)) == []


def test_a_crowded_space_is_told_with_the_remedy() -> None:
    told = crowding(
        Space.parse({"hidden": {"int_uniform": [16, 512]}, "learning_rate": {"uniform": [0, 1]}}),
        200,
    )
    assert told is not None
    assert "497 combinations" in told
    assert "hidden = { choice = [16, 181, 347, 512] }" in told


def test_a_space_crowded_by_choices_is_told_which() -> None:
    told = crowding(
        Space.parse(
            {"a": {"choice": [1, 2, 3, 4, 5, 6, 7]}, "b": {"choice": [1, 2, 3, 4, 5, 6, 7]}}
        ),
        100,
    )
    assert told is not None and "49 combinations" in told and "a, b" in told


def test_an_ordinary_space_is_not_crowded() -> None:
    space = Space.parse({"hidden": {"choice": [32, 64, 128]}, "depth": {"int_uniform": [1, 3]}})
    assert crowding(space, 200) is None
    assert crowding(space, 5) is None
