from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.search.space import Space
from master.strategy.borders import borders
from master.strategy.scales import outer, outer_share, past
from tests.unit.master.made import between, exploded, peak, ranking, record, sampled

LOG = Space.parse({"learning_rate": {"log_uniform": [1e-6, 1e-3]}})


def test_a_range_that_ends_far_too_low_is_told_with_support() -> None:
    found = borders(sampled(LOG, peak(0.1)), LOG)
    assert [(b.hyperparameter, b.side) for b in found] == [("learning_rate", "high")]
    assert found[0].support >= 4 and found[0].moves
    assert "[1e-06, 0.001]" in found[0].advice
    assert f"{found[0].support} of the best 10" in found[0].advice
    assert "try learning_rate = { log_uniform = [3.16e-05, 0.0316] }" in found[0].advice


def test_the_advice_can_be_pasted_into_a_search_file() -> None:
    advice = borders(sampled(LOG, peak(0.1)), LOG)[0].advice
    Space.parse(tomllib.loads(advice.partition("; try ")[2]))


def test_a_range_around_the_optimum_gives_none() -> None:
    wide = Space.parse({"learning_rate": {"log_uniform": [1e-6, 1e1]}})
    for seed in range(10):
        assert borders(sampled(wide, peak(0.01), seed=seed), wide) == []


@pytest.mark.parametrize(
    ("mode", "value"),
    [("max", lambda v: -abs(math.log10(v) + 6)), ("min", lambda v: abs(math.log10(v) + 6))],
)
def test_the_border_of_the_search_s_own_metric_is_watched(
    mode: str, value: Callable[[float], float]
) -> None:
    records = [
        record(i, {"learning_rate": v}, metric="val_own", mode=mode, value=value(v), val_acc=v)
        for i, v in enumerate(between(1e-6, 1e-3, 60))
    ]
    assert [(b.hyperparameter, b.side) for b in borders(records, LOG)] == [("learning_rate", "low")]


def test_the_json_is_the_contract() -> None:
    found = borders(ranking([9.9e-4, 1e-5]), LOG)[0]
    assert list(found.as_json) == ["hyperparameter", "side", "best", "range", "support", "advice"]
    assert json.loads(json.dumps(found.as_json, allow_nan=False)) == {
        "hyperparameter": "learning_rate",
        "side": "high",
        "best": 9.9e-4,
        "range": [1e-6, 1e-3],
        "support": 1,
        "advice": found.advice,
    }


@pytest.mark.parametrize(
    ("value", "side"),
    [(1.3e-6, "low"), (1.5e-6, None), (5e-5, None), (7e-4, None), (7.2e-4, "high")],
)
def test_the_border_is_the_outer_5_percent_in_the_sampling_scale(
    value: float, side: str | None
) -> None:
    found = borders(ranking([value]), LOG)
    assert [b.side for b in found] == ([side] if side else [])


def test_support_counts_the_best_ten_in_the_outer_tenth_of_that_side() -> None:
    high, low, inside = [9.9e-4, 6e-4, 8e-4], [1.1e-6] * 3, [1e-4] * 4
    found = borders(ranking([*high, *low, *inside, *[9.9e-4] * 50]), LOG)[0]
    assert (found.side, found.support, found.moves) == ("high", 3, False)


def test_only_the_best_value_decides_whether_there_is_a_border() -> None:
    assert borders(ranking([1e-4, *[9.9e-4] * 9]), LOG) == []


def test_explosions_have_no_best_value() -> None:
    assert borders(exploded([9.9e-4] * 20), LOG) == []


def test_the_natural_end_of_a_hyperparameter_is_told_as_such() -> None:
    space = Space.parse({"dropout": {"uniform": [0.0, 0.8]}})
    found = borders(ranking([0.01] * 10, "dropout"), space)[0]
    assert found.support == 10
    assert "0 is as low as dropout may go" in found.advice and "try dropout" not in found.advice


def test_the_users_limits_bound_what_is_advised() -> None:
    space = Space.parse({"x": {"uniform": [0.2, 0.8], "limits": [0.0, 0.9]}})
    assert "{ uniform = [0.5, 0.9] }" in borders(ranking([0.79], "x"), space)[0].advice


def test_a_whole_number_at_its_end_is_told_and_moves_only_beyond_chance() -> None:
    space = Space.parse({"depth": {"int_uniform": [1, 4]}})
    four = borders(ranking([4, 4, 4, 4, 1, 1, 2, 2, 3, 3], "depth"), space)[0]
    assert (four.side, four.best, four.support, four.moves) == (
        "high",
        4,
        4,
        False,
    )  # a quarter of all trials have it
    assert isinstance(four.best, int)
    eight = borders(ranking([4] * 8 + [1, 2], "depth"), space)[0]
    assert eight.moves and "int_uniform = [2, 5]" in eight.advice
    assert borders(ranking([3] * 10, "depth"), space) == []


def test_choices_and_fixed_values_have_no_borders() -> None:
    space = Space.parse({"hidden": {"choice": [32, 64]}, "optimizer": "sgd"})
    assert borders([record(0, {"hidden": 64, "optimizer": "sgd"}, val_acc=1.0)], space) == []


@pytest.mark.parametrize(
    "parameter",
    [
        {"uniform": [0, 1]},
        {"log_uniform": [1e-5, 1]},
        {"int_uniform": [1, 3]},
        {"int_uniform": [0, 40]},
        {"log_int_uniform": [8, 900]},
    ],
)
def test_the_chance_of_the_outer_tenth_is_what_sampling_gives(
    parameter: dict[str, list[float]],
) -> None:
    numeric = Space.parse({"x": parameter}).numeric["x"]
    values = [numeric.from_unit((i + 0.5) / 20_000) for i in range(20_000)]
    for side in ("low", "high"):
        assert sum(outer(numeric, v, 0.1) == side for v in values) / 20_000 == pytest.approx(
            outer_share(numeric, side, 0.1), abs=2e-3
        )


@given(low=st.floats(1e-100, 1e100), factor=st.floats(1.0001, 1e100), log=st.booleans())
@settings(max_examples=200)
def test_a_range_moves_outwards_by_at_most_half_its_width(
    low: float, factor: float, log: bool
) -> None:
    high = low * factor
    space = Space.parse({"x": {"log_uniform" if log else "uniform": [low, high]}})
    numeric = space.numeric["x"]
    a, b = numeric.scaled
    for side, outwards in (("low", -1), ("high", 1)):
        end = past(space, "x", side)
        if end is None:
            continue
        assert math.isfinite(end) and (end < low if side == "low" else end > high)
        moved = outwards * (numeric.to_scale(end) - (a if side == "low" else b))
        assert 0 < moved <= 0.5 * (b - a) * (1 + 1e-6) + 1e-12


def test_a_range_that_starts_at_zero_never_turns_negative() -> None:
    assert past(Space.parse({"noise": {"uniform": [0.0, 1.0]}}), "noise", "low") is None
    assert past(Space.parse({"noise": {"uniform": [0.1, 1.0]}}), "noise", "low") == 0.0
    assert past(Space.parse({"depth": {"int_uniform": [1, 9]}}), "depth", "low") is None
    assert past(Space.parse({"depth": {"int_uniform": [2, 9]}}), "depth", "low") == 1
    assert past(Space.parse({"shift": {"uniform": [-1.0, 1.0]}}), "shift", "low") == -2.0


@pytest.mark.slow
def test_a_border_of_values_that_were_spread_over_the_range_is_rare() -> None:
    """By chance, a support of four comes once in a hundred rankings.

    The best value must be at the border as well.
    """
    wide = Space.parse({"x": {"uniform": [0, 1]}})
    moved = sum(
        any(
            b.moves
            for b in borders(sampled(wide, lambda h: hash(h["x"]) % 997 / 997, n=40, seed=s), wide)
        )
        for s in range(300)
    )
    assert moved <= 9


def test_a_log_spread_is_judged_in_decades() -> None:
    assert borders(ranking(between(1e-5, 1e-4, 10)), LOG) == []
