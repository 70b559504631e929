"""Steps, normal distributions and options that are lists, in every way to draw."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist, fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.search.check_space import check_space
from common.search.parameters import Choice, Fixed, Normal, Uniform
from common.search.space import Space
from common.search.stage import Strategy
from common.search.values import Hyperparameters
from master.samplers.coding import Interval, code
from master.strategy.borders import borders_of
from master.strategy.box import propose
from master.strategy.drawing import draw_many
from master.strategy.freezing import Frozen, freeze
from master.strategy.places import Places
from master.strategy.ranges import check_ranges, read_frozen, write_frozen
from tests.unit.master.strategy.made import CHILD_ONLY, DENSITY_ONLY, PLAIN_ONLY, searched, seen

LAYERS: list[object] = [[64, 64], [128], [], {"kind": "deep", "units": [8, [4]]}]
SPACE = Space.parse(
    {
        "width": {"int_uniform": [32, 512], "step": 32},
        "rate": {"uniform": [0.0, 0.8], "step": 0.1},
        "guess": {"normal": [3.0, 0.5]},
        "positive": {"log_normal": [-4.0, 1.0], "low": 1e-3},
        "layers": {"choice": LAYERS},
        "kernel": {"fixed": [3, {"pad": 1}]},
    }
)


def goodness(hyperparameters: Hyperparameters) -> float:
    """Best with a width of 256, where the guess is 5, four deviations above its mean."""
    width, guess = hyperparameters["width"], hyperparameters["guess"]
    assert isinstance(width, int) and isinstance(guess, float)
    return -abs(width - 256) / 512 - abs(guess - 5) - (hyperparameters["layers"] != [])


FROZEN = freeze(SPACE, SPACE, searched(60, goodness, SPACE))


def check(values: Hyperparameters) -> None:
    """Every value is one that the space may draw."""
    assert list(values) == list(SPACE.parameters)
    assert values["width"] in range(32, 513, 32) and type(values["width"]) is int
    assert values["rate"] in [k / 10 for k in range(9)]
    guess, positive = values["guess"], values["positive"]
    assert isinstance(guess, float) and 1.0 <= guess <= 5.0
    assert isinstance(positive, float) and 1e-3 <= positive <= 1.0
    assert values["layers"] in LAYERS and values["kernel"] == [3, {"pad": 1}]


@given(seed=st.integers(0, 2**63 - 1), start=st.integers(0, 100), first=st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_way_to_draw_gives_values_of_the_space(seed: int, start: int, first: bool) -> None:
    frozen = freeze(SPACE, SPACE, []) if first else FROZEN
    for options in (PLAIN_ONLY, DENSITY_ONLY, CHILD_ONLY, Strategy(clip=0.0)):
        for one in draw_many(SPACE, frozen, seed, "fine", range(start, start + 6), options):
            check(one.hyperparameters)


@pytest.mark.parametrize("options", [PLAIN_ONLY, Strategy()])
def test_a_normal_distribution_is_drawn_by_its_shares(options: Strategy) -> None:
    frozen = freeze(SPACE, SPACE, []) if options.plain < 1 else FROZEN
    drawn = draw_many(SPACE, frozen, 5, "coarse", range(512), options)
    values = [one.hyperparameters["guess"] for one in drawn]
    assert fmean(values) == pytest.approx(3.0, abs=0.1)  # type: ignore[arg-type]
    below = sum(value < 2.5 for value in values) / 512  # type: ignore[operator]
    assert below == pytest.approx(NormalDist().cdf(-1), abs=0.05)


def test_breeding_moves_a_normal_distribution_to_where_good_trials_are() -> None:
    drawn = draw_many(SPACE, FROZEN, 1, "fine", range(60), DENSITY_ONLY)
    assert fmean(float(one.hyperparameters["guess"]) for one in drawn) > 3.5  # type: ignore[arg-type]


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_places_go_back_to_the_same_configuration(seed: int) -> None:
    places = Places(SPACE, SPACE)
    for one in draw_many(SPACE, FROZEN, seed, "fine", range(5), Strategy()):
        row = places.row(one.hyperparameters)
        assert row is not None
        back = places.values(np.array(row))
        for name, value in one.hyperparameters.items():
            expected = pytest.approx(value) if isinstance(value, float) else value
            assert back[name] == expected


def test_what_a_stage_knows_and_samples_reads_back(tmp_path: Path) -> None:
    assert Frozen.from_json(json.loads(json.dumps(FROZEN.as_json())), SPACE) == FROZEN
    path = tmp_path / "ranges.toml"
    write_frozen(path, SPACE)
    assert read_frozen(path, SPACE) == SPACE
    repeated = tmp_path / "repeated.toml"
    values: Hyperparameters = {
        "width": 64,
        "rate": 0.3,
        "guess": 3.1,
        "positive": 0.01,
        "layers": {"kind": "deep", "units": [8, [4]]},
        "kernel": [3, {"pad": 1}],
    }
    fixed = Space({name: Fixed(value) for name, value in values.items()})
    write_frozen(repeated, fixed, ["coarse-0001"])
    assert read_frozen(repeated, SPACE) == fixed


def test_the_end_of_a_range_moves_by_whole_steps_and_a_distribution_stays() -> None:
    top = {"width": 512, "rate": 0.8, "guess": 5.0, "positive": 1.0, "layers": [], "kernel": 1}
    trials = [seen(i, dict(top), (1.0, -float(i))) for i in range(12)]
    proposal = propose(SPACE, SPACE, trials)
    assert proposal.space.ranged["width"].plain() == {"int_uniform": [32, 768], "step": 32}
    assert proposal.space.ranged["rate"].plain() == {"uniform": [0.0, 1.2], "step": 0.1}
    assert proposal.space.parameters["guess"] == SPACE.parameters["guess"]
    assert proposal.notes["guess"] == "kept: a distribution has no border"
    found = {border.hyperparameter: border for border in borders_of([dict(top)] * 12, SPACE)}
    assert set(found) == {"width", "rate"}
    assert found["width"].advice.endswith("try width = { int_uniform = [256, 736], step = 32 }")
    again = propose(SPACE, proposal.space, [])
    assert again.space == proposal.space


@given(step=st.integers(1, 30), n=st.integers(1, 20), side=st.sampled_from(["low", "high"]))
@settings(max_examples=60, deadline=None)
def test_a_moved_end_is_on_the_grid(step: int, n: int, side: str) -> None:
    space = Space({"x": Uniform(1.0, 1.0 + n * step / 10, (-50.0, 333.33), step / 10)})
    box = space
    for _ in range(3):
        end = getattr(box.ranged["x"], side)
        box = propose(space, box, [seen(i, {"x": end}, (1.0, -float(i))) for i in range(12)]).space
        check_ranges(json.loads(json.dumps(box.plain())), "box", space)
        low, high = box.ranged["x"].low, box.ranged["x"].high
        assert -50 <= low < high <= 333.33
        for value in (low, high):
            assert value == round(1 + round((value - 1) * 10 / step) * step / 10, 9)


def test_a_library_knows_shares_steps_and_numbers_of_options() -> None:
    for name, own in SPACE.sampled.items():
        coded = code(own)
        for unit in (0.0, 0.3, 0.99):
            value = own.from_unit(unit)
            back = coded.decode(coded.encode(value))  # type: ignore[arg-type]
            assert back == (pytest.approx(value) if isinstance(value, float) else value), name
            if isinstance(coded, Interval):
                assert coded.low <= coded.encode(value) <= coded.high
    assert isinstance(SPACE.sampled["layers"], Choice)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("momentum", {"normal": [0.9, 0.1]}, r"normal = \[0.9, 0.1\]: a number in \[0, 1\).*1.3"),
        ("momentum", {"normal": [0.9, 0.1]}, r"give high = "),
        ("dropout", {"normal": [0.1, 0.1], "high": 0.5}, r"give low = "),
        ("hidden", {"normal": [64, 8]}, r"normal draws fractions.*use int_uniform"),
        ("optimizer", {"normal": [0, 1]}, r"normal = \[0, 1\] draws numbers; write .* choice"),
        ("hidden", {"choice": [[64, 64]]}, r"hidden = \[64, 64\]: a whole number of at least 1"),
        ("activation", {"choice": [{"a": 1}]}, r'activation = \{"a": 1\}: use one of relu'),
    ],
)
def test_a_built_in_task_refuses_what_it_cannot_train_with(
    name: str, raw: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_space("digits", Space.parse({"learning_rate": 0.1, name: raw}))


def test_a_built_in_task_takes_steps_and_distributions_that_fit() -> None:
    check_space(
        "digits",
        Space.parse(
            {
                "learning_rate": {"log_normal": [-5.0, 1.0]},
                "momentum": {"normal": [0.9, 0.1], "low": 0.0, "high": 0.99},
                "hidden": {"int_uniform": [32, 256], "step": 32},
                "dropout": {"uniform": [0.0, 0.5], "step": 0.1},
            }
        ),
    )
    assert Normal(0.9, 0.1, 0.0, 0.99).high == 0.99 and math.isclose(Normal(0.9, 0.1).low, 0.5)
