from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.search.parameters import Choice
from common.search.space import Space
from common.search.stage import Strategy
from common.search.trial import DRAWN
from master.strategy.drawing import draw, draw_many
from master.strategy.freezing import freeze
from tests.unit.master.strategy.made import (
    CHILD_ONLY,
    DENSITY_ONLY,
    PLAIN_ONLY,
    SPACE,
    near,
    searched,
    seen,
)

FROZEN = freeze(SPACE, SPACE, searched())
NOTHING = freeze(SPACE, SPACE, [])
INSIDE = Space.parse(
    {
        "learning_rate": {"log_uniform": [1e-3, 2e-3]},
        "dropout": {"uniform": [0.1, 0.15]},
        "depth": {"int_uniform": [2, 3]},
        "hidden": {"log_int_uniform": [100, 110]},
        "activation": {"choice": ["gelu", "relu"]},
        "optimizer": "adam",
    }
)


@given(
    seed=st.integers(0, 2**63 - 1),
    start=st.integers(0, 60),
    n=st.integers(1, 12),
    first=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_configuration_does_not_depend_on_how_many_are_drawn(
    seed: int, start: int, n: int, first: bool
) -> None:
    frozen = NOTHING if first else FROZEN
    alone = [
        draw(SPACE, frozen, seed, "fine", index, Strategy()) for index in range(start, start + n)
    ]
    assert (
        alone
        == draw_many(SPACE, frozen, seed, "fine", range(start + n + 3), Strategy())[
            start : start + n
        ]
    )


def test_another_process_draws_the_same() -> None:
    code = (
        "import json; from tests.unit.master.strategy.test_drawing import *;"
        "print(json.dumps([one.hyperparameters for one in draw_many(SPACE, FROZEN, 231, "
        "'fine', range(10, 20), Strategy())]))"
    )
    root = Path(__file__).parents[4]
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=root,
    )
    own = draw_many(SPACE, FROZEN, 231, "fine", range(10, 20), Strategy())
    assert json.loads(other.stdout) == [one.hyperparameters for one in own]


def test_seed_stage_and_number_each_give_another_configuration() -> None:
    drawn = [
        draw(SPACE, FROZEN, seed, stage, n, CHILD_ONLY).hyperparameters
        for seed in (1, 2)
        for stage in ("fine", "finer")
        for n in (0, 1)
    ]
    assert len({json.dumps(one) for one in drawn}) == 8


@pytest.mark.parametrize(
    "options",
    [
        PLAIN_ONLY,
        DENSITY_ONLY,
        CHILD_ONLY,
        Strategy(),
        Strategy(clip=0.0, plain=0.0),
        Strategy(clip=0.5),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_everything_lies_in_the_box_although_the_good_trials_do_not(
    options: Strategy, first: bool
) -> None:
    frozen = freeze(SPACE, INSIDE, [] if first else searched())
    for one in draw_many(SPACE, frozen, 3, "fine", range(64), options):
        values = one.hyperparameters
        assert list(values) == list(SPACE.parameters) and values["optimizer"] == "adam"
        for name, parameter in INSIDE.numeric.items():
            assert parameter.low <= values[name] <= parameter.high  # type: ignore[operator]
            assert isinstance(values[name], int if parameter.integer else float)
        assert values["activation"] in ("gelu", "relu")


def test_a_box_that_moved_past_the_first_range_is_used_to_its_end() -> None:
    box = Space.parse(
        SPACE.plain()
        | {"learning_rate": {"log_uniform": [1e-1, 1e3]}, "depth": {"int_uniform": [4, 9]}}
    )
    drawn = [
        one.hyperparameters
        for one in draw_many(
            SPACE, freeze(SPACE, box, searched()), 3, "fine", range(200), PLAIN_ONLY
        )
    ]
    assert {one["depth"] for one in drawn} == {4, 5, 6, 7, 8, 9}
    assert max(float(one["learning_rate"]) for one in drawn) > 500


def test_an_option_that_only_the_box_has_is_drawn() -> None:
    box = Space.parse(SPACE.plain() | {"activation": {"choice": ["elu", "tanh"]}})
    for options in (PLAIN_ONLY, DENSITY_ONLY, CHILD_ONLY):
        drawn = draw_many(SPACE, freeze(SPACE, box, searched()), 3, "fine", range(60), options)
        assert {one.hyperparameters["activation"] for one in drawn} == {"elu", "tanh"}


def test_the_rules_have_their_shares_evenly_and_the_first_is_plain() -> None:
    drawn = [one.drawn for one in draw_many(SPACE, FROZEN, 1, "fine", range(100), Strategy())]
    assert drawn[:6] == ["plain", "density", "child", "density", "child", "plain"]
    assert Counter(drawn) == {"plain": 20, "density": 40, "child": 40}
    other = Counter(
        one.drawn
        for one in draw_many(SPACE, FROZEN, 1, "fine", range(100), Strategy(plain=0.5, density=0.8))
    )
    assert other == {"plain": 50, "density": 40, "child": 10}


def test_a_start_without_knowledge_is_a_sobol_sequence() -> None:
    drawn = draw_many(SPACE, NOTHING, 1, "coarse", range(64), Strategy())
    assert {one.drawn for one in drawn} == {"sobol"} and all(one.drawn in DRAWN for one in drawn)
    assert Counter(one.hyperparameters["depth"] for one in drawn) == dict.fromkeys((1, 2, 3, 4), 16)


def test_with_too_few_trials_for_densities_all_are_children() -> None:
    few = freeze(SPACE, SPACE, searched(8))
    assert {one.drawn for one in draw_many(SPACE, few, 1, "fine", range(30), DENSITY_ONLY)} == {
        "child"
    }


@pytest.mark.parametrize("options", [DENSITY_ONLY, CHILD_ONLY])
def test_what_is_bred_is_better_than_what_it_was_bred_from(options: Strategy) -> None:
    before = mean(one.measured[0][1] for one in searched())
    after = [
        near(one.hyperparameters) for one in draw_many(SPACE, FROZEN, 5, "fine", range(60), options)
    ]
    assert mean(after) > before / 2


def test_bred_configurations_name_the_trials_that_they_come_from() -> None:
    known = {one.trial: one.hyperparameters for one in searched()}
    for one in draw_many(SPACE, FROZEN, 1, "fine", range(50), Strategy()):
        assert set(one.parents) <= set(known) and len(one.parents) <= (
            2 if one.drawn == "child" else 1
        )
        assert bool(one.parents) == (one.drawn != "plain")


def test_a_child_is_near_its_parents() -> None:
    line = Space.parse({"x": {"uniform": [0.0, 1.0]}, "y": {"uniform": [0.0, 1.0]}})
    frozen = freeze(
        line,
        line,
        [seen(0, {"x": 0.2, "y": 0.3}, (1.0, 1.0)), seen(1, {"x": 0.8, "y": 0.7}, (1.0, 0.9))],
    )
    xs = [
        float(one.hyperparameters["x"])
        for one in draw_many(line, frozen, 1, "fine", range(400), CHILD_ONLY)
    ]
    close = [min(abs(x - 0.2), abs(x - 0.8)) for x in xs]
    assert mean(close) == pytest.approx(
        0.1 * math.sqrt(2 / math.pi), abs=0.015
    )  # the mean of a folded normal of 0.1
    assert sum(abs(x - 0.2) < abs(x - 0.8) for x in xs) > 220  # more often from the better one


def test_a_child_has_some_of_it_from_a_second_parent() -> None:
    line = Space.parse({"x": {"uniform": [0.0, 1.0]}, "y": {"uniform": [0.0, 1.0]}})
    frozen = freeze(
        line,
        line,
        [seen(0, {"x": 0.2, "y": 0.2}, (1.0, 1.0)), seen(1, {"x": 0.8, "y": 0.8}, (1.0, 0.9))],
    )
    drawn = draw_many(line, frozen, 1, "fine", range(400), CHILD_ONLY)
    mixed = [
        one
        for one in drawn
        if (float(one.hyperparameters["x"]) < 0.5) != (float(one.hyperparameters["y"]) < 0.5)
    ]
    assert len(mixed) == pytest.approx(
        400 * 2 * 0.7 * 0.3 * 2 * 0.73 * 0.27, abs=25
    )  # of two, drawn with weights 0.73 and 0.27
    assert all(len(one.parents) == 2 for one in mixed)


def test_clipping_reaches_the_end_of_a_range_and_mirroring_does_not() -> None:
    line = Space.parse({"x": {"uniform": [0.0, 1.0]}})
    frozen = freeze(line, line, [seen(0, {"x": 0.0}, (1.0, 1.0))])
    at_end = dict.fromkeys((0.0, 0.5, 1.0), 0)
    for clip in at_end:
        drawn = draw_many(
            line, frozen, 1, "fine", range(200), Strategy(clip=clip, plain=0.0, density=0.0)
        )
        at_end[clip] = sum(one.hyperparameters["x"] == 0.0 for one in drawn)
    assert at_end[0.0] == 0 and 30 < at_end[0.5] < 75 and 80 < at_end[1.0] < 120


def test_an_option_is_kept_four_times_of_five_and_else_drawn_anew() -> None:
    line = Space.parse({"x": {"choice": ["a", "b", "c", "d"]}})
    frozen = freeze(line, line, [seen(0, {"x": "c"}, (1.0, 1.0))])
    counts = Counter(
        one.hyperparameters["x"]
        for one in draw_many(line, frozen, 1, "fine", range(1000), CHILD_ONLY)
    )
    assert counts["c"] == pytest.approx(850, abs=40) and min(counts.values()) > 25


def test_the_density_rule_keeps_away_from_bad_trials() -> None:
    """Good trials are all over the upper half, bad ones between 0.5 and 0.6.

    The rule then never draws there.
    """
    line = Space.parse({"x": {"uniform": [0.0, 1.0]}})
    good = [seen(i, {"x": 0.5 + i / 60}, (1.0, 1.0)) for i in range(30)]
    bad = [seen(100 + i, {"x": 0.5 + 0.1 * i / 170}, (1.0, 0.0)) for i in range(170)]
    frozen = freeze(line, line, [*good, *bad])
    xs = [
        float(one.hyperparameters["x"])
        for one in draw_many(line, frozen, 1, "fine", range(100), DENSITY_ONLY)
    ]
    assert sum(0.5 < x < 0.6 for x in xs) == 0


def test_a_space_without_anything_to_sample_has_one_configuration() -> None:
    fixed = Space.parse({"optimizer": "sgd"})
    for known in ([], [seen(0, {"optimizer": "sgd"}, (1.0, 1.0))]):
        drawn = draw_many(fixed, freeze(fixed, fixed, known), 1, "fine", range(5), Strategy())
        assert [one.hyperparameters for one in drawn] == [{"optimizer": "sgd"}] * 5


def test_whole_numbers_have_equal_shares_in_plain_draws() -> None:
    counts = Counter(
        one.hyperparameters["depth"]
        for one in draw_many(SPACE, FROZEN, 1, "fine", range(2000), PLAIN_ONLY)
    )
    assert (
        all(count == pytest.approx(500, abs=70) for count in counts.values()) and len(counts) == 4
    )
    assert isinstance(SPACE.parameters["activation"], Choice)
