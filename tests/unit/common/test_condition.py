"""Conditions of hyperparameters: what is understood, what holds, and what is refused."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from common.errors import ConfigError
from common.search.condition import UNKNOWN, Condition
from common.search.search_file import parse_search
from common.search.space import Space
from tests.unit.fuzzing import TEXT

SPACE: dict[str, object] = {
    "momentum": {"uniform": [0.5, 0.99], "when": "optimizer == 'sgd'"},
    "nesterov": {"choice": [True, False], "when": "momentum > 0.7"},
    "beta2": {"fixed": 0.99, "when": "optimizer in ['adam', 'adamw'] and depth >= 2"},
    "width": {"int_uniform": [8, 64], "step": 8, "when": "depth > 0"},
    "optimizer": {"choice": ["sgd", "adam", "adamw"]},
    "depth": {"int_uniform": [0, 3]},
    "learning_rate": {"log_normal": [-4.0, 1.0]},
}
FULL: dict[str, Any] = {
    "momentum": 0.9,
    "nesterov": True,
    "beta2": 0.99,
    "width": 8,
    "optimizer": "sgd",
    "depth": 1,
    "learning_rate": 0.1,
}


def holds(text: str, **values: Any) -> bool | None:
    return Condition.parse(text, "when").holds(values)


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("a == 'sgd'", {"a": "sgd"}, True),
        ('a != "sgd"', {"a": "sgd"}, False),
        ("a in ['x', 'y']", {"a": "y"}, True),
        ("a not in ('x', 'y')", {"a": "y"}, False),
        ("2 <= a < 4", {"a": 4}, False),
        ("a > -1.5", {"a": -1}, True),
        ("a == true", {"a": True}, True),
        ("a == True", {"a": 1}, False),
        ("a == 1", {"a": True}, False),
        ("a == [64, 64]", {"a": [64, 64]}, True),
        ("a in [[64], [32]]", {"a": [64, 64]}, False),
        ("a < b", {"a": 1, "b": 2.5}, True),
        ("a < 3", {"a": "word"}, False),
        ("a == 1 and b == 1 or c == 1", {"a": 1, "b": 0, "c": 1}, True),
        ("a == 1 and (b == 1 or c == 1)", {"a": 0, "b": 0, "c": 1}, False),
        ("a != 1", {}, False),
        ("a not in [1]", {}, False),
        ("a < 1", {"a": UNKNOWN}, None),
        ("a < 1 or b == 1", {"a": UNKNOWN, "b": 1}, True),
        ("a < 1 and b == 1", {"a": UNKNOWN, "b": 0}, False),
        ("a < 1 and b == 1", {"a": UNKNOWN, "b": 1}, None),
    ],
)
def test_a_condition_holds(text: str, values: dict[str, Any], expected: bool | None) -> None:
    assert holds(text, **values) is expected


def test_numbers_of_numpy_are_compared_as_python_s() -> None:
    assert holds("a >= 0.7", a=np.float64(0.6)) is False
    space = Space.parse({"a": {"uniform": [0, 1]}, "b": {"fixed": 1, "when": "a >= 0.7"}})
    assert space.find_absent({"a": np.float64(0.6)}) == {"b"}


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (3, r"when = 3: is no condition; write comparisons such as"),
        ("", r"is no condition"),
        ("optimizer", r"'optimizer' compares nothing; write comparisons"),
        ("optimizer =", r"cannot be read as a condition"),
        ("optimizer = 'sgd'", r"cannot be read as a condition"),
        ("((((", r"cannot be read"),
        ("optimizer == sgd", r"the space has no sgd; write a value in quotes, or use one of"),
        ("optimiser == 'sgd'", r"no optimiser; did you mean optimizer\?"),
        ("1 == 1", r"'1 == 1' compares two values; compare a name with a value"),
        ("optimizer is 'sgd'", r"use ==, !=, <, <=, >, >= or in"),
        ("'sgd' in optimizer", r"write a name before in, and a list of values after it"),
        ("optimizer in 'sgd'", r"write a name before in"),
        ("optimizer in [sgd]", r"sgd is no value; write words in quotes: 'sgd'"),
        ("__import__('os').system('ls') == 1", r"is neither a name nor a value"),
        ("optimizer == f'{depth}'", r"is neither a name nor a value"),
        ("not depth == 1", r"compares nothing"),
        ("depth + 1 == 2", r"'depth \+ 1' is neither a name nor a value"),
        ("depth == 1" + " or depth == 1" * 200, r"characters, more than 1,000; shorten it"),
        ("learning_rate > 0", r"names learning_rate itself; name others"),
    ],
)
def test_what_is_no_condition_is_told_with_the_remedy(when: object, message: str) -> None:
    raw = {**SPACE, "learning_rate": {"log_uniform": [1e-3, 1], "when": when}}
    with pytest.raises(ConfigError, match=message) as error:
        Space.parse(raw)
    assert "[space] learning_rate" in str(error.value)


@given(TEXT)
def test_any_text_is_a_condition_or_is_refused_in_words(text: str) -> None:
    with contextlib.suppress(ConfigError):
        Condition.parse(text, "when").holds({"a": 1})


def test_a_circle_of_conditions_is_told() -> None:
    raw = {
        "a": {"uniform": [0, 1], "when": "b > 0"},
        "b": {"uniform": [0, 1], "when": "c > 0"},
        "c": {"uniform": [0, 1], "when": "a > 0"},
    }
    with pytest.raises(ConfigError, match=r"go in a circle: \w needs \w needs \w needs \w; remove"):
        Space.parse(raw)


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("optimizer == 'adagrad'", r"optimizer is never 'adagrad'; it is one of 'sgd', 'adam'"),
        ("optimizer in ['sgd', 'x']", r"optimizer is never 'x'"),
        ("optimizer < 3", r"optimizer is not always a number, .* use == or in, not <"),
        ("depth == 'two'", r"depth is a number, and never equals a word"),
        ("depth < 'two'", r"depth is compared by < with what is no number"),
        ("momentum == 0.9", r"momentum has so many values that == says nothing; use < or >"),
    ],
)
def test_a_comparison_that_can_never_hold_is_refused(when: str, message: str) -> None:
    lines = [
        f"{name} = {_toml(raw)}" for name, raw in {**SPACE, "x": {"fixed": 1, "when": when}}.items()
    ]
    text = 'name = "a"\ntask = "mine.py:Mine"\n[space]\n' + "\n".join(lines) + "\n[budget]\n"
    with pytest.raises(ConfigError, match=rf"\[space\] x: when = .*: {message}"):
        parse_search(text)


def _toml(raw: Any) -> str:
    pairs = (f"{key} = {json.dumps(value)}" for key, value in raw.items())
    return "{ " + ", ".join(pairs) + " }"


def test_the_grid_would_train_a_configuration_several_times() -> None:
    lines = "\n".join(f"{name} = {_toml(raw)}" for name, raw in SPACE.items())
    text = f'name = "a"\ntask = "mine.py:Mine"\nsampler = "grid"\n[space]\n{lines}\n[budget]\n'
    with pytest.raises(ConfigError, match=r'momentum: when: sampler = "grid" .* use .* "sobol"'):
        parse_search(text)


def test_a_space_with_conditions_reads_back() -> None:
    space = Space.parse(SPACE)
    assert space.plain() == SPACE
    assert Space.parse(json.loads(json.dumps(space.plain()))) == space
    assert set(space.conditions) == {"momentum", "nesterov", "beta2", "width"}
    order = list(space.conditions)
    assert order.index("momentum") < order.index("nesterov")


@pytest.mark.parametrize(
    ("changed", "absent"),
    [
        ({}, {"beta2"}),
        ({"momentum": 0.6}, {"beta2", "nesterov"}),
        ({"optimizer": "adam"}, {"momentum", "nesterov", "beta2"}),
        ({"optimizer": "adam", "depth": 2}, {"momentum", "nesterov"}),
        ({"depth": 0}, {"beta2", "width"}),
    ],
)
def test_what_does_not_exist_is_absent(changed: dict[str, Any], absent: set[str]) -> None:
    space, values = Space.parse(SPACE), {**FULL, **changed}
    pruned = space.prune(values)
    assert FULL.keys() - pruned.keys() == absent == space.find_absent(pruned)
    assert space.prune(pruned) == pruned and list(pruned) == [n for n in SPACE if n in pruned]
    assert json.loads(space.group(pruned)).keys() == pruned.keys() & space.structural.keys()


def test_fixed_values_may_take_the_place_of_what_a_condition_names() -> None:
    space = Space.parse({**SPACE, "optimizer": "adagrad"})
    assert space.find_absent(FULL | {"optimizer": "adagrad"}) == {"momentum", "nesterov", "beta2"}


DIGITS = 'name = "a"\ntask = "digits"\n[budget]\n[space]\nlearning_rate = 0.1\n'


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            "optimizer = { choice = ['sgd', 'adam'] }\nnesterov = { fixed = true, when = "
            "\"optimizer == 'sgd'\" }",
            r"nesterov = true: looks ahead along the momentum, which may be 0",
        ),
        (
            "preprocess = { choice = ['none', 'pca'] }\naugment_shift = { uniform = [0, 2], when ="
            " \"preprocess == 'pca'\" }",
            r"augment_shift: is for images, and preprocess = \"pca\" leaves none",
        ),
    ],
)
def test_what_cannot_be_trained_together_is_refused(space: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_search(DIGITS + space)


@pytest.mark.parametrize(
    "space",
    [
        "optimizer = { choice = ['sgd', 'adam'] }\nnesterov = { fixed = true, when = "
        '"optimizer == \'sgd\'" }\nmomentum = { uniform = [0.5, 0.9], when = "optimizer == '
        "'sgd'\" }",
        "preprocess = { choice = ['none', 'pca'] }\naugment_shift = { uniform = [0, 2], when ="
        " \"preprocess == 'none'\" }",
        "preprocess = { choice = ['none', 'pca'] }\nmodel = { fixed = 'convnet', when ="
        " \"preprocess != 'pca'\" }",
    ],
)
def test_a_condition_may_keep_apart_what_cannot_be_trained_together(space: str) -> None:
    assert parse_search(DIGITS + space).space.conditions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            DIGITS.replace("= 0.1", "= { uniform = [0, 1], when = 'depth > 1' }\ndepth = 2"),
            r"learning_rate: when: every trial needs it; remove when",
        ),
        (
            'metric = "ema_val_acc"\n'
            + DIGITS
            + "depth = 2\nema = { fixed = 0.9, when = 'depth > 1' }",
            r"ema: when: metric = 'ema_val_acc' needs it in every trial",
        ),
    ],
)
def test_what_every_trial_needs_has_no_condition(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_search(text)


def test_groups_are_those_that_can_exist() -> None:
    space = Space.parse(
        {
            "model": {"choice": ["a", "b"]},
            "depth": {"int_uniform": [1, 3], "when": "model == 'a'"},
            "width": {"int_uniform": [8, 32], "step": 8, "when": "model == 'b' and rate > 0.5"},
            "rate": {"uniform": [0.0, 1.0]},
        }
    )
    assert space.n_groups() == 3 + 4  # with the product of all it would be 24
    drawn = [
        space.prune({"model": m, "depth": d, "width": w, "rate": 0.7})
        for m, d, w in itertools.product("ab", (1, 2, 3), (8, 16, 24, 32))
    ]
    assert len({space.group(one) for one in drawn}) == 7


def test_absent_and_present_values_make_different_groups() -> None:
    space = Space.parse(SPACE)
    groups = {
        space.group(space.prune({**FULL, "depth": depth, "optimizer": optimizer}))
        for depth, optimizer in itertools.product((0, 1), ("sgd", "adam"))
    }
    assert len(groups) == 4
