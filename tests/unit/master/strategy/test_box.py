from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.search.parameters import Numeric
from common.search.space import Space
from common.search.stage import Strategy
from common.search.values import Hyperparameters
from master.strategy.borders import borders_of
from master.strategy.box import propose
from master.strategy.drawing import draw_many
from master.strategy.freezing import Seen, freeze
from tests.unit.master.strategy.made import searched, seen

LOG = Space.parse({"learning_rate": {"log_uniform": [1e-6, 1e-2]}})


def at_end(space: Space, box: Space, side: str, n: int = 12) -> list[Seen]:
    """The best trials all press against one end of the box."""
    ends = {name: getattr(parameter, side) for name, parameter in box.numeric.items()}
    return [seen(i, dict(ends), (1.0, -float(i))) for i in range(n)]


def moves(space: Space, side: str, n: int) -> list[Space]:
    """The boxes of ``n`` launches, each with the best at the end of the box before."""
    boxes = [space]
    for _ in range(n):
        boxes.append(propose(space, boxes[-1], at_end(space, boxes[-1], side)).space)
    return boxes


@pytest.mark.parametrize("side", ["low", "high"])
@pytest.mark.parametrize(
    "raw",
    [
        {"uniform": [-8e307, 8e307]},
        {"uniform": [0.0, 1.7e308]},
        {"log_uniform": [1e-300, 1e308]},
        {"log_uniform": [2.3e-308, 1.0]},
    ],
)
def test_near_the_largest_and_the_smallest_double_a_range_still_moves_or_stays(
    raw: dict[str, list[float]], side: str
) -> None:
    for box in moves(Space.parse({"x": raw}), side, 3):
        low, high = box.numeric["x"].low, box.numeric["x"].high
        assert math.isfinite(high - low) and low < high
        assert low <= box.numeric["x"].from_unit(0.5) <= high


def test_an_end_that_the_best_press_against_moves_half_the_first_range_and_again_up_to_all_of_it(
) -> None:  # fmt: skip
    ends = [box.numeric["learning_rate"].high for box in moves(LOG, "high", 3)]
    assert ends == pytest.approx([1e-2, 1.0, 100.0, 100.0])
    assert [box.numeric["learning_rate"].low for box in moves(LOG, "low", 3)] == pytest.approx(
        [1e-6, 1e-8, 1e-10, 1e-10]
    )


def test_the_other_end_and_the_other_hyperparameters_stay() -> None:
    space = Space.parse(
        {
            "learning_rate": {"log_uniform": [1e-6, 1e-2]},
            "x": {"uniform": [0.0, 1.0]},
            "optimizer": "sgd",
        }
    )
    trials = [
        seen(i, {"learning_rate": 1e-2, "x": 0.5, "optimizer": "sgd"}, (1.0, 0.0))
        for i in range(12)
    ]
    proposal = propose(space, space, trials)
    assert (
        proposal.space.numeric["learning_rate"].low == 1e-6
        and proposal.space.parameters["x"] == space.parameters["x"]
    )
    assert proposal.space.parameters["optimizer"] == space.parameters["optimizer"]


def test_nothing_narrows_and_no_option_is_dropped() -> None:
    space = Space.parse({"x": {"uniform": [0.0, 1.0]}, "activation": {"choice": ["relu", "tanh"]}})
    peak: Callable[[Hyperparameters], float] = lambda h: (  # noqa: E731
        -abs(float(h["x"]) - 0.4) - (h["activation"] == "relu")
    )
    assert propose(space, space, searched(100, peak, space)).space == space


def test_weak_support_moves_nothing_and_is_told() -> None:
    trials = [
        seen(i, {"learning_rate": 1e-2 if i < 3 else 1e-4}, (1.0, -float(i))) for i in range(10)
    ]
    proposal = propose(LOG, LOG, trials)
    assert (
        proposal.space == LOG
        and "support 3 of the best 10: too weak" in proposal.notes["learning_rate"]
    )


def test_the_longest_trained_are_asked_first() -> None:
    """At one epoch the best lie on the high border; the trials that went on say otherwise."""
    short = [seen(i, {"learning_rate": 1e-2}, (1.0, 10.0)) for i in range(20)]
    long = [seen(i, {"learning_rate": 1e-4}, (1.0, 1.0), (7.0, 2.0), stage=1) for i in range(10)]
    assert propose(LOG, LOG, short).space != LOG
    assert propose(LOG, LOG, [*short, *long]).space == LOG


def test_limits_are_never_passed() -> None:
    space = Space.parse(
        {
            "x": {"uniform": [0.2, 0.8], "limits": [0.1, 0.9]},
            "dropout": {"uniform": [0.0, 0.5]},
            "depth": {"int_uniform": [1, 4]},
        }
    )
    low, high = moves(space, "low", 3)[-1], moves(space, "high", 3)[-1]
    assert (low.numeric["x"].low, high.numeric["x"].high) == (0.1, 0.9)
    assert low.numeric["dropout"].low == 0.0 and low.numeric["depth"].low == 1
    assert high.numeric["dropout"].high == pytest.approx(0.999)
    note = propose(space, low, at_end(space, low, "low")).notes["x"]
    assert "0.1 is as far as that end may go" in note


def test_whole_numbers_move_by_whole_numbers() -> None:
    space = Space.parse({"depth": {"int_uniform": [3, 4]}})
    assert [box.numeric["depth"].high for box in moves(space, "high", 4)] == [4, 5, 6, 6, 6]
    assert [box.numeric["depth"].low for box in moves(space, "low", 4)] == [3, 2, 1, 1, 1]


def test_a_range_of_the_user_s_beyond_the_farthest_stays() -> None:
    box = Space.parse({"learning_rate": {"log_uniform": [1e-6, 1e6]}})
    assert propose(LOG, box, at_end(LOG, box, "high")).space == box


def test_no_trials_leave_the_box_and_say_so() -> None:
    proposal = propose(LOG, LOG, [])
    assert proposal.space == LOG and proposal.notes == {
        "learning_rate": "kept: no trial has learned anything yet"
    }


def test_every_sampled_hyperparameter_has_a_note() -> None:
    space = Space.parse(
        {
            "x": {"uniform": [0.0, 1.0]},
            "activation": {"choice": ["relu", "tanh"]},
            "optimizer": "sgd",
        }
    )
    assert set(propose(space, space, searched(30, lambda h: float(h["x"]), space)).notes) == {
        "x",
        "activation",
    }


def test_it_moves_exactly_where_master_borders_says_that_it_does() -> None:
    space = Space.parse({"x": {"uniform": [0.0, 1.0]}, "depth": {"int_uniform": [2, 5]}})
    for number in range(40):
        trials = searched(40, lambda h: float(h["x"]) + 0.3 * float(h["depth"]), space, seed=number)
        top = [one.hyperparameters for one in sorted(trials, key=lambda one: -one.measured[0][1])]
        told = {border.hyperparameter for border in borders_of(top, space) if border.moves}
        moved = propose(space, space, trials).space
        assert {
            name for name in space.numeric if moved.numeric[name] != space.numeric[name]
        } == told


def place(first: Numeric, value: float, half: float) -> float:
    low, high = first.scaled
    return (first.to_scale(value + half) - low) / (high - low)


RANGES = st.sampled_from(["uniform", "log_uniform", "int_uniform", "log_int_uniform"])


@given(
    kind=RANGES,
    low=st.integers(1, 1000),
    width=st.integers(1, 5000),
    side=st.sampled_from(["low", "high"]),
)
@settings(max_examples=150, deadline=None)
def test_an_end_moves_at_most_the_width_of_the_first_range_in_all(
    kind: str, low: int, width: int, side: str
) -> None:
    space = Space.parse({"x": {kind: [low, low + width]}})
    first = space.numeric["x"]
    boxes = moves(space, side, 5)
    half = 0.5 if first.integer else 0.0
    for before, after in pairwise(boxes):
        own, old = after.numeric["x"], before.numeric["x"]
        assert own.low <= old.low and own.high >= old.high
        assert space.limits("x")[0] <= own.low and own.high <= space.limits("x")[1]
        assert (
            place(first, own.low, -half) >= -1 - 1e-6 and place(first, own.high, half) <= 2 + 1e-6
        )
    assert boxes[-1] == boxes[-2]


def test_few_trials_are_enough_for_an_end_to_move() -> None:
    space = Space.parse({"x": {"log_uniform": [1e-6, 1e-3]}})
    trials = [seen(i, {"x": 9e-4}, (1.0, -float(i))) for i in range(5)]
    assert propose(space, space, trials).space.numeric["x"].high == pytest.approx(
        10**-1.5, rel=1e-2
    )


@pytest.mark.parametrize(("name", "high"), [("dropout", 0.999), ("momentum", 0.999), ("x", 1.2)])
def test_a_moved_end_stays_within_what_the_hyperparameter_allows(name: str, high: float) -> None:
    space = Space.parse({name: {"uniform": [0.0, 0.8]}})
    trials = [seen(i, {name: 0.79}, (1.0, 0.0)) for i in range(12)]
    assert propose(space, space, trials).space.numeric[name].high == pytest.approx(high)


def test_explosions_and_trials_that_were_not_measured_say_nothing_of_a_border() -> None:
    exploded = [seen(i, {"learning_rate": 1e-2}, (1.0, -math.inf)) for i in range(20)]
    unmeasured = [seen(20 + i, {"learning_rate": 1e-2}) for i in range(20)]
    proposal = propose(LOG, LOG, [*exploded, *unmeasured])
    assert proposal.space == LOG and proposal.notes == {
        "learning_rate": "kept: no trial has learned anything yet"
    }


PARAMETERS = st.sampled_from(
    [
        {"log_uniform": [1e-6, 1e1]},
        {"log_uniform": [1e-3, 2e-3]},
        {"uniform": [0.0, 0.8]},
        {"uniform": [-5.0, 1000.0]},
        {"uniform": [0.2, 0.3], "limits": [0.1, 0.35]},
        {"int_uniform": [1, 2]},
        {"int_uniform": [3, 400]},
        {"log_int_uniform": [1, 3]},
        {"log_int_uniform": [16, 1024]},
        {"choice": [1, 2, 3]},
    ]
)


@given(
    raw=st.dictionaries(st.sampled_from(["decay", "noise", "x", "y"]), PARAMETERS, min_size=1),
    data=st.data(),
)
@settings(max_examples=120, deadline=None)
def test_whatever_came_out_the_proposal_can_be_sampled_and_holds_all_that_was_sampled(
    raw: dict[str, object], data: st.DataObject
) -> None:
    first = box = Space.parse(raw)
    weights = {name: data.draw(st.floats(-1, 1)) for name in first.parameters}
    floor, n = data.draw(st.floats(-1, 1)), data.draw(st.integers(1, 120))

    def goodness(hyperparameters: Hyperparameters) -> float:
        total = sum(
            weights[name] * own.to_unit(hyperparameters[name])
            for name, own in first.sampled.items()
        )  # type: ignore[arg-type]
        return total if total >= floor else -math.inf

    trials: list[Seen] = []
    for number in range(3):
        drawn = draw_many(first, freeze(first, box, trials), 1, f"s{number}", range(n), Strategy())
        trials += [
            seen(i, one.hyperparameters, (1.0, goodness(one.hyperparameters)), stage=number)
            for i, one in enumerate(drawn)
        ]
        proposal = propose(first, box, trials)
        assert (
            Space.parse(proposal.space.plain()) == proposal.space
        )  # nothing empty, upside down, or beyond what is allowed
        assert proposal.notes.keys() == proposal.space.sampled.keys() and all(
            proposal.notes.values()
        )
        for name, own in proposal.space.numeric.items():
            least, most = first.limits(name)
            assert least <= own.low < own.high <= most
            assert all(
                own.low <= one.hyperparameters[name] <= own.high  # type: ignore[operator]
                for one in trials
            )
        box = proposal.space
