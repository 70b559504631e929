from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest

from common.errors import CheckpointError
from common.search.space import Space
from master.strategy.freezing import MOST_KERNELS, Frozen, Seen, freeze
from tests.unit.master.strategy.made import SPACE, searched, seen

LINE = Space.parse({"x": {"uniform": [0.0, 10.0]}})


def line(*goodness: float, stage: int = 0, epochs: float = 1.0) -> list[Seen]:
    """Trials 0, 1, 2, ... at x = 0, 1, 2, ... of a stage with these values."""
    return [seen(i, {"x": float(i)}, (epochs, own), stage=stage) for i, own in enumerate(goodness)]


def parents(*trials: Seen) -> list[str]:
    return [known.trial for known in freeze(LINE, LINE, trials).parents]


def test_parents_are_the_longest_trained_then_the_best_of_all_stages() -> None:
    long = seen(9, {"x": 9.0}, (1.0, 0.1), (7.0, 0.2), stage=1)
    assert parents(*line(0.5, 0.9, 0.7), long) == ["b-0009", "a-0001", "a-0002", "a-0000"]


def test_equal_parents_are_ordered_by_stage_and_number() -> None:
    later = line(0.5, 0.5, stage=1)
    assert parents(*later, *line(0.5, 0.5)) == ["a-0000", "a-0001", "b-0000", "b-0001"]


def test_there_are_five_parents_at_most() -> None:
    assert len(parents(*line(*range(9)))) == 5


def test_a_trial_that_exploded_is_bad_and_no_parent() -> None:
    exploded = seen(8, {"x": 8.0}, (1.0, 5.0), (7.0, -math.inf))
    frozen = freeze(LINE, LINE, [*line(*range(8), epochs=7.0), exploded])
    assert (
        "a-0008" not in [known.trial for known in frozen.parents]
        and frozen.bad[-1].trial == "a-0008"
    )


def test_good_and_bad_are_told_apart_at_the_most_epochs_with_twice_as_many_trials_as_a_simplex_has_corners(  # noqa: E501
) -> None:  # fmt: skip
    short = line(*range(8))
    assert not freeze(LINE, LINE, short[:3]).good
    assert [known.trial for known in freeze(LINE, LINE, short).good] == ["a-0007", "a-0006"]
    three = [seen(i, {"x": float(i)}, (1.0, 0.0), (7.0, float(i)), stage=1) for i in range(3)]
    assert freeze(LINE, LINE, [*short, *three]).epochs == 1.0
    four = [*three, seen(3, {"x": 3.0}, (1.0, 0.0), (7.0, 3.0), stage=1)]
    frozen = freeze(LINE, LINE, [*short, *four])
    assert frozen.epochs == 7.0 and {known.trial for known in (*frozen.good, *frozen.bad)} == {
        f"b-000{i}" for i in range(4)
    }


def test_the_good_are_a_share_once_there_are_many() -> None:
    frozen = freeze(LINE, LINE, [seen(i, {"x": i / 10}, (1.0, float(i))) for i in range(100)])
    assert (len(frozen.good), len(frozen.bad)) == (15, 85)
    assert min(known.z[0] for known in frozen.good) > max(known.z[0] for known in frozen.bad)


def test_widths_follow_the_spread_down_to_a_floor() -> None:
    frozen = freeze(
        LINE,
        LINE,
        [seen(i, {"x": 5.0 if i >= 85 else i / 10}, (1.0, float(i))) for i in range(100)],
    )
    assert frozen.good_width == (0.03,) and frozen.bad_width[0] == pytest.approx(
        0.245 * 85 ** (-1 / 5), rel=0.01
    )


def test_very_many_trials_are_thinned_evenly() -> None:
    frozen = freeze(LINE, LINE, [seen(i, {"x": i / 1000}, (1.0, float(i))) for i in range(10_000)])
    assert len(frozen.bad) == MOST_KERNELS and frozen.good[0].trial == "a-9999"
    places = [known.z[0] for known in frozen.bad]
    assert places[0] == pytest.approx(0.85, abs=0.01) and places[-1] == pytest.approx(0.0, abs=0.01)


def test_places_are_told_in_the_first_range_on_the_sampling_scale() -> None:
    box = Space.parse(
        SPACE.plain()
        | {
            "learning_rate": {"log_uniform": [1e-4, 1e1]},
            "depth": {"int_uniform": [2, 3]},
            "activation": {"choice": ["gelu", "elu"]},
        }
    )
    values = {
        "learning_rate": 1e-1,
        "dropout": 0.2,
        "depth": 1,
        "hidden": 16,
        "activation": "gelu",
        "optimizer": "sgd",
    }
    (known,) = freeze(SPACE, box, [seen(0, values, (1.0, 1.0))]).parents
    learning_rate, dropout, depth, hidden, activation = known.z
    assert learning_rate == pytest.approx(1.0) and dropout == pytest.approx(0.25)
    assert (
        depth == pytest.approx(1 / 8) and 0 < hidden < 0.02
    )  # the middle of the first of four shares, of a log one
    assert activation == pytest.approx(
        2.5 / 4
    )  # elu came with the box, behind the three first ones


@pytest.mark.parametrize("value", ["high", None, True, math.nan, -1.0])
def test_a_trial_whose_values_make_no_place_is_left_out(value: Any) -> None:
    odd = seen(9, {**searched(1)[0].hyperparameters, "learning_rate": value}, (1.0, 9.0))
    assert "a-0009" not in [
        known.trial for known in freeze(SPACE, SPACE, [*searched(20), odd]).parents
    ]


def test_what_was_frozen_comes_back_from_json_bit_by_bit() -> None:
    frozen = freeze(SPACE, SPACE, searched())
    assert (
        frozen.good
        and Frozen.from_json(json.loads(json.dumps(frozen.as_json(), allow_nan=False)), SPACE)
        == frozen
    )
    nothing = freeze(SPACE, SPACE, [])
    assert Frozen.from_json(json.loads(json.dumps(nothing.as_json())), SPACE) == nothing


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), []),
        (("names",), ["x"]),
        (("box",), {}),
        (("box", "depth"), {"uniform": [1, 4]}),
        (("box", "more"), 1),
        (("parents",), None),
        (("parents", 0, "trial"), 7),
        (("parents", 0, "z"), [0.1]),
        (("parents", 0, "z", 0), "0.1"),
        (("good", 0, "z", 0), math.nan),
        (("good",), []),
        (("bad_width", 0), 0.0),
        (("good_width",), []),
        (("epochs",), None),
    ],
)
def test_a_damaged_file_is_one_message_with_the_remedy(
    path: tuple[str | int, ...], value: Any
) -> None:
    raw: Any = copy.deepcopy(freeze(SPACE, SPACE, searched()).as_json())
    if path:
        inner = raw
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
    else:
        raw = value
    with pytest.raises(CheckpointError, match=r"middle/strategy\.json: .*master recover"):
        Frozen.from_json(raw, SPACE, "middle/strategy.json")
