"""In which direction to move the learning rate, and the proposed range.

Both follow from the size of the steps.
"""

from __future__ import annotations

import tomllib

import pytest

from common.search.check_space import check_space
from common.search.parameters import LogUniform
from common.search.space import Space
from common.search.values import Scalar
from master.strategy.rates import Advice, Direction, Steps, advise


def steps(
    rate: float,
    ratio: float | None = None,
    exploded: bool = False,
    dead: float = 0.0,
    **more: Scalar,
) -> Steps:
    return Steps(exploded, {"learning_rate": rate, "hidden": 64, **more}, ratio, dead)


LOW = [steps(10.0**-exponent, 0.25 * 10.0**-exponent) for exponent in (7, 8, 9)]
HIGH = [steps(rate, exploded=True) for rate in (1e2, 1e3, 1e4)]


def range_of(found: Advice, name: str = "learning_rate") -> list[float]:
    """The proposal as it stands in a search file that takes it."""
    text = "\n".join(found.lines)
    space = Space.parse(tomllib.loads(text))
    check_space("digits", Space({**space.parameters}))
    own = space.parameters[name]
    assert isinstance(own, LogUniform) and own == found.ranges[name]
    return [own.low, own.high]


def test_steps_far_too_small_ask_for_a_rate_that_has_healthy_ones() -> None:
    found = advise(LOW)
    assert found.direction is Direction.RAISE
    assert range_of(found) == [
        4e-4,
        0.4,
    ]  # ratios of 1e-4 to 0.1, since the ratio is a quarter of the rate
    small = (
        "a step changes the weights by 2.5e-09 of their size, 6 decades below the 0.001 that "
        "is healthy"
    )
    assert found.words == f"{small}, and none exploded: raise learning_rate"


def test_explosions_ask_for_a_lower_one() -> None:
    found = advise(HIGH)
    assert found.direction is Direction.LOWER and range_of(found) == [1e-5, 10]
    assert found.words == "3 of 3 trials exploded: lower learning_rate"
    assert range_of(advise([steps(0.3, exploded=True), *HIGH])) == [3e-7, 0.3]


def test_between_rates_that_do_nothing_and_rates_that_explode() -> None:
    found = advise([*LOW, *HIGH])
    assert found.direction is Direction.BETWEEN and range_of(found) == [4e-4, 0.4]
    assert found.words.endswith("and 3 of 6 trials exploded: move learning_rate")
    assert range_of(advise([*LOW, steps(2e-2, exploded=True)])) == [
        4e-4,
        2e-2,
    ]  # no higher than what exploded
    assert range_of(advise([*LOW, steps(2e-6, exploded=True)])) == [2e-12, 2e-6]


def test_some_explode_and_the_rest_stay_at_chance_with_large_steps_or_dead_units() -> None:
    rest = [steps(10.0, 0.3), steps(20.0, 0.0, dead=1.0), steps(30.0, 0.2)]
    found = advise([*HIGH[:1], *rest])
    assert found.direction is Direction.LOWER and range_of(found) == [1e-5, 10]
    assert "1 of 4 trials exploded" in found.words
    found = advise(rest)
    assert (
        found.direction is Direction.LOWER
        and "in 3 of 3 trials the steps replace the weights or kill units" in found.words
    )


def test_an_explosion_by_luck_below_rates_that_do_nothing_says_nothing() -> None:
    """A first loss may be low by luck, and three times it is soon reached."""
    found = advise([*LOW, steps(5e-8, exploded=True)])
    assert found.direction is Direction.RAISE and range_of(found) == [4e-4, 0.4]
    assert "at higher rates than the 1 that did, none exploded" in found.words


@pytest.mark.parametrize(
    ("trials", "told"),
    [
        (
            [steps(1e-2, 3e-3)] * 3,
            "a step changes the weights by 3.0e-03 of their size and 0 of 3 trials exploded",
        ),
        ([*LOW, steps(1e-2, 3e-3)], "0 of 4 trials exploded"),
        ([steps(1e-3, 4e-4)] * 3, "0 of 3 trials exploded"),  # less than healthy, but not far
        ([steps(1e-2)] * 3, "the size of the steps is not measured and 0 of 3 trials exploded"),
        ([steps(1e-2), steps(1e-2), steps(1.0, exploded=True)], "1 of 3 trials exploded"),
        (
            [*LOW, *[steps(5e-8, exploded=True)] * 4],
            "and 4 of 7 trials exploded",
        ),  # most, and not by their rates
    ],
)
def test_where_neither_is_known_that_is_said(trials: list[Steps], told: str) -> None:
    found = advise(trials)
    assert found.direction is Direction.UNKNOWN and not found.ranges and not found.lines
    assert told in found.words and found.words.endswith(
        "whether the learning rate is too low or too high is not known"
    )


def test_most_exploded_says_lower_though_the_rest_were_not_watched() -> None:
    assert advise([*HIGH, steps(1e-2)]).direction is Direction.LOWER


def test_every_hyperparameter_that_is_a_learning_rate_by_its_name_gets_a_range() -> None:
    trials = [
        Steps(
            False,
            {"lr_head": 1e-6, "body_lr": 1e-8, "lrelu": 1e-8, "clr": 1.0, "lr_kind": "a"},
            1e-8,
        )
        for _ in range(3)
    ]
    found = advise(trials)
    assert {name: [own.low, own.high] for name, own in found.ranges.items()} == {
        "lr_head": [1e-2, 10],
        "body_lr": [1e-4, 0.1],
    }
    assert found.words.endswith("raise lr_head and body_lr") and len(found.lines) == 2
    nameless = advise([Steps(False, {"step": 1e-8}, 1e-8)])
    assert nameless.direction is Direction.RAISE and not nameless.lines
    assert nameless.words.endswith(
        "raise the learning rate; no hyperparameter is named as a learning rate"
    )


def test_steps_of_no_size_at_all_have_a_direction_and_no_range() -> None:
    found = advise([steps(1e-300, 0.0)])
    assert found.direction is Direction.RAISE and not found.ranges
