from __future__ import annotations

import json
import math
import subprocess
import sys
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.search import Stage
from common.space import Space
from master.sampling import configurations, crowding, unit

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
SAMPLERS = ["random", "sobol"]


@pytest.mark.parametrize("sampler", SAMPLERS)
@given(seed=st.integers(0, 2**63 - 1), start=st.integers(0, 300), n=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_a_configuration_does_not_depend_on_how_many_are_drawn(sampler: str, seed: int, start: int, n: int) -> None:
    alone = configurations(seed, STAGE, SPACE, sampler, range(start, start + n))
    together = configurations(seed, STAGE, SPACE, sampler, range(start + n + 7))
    assert alone == together[start : start + n]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_another_process_draws_the_same(sampler: str) -> None:
    code = (
        "import json; from tests.unit.master.test_sampling import *;"
        f"print(json.dumps([t.hyperparameters for t in configurations(231, STAGE, SPACE, {sampler!r}, range(20, 30))]))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(other.stdout) == [t.hyperparameters for t in configurations(231, STAGE, SPACE, sampler, range(20, 30))]


def test_the_first_values_of_seed_231_never_change() -> None:
    """Stages that were launched are extended by later versions: a changed draw would mix two searches."""
    assert unit(231, "coarse", 0, "learning_rate") == 0.9802665697660315


@pytest.mark.parametrize("sampler", SAMPLERS)
@given(seed=st.integers(0, 2**63 - 1))
@settings(max_examples=25, deadline=None)
def test_values_stay_in_their_ranges(sampler: str, seed: int) -> None:
    for trial in configurations(seed, STAGE, SPACE, sampler, range(64)):
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
    with_it = configurations(5, STAGE, SPACE, "random", range(50))
    without = configurations(5, STAGE, fewer, "random", range(50))
    assert [t.hyperparameters["learning_rate"] for t in with_it] == [t.hyperparameters["learning_rate"] for t in without]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds_stages_and_trials_differ(sampler: str) -> None:
    def rates(seed: int, stage: Stage) -> list[object]:
        return [t.hyperparameters["learning_rate"] for t in configurations(seed, stage, SPACE, sampler, range(50))]

    other = STAGE.model_copy(update={"name": "fine"})
    values = rates(1, STAGE) + rates(2, STAGE) + rates(1, other)
    assert len(set(values)) == 150


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_values_are_uniform_in_the_scale_they_are_sampled_on(sampler: str) -> None:
    trials = configurations(3, STAGE, SPACE, sampler, range(2000))
    decades = [math.log10(float(t.hyperparameters["learning_rate"])) for t in trials]
    assert mean(decades) == pytest.approx(-2.5, abs=0.15)
    assert sum(d < -4.25 for d in decades) / 2000 == pytest.approx(0.25, abs=0.04)
    depths = [t.hyperparameters["depth"] for t in trials]
    assert [depths.count(d) / 2000 for d in (1, 2, 3, 4)] == pytest.approx([0.25] * 4, abs=0.04)


def test_sobol_covers_more_evenly_than_random() -> None:
    """Of 64 points in 64 equal cells, a Sobol sequence leaves none empty; random points leave about a third."""

    def empty(sampler: str) -> int:
        trials = configurations(9, STAGE, Space.parse({"x": {"uniform": [0, 1]}, "y": {"uniform": [0, 1]}}), sampler, range(64))
        cells = {(int(float(t.hyperparameters["x"]) * 8), int(float(t.hyperparameters["y"]) * 8)) for t in trials}
        return 64 - len(cells)

    assert empty("sobol") == 0
    assert empty("random") > 10


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_space_of_fixed_values_gives_the_same_configuration_with_different_seeds(sampler: str) -> None:
    trials = configurations(1, STAGE, Space.parse({"learning_rate": 0.1}), sampler, range(3))
    assert [t.hyperparameters for t in trials] == [{"learning_rate": 0.1}] * 3
    assert len({t.seed for t in trials}) == 3


def test_a_trial_knows_its_stage_budget_and_group() -> None:
    trial = configurations(1, STAGE, SPACE, "random", range(42, 43))[0]
    assert (trial.id, trial.stage, trial.index, trial.epochs) == ("coarse-0042", "coarse", 42, 0.5)
    assert json.loads(trial.group).keys() == {"depth", "hidden", "activation"}


def test_no_numbers_give_no_trials() -> None:
    assert configurations(1, STAGE, SPACE, "sobol", range(0)) == []


def test_an_unknown_sampler_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'grid'.*random or sobol"):
        configurations(1, STAGE, SPACE, "grid", range(1))


def test_a_sobol_sequence_has_only_so_many_dimensions() -> None:
    many = Space.parse({f"x{i}": {"uniform": [0, 1]} for i in range(21_202)})
    with pytest.raises(ConfigError, match="21202 hyperparameters are more than its 21201"):
        configurations(1, STAGE, many, "sobol", range(1))


def test_a_crowded_space_is_told_with_the_remedy() -> None:
    told = crowding(Space.parse({"hidden": {"int_uniform": [16, 512]}, "learning_rate": {"uniform": [0, 1]}}), 200)
    assert told is not None
    assert "497 combinations" in told
    assert "hidden = { choice = [16, 181, 347, 512] }" in told


def test_a_space_crowded_by_choices_is_told_which() -> None:
    told = crowding(Space.parse({"a": {"choice": [1, 2, 3, 4, 5, 6, 7]}, "b": {"choice": [1, 2, 3, 4, 5, 6, 7]}}), 100)
    assert told is not None and "49 combinations" in told and "a, b" in told


def test_an_ordinary_space_is_not_crowded() -> None:
    space = Space.parse({"hidden": {"choice": [32, 64, 128]}, "depth": {"int_uniform": [1, 3]}})
    assert crowding(space, 200) is None
    assert crowding(space, 5) is None
