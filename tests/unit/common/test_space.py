from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.search.parameters import (
    Choice,
    Fixed,
    IntUniform,
    LogIntUniform,
    LogNormal,
    LogUniform,
    Normal,
    Uniform,
)
from common.search.parse_parameter import parse_parameter
from common.search.space import Space

UNITS = st.floats(0, 1, exclude_max=True)
POSITIVE = st.floats(1e-300, 1e300)


def nested(depth: int) -> list[Any]:
    """Lists inside one another."""
    return [nested(depth - 1)] if depth > 1 else []


def parsed(raw: object, name: str = "x") -> Any:
    return parse_parameter(raw, f"[space] {name}", name)


@given(unit=UNITS, low=POSITIVE, factor=st.floats(1.001, 1e6))
def test_log_uniform_to_the_unit_interval_and_back(unit: float, low: float, factor: float) -> None:
    assume(low * factor < 1e300)
    parameter = LogUniform(low, low * factor)
    value = parameter.from_unit(unit)
    assert low <= value <= low * factor
    assert parameter.to_unit(value) == pytest.approx(unit, abs=1e-9)


@given(unit=UNITS, low=st.floats(-1e100, 1e100), width=st.floats(1e-3, 1e100))
def test_uniform_to_the_unit_interval_and_back(unit: float, low: float, width: float) -> None:
    assume(low + width > low)
    parameter = Uniform(low, low + width)
    value = parameter.from_unit(unit)
    assert low <= value <= low + width
    if abs(low) < 1e6 * width:
        assert parameter.to_unit(value) == pytest.approx(unit, abs=1e-6)


@given(unit=UNITS, low=st.integers(-1000, 1000), size=st.integers(1, 1000))
def test_whole_numbers_stay_whole_and_in_range(unit: float, low: int, size: int) -> None:
    value = IntUniform(low, low + size).from_unit(unit)
    assert isinstance(value, int) and low <= value <= low + size


@given(unit=UNITS, low=st.integers(1, 1000), size=st.integers(1, 10**6))
def test_log_whole_numbers_stay_whole_and_in_range(unit: float, low: int, size: int) -> None:
    value = LogIntUniform(low, low + size).from_unit(unit)
    assert isinstance(value, int) and low <= value <= low + size


@pytest.mark.parametrize("unit", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_stay_inside(unit: float) -> None:
    assert 1e-7 <= LogUniform(1e-7, 1.0).from_unit(unit) <= 1.0
    assert IntUniform(1, 3).from_unit(unit) in (1, 2, 3)
    assert LogIntUniform(1, 3).from_unit(unit) in (1, 2, 3)
    assert Choice((1, 2, 3)).from_unit(unit) in (1, 2, 3)


@given(unit=UNITS, low=st.integers(-100, 100), step=st.integers(1, 50), n=st.integers(1, 50))
def test_whole_steps_are_on_their_grid_and_go_back(
    unit: float, low: int, step: int, n: int
) -> None:
    parameter = IntUniform(low, low + n * step, step=step)
    value = parameter.from_unit(unit)
    assert isinstance(value, int) and value in range(low, low + n * step + 1, step)
    assert parameter.from_unit(min(parameter.to_unit(value), 1 - 2**-53)) == value
    assert parameter.n_values == n + 1


@given(unit=UNITS, low=st.integers(-20, 20), step=st.integers(1, 9), n=st.integers(1, 50))
def test_steps_of_fractions_are_the_decimal_numbers_that_a_user_would_write(
    unit: float, low: int, step: int, n: int
) -> None:
    parameter = Uniform(low / 10, (low + n * step) / 10, step=step / 10)
    value = parameter.from_unit(unit)
    assert value in [(low + k * step) / 10 for k in range(n + 1)]
    assert parameter.snap(value) == value


def test_steps_have_equal_shares() -> None:
    units = [(i + 0.5) / 6000 for i in range(6000)]
    counts = Counter(Uniform(0.0, 1.0, step=0.2).from_unit(u) for u in units)
    assert counts == dict.fromkeys((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), 1000)


@given(
    unit=UNITS,
    mean=st.floats(-50, 50),
    deviation=st.floats(0.01, 50),
    low=st.none() | st.floats(-3.5, 3.0),
    log=st.booleans(),
)
def test_a_normal_distribution_to_the_unit_interval_and_back(
    unit: float, mean: float, deviation: float, low: float | None, log: bool
) -> None:
    kind = LogNormal if log else Normal
    end = None if low is None else mean + low * deviation
    if log:
        end = None if end is None else math.exp(end)
    parameter = kind(mean, deviation, end)
    value = parameter.from_unit(unit)
    assert parameter.low <= value <= parameter.high
    assert end is None or value >= end
    assert parameter.to_unit(value) == pytest.approx(unit, abs=1e-6)


def test_a_normal_distribution_has_its_mean_and_its_deviation() -> None:
    units = [(i + 0.5) / 20_000 for i in range(20_000)]
    values = [Normal(3.0, 0.5).from_unit(u) for u in units]
    assert statistics.fmean(values) == pytest.approx(3.0, abs=1e-3)
    assert statistics.stdev(values) == pytest.approx(0.5, rel=1e-2)
    logs = [math.log(LogNormal(-2.0, 0.5).from_unit(u)) for u in units]
    assert statistics.fmean(logs) == pytest.approx(-2.0, abs=1e-3)
    half = [Normal(0.0, 1.0, least=0.0).from_unit(u) for u in units]
    assert min(half) >= 0 and statistics.fmean(half) == pytest.approx(math.sqrt(2 / math.pi), 1e-2)


def test_each_whole_number_and_option_has_its_full_share() -> None:
    units = [(i + 0.5) / 6000 for i in range(6000)]
    assert set(Counter(IntUniform(1, 6).from_unit(u) for u in units).values()) == {1000}
    assert set(Counter(Choice(("a", "b", "c")).from_unit(u) for u in units).values()) == {2000}


def test_log_whole_numbers_are_even_in_decades() -> None:
    values = [LogIntUniform(1, 1000).from_unit((i + 0.5) / 9000) for i in range(9000)]
    assert sum(v < 10 for v in values) / sum(10 <= v < 100 for v in values) == pytest.approx(
        1.28, abs=0.03
    )  # 9.5 / 0.5 to 99.5 / 9.5


@given(
    options=st.lists(
        st.one_of(st.integers(), st.text(), st.floats(allow_nan=False, allow_infinity=False)),
        min_size=1,
        unique=True,
    )
)
def test_a_choice_round_trips(options: list[int | str | float]) -> None:
    choice = Choice(tuple(options))
    assert [choice.from_unit(choice.to_unit(option)) for option in options] == options


RAW = {
    "learning_rate": {"log_uniform": [1e-6, 1e1]},
    "dropout": {"uniform": [0.0, 0.8], "limits": [0.0, 0.9]},
    "depth": {"int_uniform": [1, 4]},
    "width": {"log_int_uniform": [16, 512]},
    "hidden": {"choice": [32, 64.5, "a", True]},
    "steps": {"int_uniform": [32, 512], "step": 32, "limits": [0, 1024]},
    "tenths": {"uniform": [0.1, 0.8], "step": 0.1},
    "guess": {"normal": [0.5, 0.1]},
    "positive": {"log_normal": [-3.0, 2.0], "low": 1e-3, "high": 1.0},
    "layers": {"choice": [[64, 64], [128], [], {"kind": "deep", "units": [1, [2.5, True]]}]},
    "kernel": {"fixed": [3, 3]},
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "batch_size": 32,
}


def test_a_space_reads_back_as_it_was_written() -> None:
    space = Space.parse(RAW)
    assert space.plain() == RAW
    assert Space.parse(json.loads(json.dumps(space.plain()))) == space
    own = ["learning_rate", "dropout", "depth", "width", "hidden", "steps", "tenths"]
    assert list(space.sampled) == [*own, "guess", "positive", "layers"]
    assert list(space.ranged) == [name for name in own if name != "hidden"]
    assert list(space.numeric) == [*space.ranged, "guess", "positive"]


def test_a_plain_value_is_fixed_whatever_its_kind() -> None:
    assert parsed({"fixed": [64, 64]}) == Fixed([64, 64])
    assert parsed({"fixed": 0.5}) == parsed(0.5)
    assert [parsed(v) for v in (True, 3, 0.5, "sgd")] == [
        Fixed(True),
        Fixed(3),
        Fixed(0.5),
        Fixed("sgd"),
    ]
    assert parsed("sgd").from_unit(0.7) == "sgd"


def test_a_group_is_made_of_whole_numbers_and_choices_in_any_order() -> None:
    space = Space.parse(RAW)
    values = {"learning_rate": 0.1, "dropout": 0.5, "depth": 2, "width": 64, "hidden": "a"}
    values |= {"steps": 96, "layers": {"units": [1], "kind": "deep"}}
    assert space.group(values) == (
        '{"depth":2,"hidden":"a","layers":{"kind":"deep","units":[1]},"steps":96,"width":64}'
    )
    assert space.group(dict(reversed(values.items()))) == space.group(values)
    assert space.group(values | {"learning_rate": 9.0}) == space.group(values)
    assert space.n_groups() == 4 * 497 * 4 * 16 * 4


def test_a_choice_of_numbers_that_the_engine_lifts_keeps_no_trials_apart() -> None:
    space = Space.parse(
        {
            "momentum": {"choice": [0, 0.9]},
            "val_passes": {"choice": [0, 5]},
            "mine": {"choice": [0, 0.5]},
        }
    )
    assert (
        space.group({"momentum": 0.9, "val_passes": 5, "mine": 0.5})
        == '{"mine":0.5,"val_passes":5}'
    )
    assert space.n_groups() == 4


@pytest.mark.parametrize(
    ("name", "raw", "limits"),
    [
        ("dropout", {"uniform": [0.1, 0.8]}, (0, 0.999)),
        ("momentum", {"uniform": [0.1, 0.8]}, (0, 0.999)),
        ("weight_decay", {"log_uniform": [1e-5, 0.8]}, (0, math.inf)),
        ("dropout", {"uniform": [0.1, 0.4], "limits": [0.05, 0.5]}, (0.05, 0.5)),
        ("shift", {"uniform": [-1, 1]}, (-math.inf, math.inf)),
        ("noise", {"uniform": [0, 1]}, (0, math.inf)),
        ("offset", {"uniform": [0, 1], "limits": [-3, 3]}, (-3, 3)),
        ("depth", {"int_uniform": [1, 4]}, (1, math.inf)),
        ("skips", {"int_uniform": [0, 4]}, (0, math.inf)),
        ("hidden", {"log_int_uniform": [16, 64]}, (1, math.inf)),
    ],
)
def test_what_a_hyperparameter_allows(
    name: str, raw: dict[str, Any], limits: tuple[float, float]
) -> None:
    assert Space.parse({name: raw}).limits(name) == limits


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        (
            "x",
            {"uniform": [1, 0]},
            r"\[space\] x: the range \[1, 0\] is upside down; write \[0, 1\]",
        ),
        ("x", {"uniform": [1, 1]}, r"single point; write x = 1 instead"),
        (
            "x",
            {"log_uniform": [0, 1]},
            r"touches zero.*small positive number such as 1e-06, or use uniform",
        ),
        ("x", {"log_uniform": [-1, 1]}, r"touches zero"),
        ("x", {"log_int_uniform": [0, 8]}, r"touches zero.*start at 1, or use int_uniform"),
        ("x", {"uniform": [0, math.nan]}, r"nan is not a finite number"),
        ("x", {"uniform": [-math.inf, 0]}, r"-inf is not a finite number"),
        ("x", {"uniform": [-1.7e308, 1.7e308]}, r"too wide for a 64-bit number"),
        ("x", {"uniform": [0, 10**400]}, r"larger than 2\^53"),
        ("x", {"int_uniform": [0, 2.0**60]}, r"whole number within 2\^53"),
        ("x", {"int_uniform": [0.5, 3]}, r"0.5 is not a whole number"),
        ("x", {"uniform": [0]}, r"is not a pair; write \[low, high\]"),
        ("x", {"uniform": 3}, r"3 is not a pair"),
        ("x", {"uniform": ["a", 1]}, r"'a' is not a number"),
        ("x", {"uniform": [True, 1]}, r"True is not a number"),
        ("x", {"choice": []}, r"choice = \[\] has no options"),
        ("x", {"choice": [1, None]}, r"None is no value; use numbers, strings, booleans"),
        ("x", {"choice": [1, [math.nan]]}, r"nan is not a finite number"),
        ("x", {"choice": [[1, 2], [1, 2.0]]}, r"names an option twice"),
        ("x", {"choice": [{"a": 1, "b": [2]}, {"b": [2], "a": 1}]}, r"names an option twice"),
        ("x", {"fixed": nested(17)}, r"nested more than 16 levels deep; write it flatter"),
        ("x", {"fixed": 1, "limits": [0, 3]}, r"limits = \[0, 3\] has no meaning beside fixed"),
        ("x", {"int_uniform": [32, 512], "step": 0}, r"step = 0 cannot be a step; write a whole"),
        ("x", {"int_uniform": [32, 512], "step": 1.5}, r"step = 1.5 cannot be a step"),
        ("x", {"uniform": [0, 1], "step": -0.1}, r"step = -0.1 cannot be a step; write a number"),
        ("x", {"uniform": [0, 1], "step": "a"}, r"step = 'a' is not a number"),
        ("x", {"uniform": [0, 1], "step": 1e-17}, r"step = 1e-17 is too small"),
        (
            "x",
            {"int_uniform": [32, 500], "step": 32},
            r"from 32 on do not reach 500; write \[32, 480\] or \[32, 512\]",
        ),
        ("x", {"uniform": [0, 0.5], "step": 2}, r"do not reach 0.5; write \[0, 2\]"),
        (
            "x",
            {"log_uniform": [1, 8], "step": 1},
            r"step = 1 has no meaning beside log_uniform.*use int_uniform or uniform",
        ),
        ("x", {"normal": [0, 1], "step": 1}, r"step = 1 has no meaning beside normal; remove it"),
        (
            "x",
            {"normal": [0, 1], "limits": [0, 1]},
            r"limits = .* has no meaning beside normal; the ends of .* are low and high",
        ),
        ("x", {"normal": [0, 0]}, r"the second number is the standard deviation; write one above"),
        ("x", {"normal": [0]}, r"is not a pair; write \[mean, deviation\]"),
        ("x", {"normal": [1e308, 1e308]}, r"cannot hold or tell apart"),
        ("x", {"normal": [1.0, 1e-300]}, r"cannot hold or tell apart"),
        ("x", {"log_normal": [0, 400]}, r"deviation of the natural logarithm"),
        ("x", {"normal": [0, 1], "low": 5}, r"leave nothing of normal = \[0, 1\], .* -4 to 4"),
        ("x", {"normal": [0, 1], "low": 1, "high": 0}, r"leave nothing"),
        ("x", {"normal": [0, 1], "low": math.inf}, r"inf is not a finite number"),
        ("x", {"normal": [0, 1], "high": "a"}, r"high = 'a' is not a number"),
        ("x", {"choice": [1.0, math.nan]}, r"nan is not a finite number"),
        ("x", {"choice": [1, 2, 1]}, r"names an option twice"),
        ("x", {"choice": [1, 1.0]}, r"names an option twice"),
        (
            "x",
            {"choice": [1, 2], "limits": [0, 3]},
            r"limits = \[0, 3\] has no meaning beside choice",
        ),
        ("x", {"loguniform": [1, 2]}, r"loguniform is not a way to sample; use one of log_uniform"),
        (
            "x",
            {"uniform": [0, 1], "log_uniform": [1, 2]},
            r"uniform, log_uniform is not a way to sample",
        ),
        ("x", {}, r"nothing is not a way to sample"),
        ("x", [1, 2], r"a list of options is written \{ choice = \[1, 2\] \}"),
        ("x", math.inf, r"inf is not a finite number"),
        ("x", 2**64, r"does not fit in 64 bits"),
        ("dropout", {"uniform": [0, 1]}, r"exceeds the limits \[0, 0.999\]"),
        ("learning_rate", {"uniform": [-0.1, 1]}, r"exceeds the limits \[0, inf\]"),
        ("x", {"uniform": [0, 1], "limits": [0.5, 2]}, r"exceeds the limits \[0.5, 2\]"),
        (
            "x",
            {"uniform": [0, 1], "limits": [2, -1]},
            r"limits = \[2, -1\] are upside down; write \[-1, 2\]",
        ),
        ("x", {"int_uniform": [2, 3], "limits": [1.5, 8]}, r"limits = .*1.5 is not a whole number"),
    ],
)
def test_what_cannot_be_sampled_is_told_with_place_value_and_remedy(
    name: str, raw: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Space.parse({name: raw})


@pytest.mark.parametrize(
    "raw",
    [
        5e-324,
        {"log_uniform": [1e-310, 1e-8]},
        {"choice": [0.1, -1e-320]},
        {"uniform": [0.0, 1e-309]},
    ],
)
def test_what_training_would_take_for_zero_is_refused(raw: object) -> None:
    with pytest.raises(ConfigError, match="so near to zero that training takes it for 0"):
        Space.parse({"eps": raw})
    Space.parse({"eps": {"uniform": [0.0, 1e-300]}})


@pytest.mark.parametrize("raw", [{}, [], None, "x"])
def test_an_empty_space_is_told(raw: object) -> None:
    with pytest.raises(ConfigError, match="is not a table of hyperparameters; add learning_rate"):
        Space.parse(raw)


JSONISH = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates()
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "uniform",
                    "log_uniform",
                    "int_uniform",
                    "log_int_uniform",
                    "choice",
                    "limits",
                    "x",
                ]
            ),
            inner,
        ),
    ),
    max_leaves=8,
)


@given(
    raw=st.dictionaries(st.sampled_from(["x", "dropout", "learning_rate"]), JSONISH, max_size=3),
    unit=UNITS,
)
@settings(max_examples=300)
def test_whatever_the_file_says_it_is_sampled_or_refused(raw: dict[str, Any], unit: float) -> None:
    try:
        space = Space.parse(raw)
    except ConfigError as error:
        assert str(error).startswith("[space]")
        return
    assert Space.parse(space.plain()) == space
    values = {name: p.from_unit(unit) for name, p in space.parameters.items()}
    json.dumps(values, allow_nan=False)
    json.loads(space.group(values))


def test_the_ways_to_write_a_range_in_toml() -> None:
    text = "[space]\na = { uniform = [0, 1] }\nb.int_uniform = [1, 2]\n[space.c]\nchoice = ['x']\n"
    assert Space.parse(tomllib.loads(text)["space"]).plain() == {
        "a": {"uniform": [0.0, 1.0]},
        "b": {"int_uniform": [1, 2]},
        "c": {"choice": ["x"]},
    }
