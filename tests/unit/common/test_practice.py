import math
import re
from typing import Any

import pytest

from common.errors import ConfigError
from common.search.check_space import check_space
from common.search.hyperparameters import (
    BUILT_IN_TASKS,
    CONVNET,
    ENGINE,
    PERCEPTRON,
    Kind,
    Number,
    Whole,
    bounds,
    known_entries,
    refusal,
)
from common.search.search_file import default_text, parse_search
from common.search.space import Space

RATE = {"log_uniform": [1e-4, 1e-1]}


def checked(task: str = "digits", **space: Any) -> None:
    check_space(task, Space.parse({"learning_rate": RATE, **space}))


@pytest.mark.parametrize("task", BUILT_IN_TASKS)
def test_every_default_may_be_written_down(task: str) -> None:
    entries = known_entries(task)
    written = {name: entry.default for name, entry in entries.items() if entry.default is not None}
    assert all(refusal(name, value, task) is None for name, value in written.items())
    check_space(task, Space.parse({"learning_rate": 0.1, **written}))


@pytest.mark.parametrize("task", BUILT_IN_TASKS)
def test_every_option_is_accepted_and_no_other(task: str) -> None:
    for name, entry in known_entries(task).items():
        if isinstance(entry, Kind):
            assert entry.default in entry.options
            assert all(entry.refusal(option) is None for option in entry.options)
            assert "use one of" in (entry.refusal("no such word") or "")
            assert entry.refusal(0) is not None and entry.refusal(1) is not None, (
                f"{name}: true and false are no numbers"
            )


def test_numbers_lie_between_their_bounds() -> None:
    share = Number(0.0, high=1.0)
    assert share.refusal(0) is None and share.refusal(0.999) is None
    assert all(
        share.refusal(bad) == "a number in [0, 1) is needed"
        for bad in (1, -0.1, "0.5", True, math.nan)
    )
    assert Whole(2, low=1).refusal(8.0) is None
    assert all(
        Whole(2, low=1).refusal(bad) == "a whole number of at least 1 is needed"
        for bad in (0, 2.5, "3", True)
    )


def test_nothing_is_told_of_names_that_only_the_user_knows() -> None:
    assert (
        refusal("temperature", "hot", "digits") is None and refusal("hidden", "many", None) is None
    )
    assert refusal("hidden", "many", "digits") == "a whole number of at least 1 is needed"


def test_the_template_and_all_kinds_of_parameters_pass() -> None:
    assert parse_search(default_text()).task == "digits"
    checked(
        momentum={"uniform": [0.1, 0.99]},
        nesterov=True,
        hidden={"log_int_uniform": [16, 256]},
        depth={"choice": [1, 2, 3]},
        schedule={"choice": ["constant", "cosine"]},
        batch_norm={"choice": [True, False]},
        augment_rotate={"uniform": [0.0, 180.0]},
        model="convnet",
        preprocess="centre",
    )


def test_every_hint_of_the_template_may_be_taken() -> None:
    hint = re.compile(r"^# (?=\[|[a-z_0-9]+ *= )", re.MULTILINE)
    search = parse_search(hint.sub("", default_text()))
    assert (
        len(search.space.parameters) == 24
        and search.metric == "val_loss"
        and search.sampler == "random"
    )
    assert [stage.kind for stage in search.stages] == [
        "search",
        "confirm",
        "distill",
    ] and search.stages[0].patience == 5


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"momentun": 0.9},
            (
                r"\[space\] momentun: neither the engine nor the task 'digits' knows it; did "
                r"you mean momentum\?"
            ),
        ),
        ({"learning_rates": 0.9}, r"did you mean learning_rate\?"),
        (
            {"colour": "red"},
            (
                r"colour: neither .* knows it; remove it, or use one of optimizer, "
                r"learning_rate, .*, blocks"
            ),
        ),
        (
            {"optimizer": "sgdm"},
            r'\[space\] optimizer = "sgdm": use one of sgd, adagrad, rmsprop, adam, adamw',
        ),
        ({"optimizer": {"choice": ["adam", "nonsense"]}}, r'optimizer = "nonsense": use one of'),
        (
            {"optimizer": {"uniform": [0, 1]}},
            r"optimizer: uniform = \[0, 1\] draws numbers; write \{ choice = \[\"sgd\", ",
        ),
        ({"nesterov": 1}, r"nesterov = 1: use one of false, true"),
        ({"batch_norm": "yes"}, r'batch_norm = "yes": use one of false, true'),
        ({"weight_decay": -1e-3}, r"weight_decay = -0.001: a number in \[0, inf\) is needed"),
        (
            {"beta1": {"uniform": [0.5, 1.5]}},
            r"beta1: uniform = \[0.5, 1.5\]: a number in \[0, 1\) is needed, 1.5 is not",
        ),
        ({"clip_norm": {"uniform": [-1, 5]}}, r"clip_norm: .*, -1 is not"),
        (
            {"hidden": {"log_uniform": [16, 256]}},
            (
                r"hidden: log_uniform draws fractions, and a whole number is needed; use "
                r"log_int_uniform"
            ),
        ),
        ({"depth": {"uniform": [1, 3]}}, r"use int_uniform"),
        (
            {"hidden": {"choice": [16, 0.5]}},
            r"hidden = 0.5: a whole number of at least 1 is needed",
        ),
        (
            {"hidden": {"int_uniform": [0, 8]}},
            r"hidden: int_uniform = \[0, 8\]: a whole number of at least 1 is needed, 0 is not",
        ),
        ({"dropout": "much"}, r'dropout = "much": a number in \[0, 1\) is needed'),
        (
            {"nesterov": True},
            r"nesterov = true: looks ahead along the momentum, which may be 0; add momentum = 0.9",
        ),
        (
            {"nesterov": {"choice": [True, False]}, "momentum": {"choice": [0.0, 0.9]}},
            r"nesterov = true: .* may be 0",
        ),
        (
            {"model": "convnet", "preprocess": "pca"},
            r'model = "convnet": needs images, and preprocess = "pca" leaves none',
        ),
        (
            {"augment_shift": 1, "preprocess": {"choice": ["none", "whiten"]}},
            r'augment_shift: is for images, and preprocess = "whiten" leaves',
        ),
    ],
)
def test_what_no_trial_of_a_built_in_task_could_use_is_refused(
    space: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(**space)


def test_what_belongs_to_images_is_refused_where_there_are_none() -> None:
    with pytest.raises(
        ConfigError,
        match=r"filters: .* 'spiral' knows it \(a hyperparameter of digits, mnist, .*\); remove it",
    ):
        checked("spiral", filters=8)
    with pytest.raises(
        ConfigError, match="augment_flip: is for images, and the task 'spiral' has none; remove it"
    ):
        checked("spiral", augment_flip=0.5)
    checked("spiral", augment_noise=0.1, augment_flip=0.0)


def test_a_learning_rate_is_asked_for() -> None:
    with pytest.raises(
        ConfigError,
        match=r"\[space\]: learning_rate is missing; add learning_rate = \{ log_uniform",
    ):
        check_space("digits", Space.parse({"hidden": 32}))


def test_good_combinations_are_left_alone() -> None:
    checked(nesterov=True, optimizer="adam")
    checked(nesterov=True, momentum={"uniform": [0.0, 0.9]})
    checked(model="convnet", preprocess="normalise", augment_shift=1)
    checked(augment_shift=0, preprocess="pca")


def test_own_tasks_may_read_what_they_like() -> None:
    checked("my_task.py:Task", optimizer="nonsense", hidden={"uniform": [0, 1]}, colour="red")


def test_the_search_file_says_where() -> None:
    text = default_text().replace('optimizer     = "sgd"', 'optimizer     = "sdg"')
    with pytest.raises(
        ConfigError, match=r'^mine.toml: \[space\] optimizer = "sdg": use one of sgd'
    ):
        parse_search(text, "mine.toml")


@pytest.mark.parametrize(
    ("name", "raw", "limits"),
    [
        ("label_smoothing", {"uniform": [0.0, 0.3]}, (0, 0.999999)),
        ("augment_flip", {"uniform": [0.1, 0.5]}, (0, 1)),
        ("augment_rotate", {"uniform": [0, 90]}, (0, 180)),
        ("pieces", {"int_uniform": [2, 4]}, (2, math.inf)),
        ("momentum_start", {"uniform": [-1, 0.5]}, (-1, 0.999999)),
        (
            "margin",
            {"uniform": [-2, 2]},
            (-math.inf, math.inf),
        ),  # a loop of one's own, to which it means something else
    ],
)
def test_ranges_stay_within_what_the_engine_takes(
    name: str, raw: dict[str, Any], limits: tuple[float, float]
) -> None:
    assert Space.parse({name: raw}).limits(name) == pytest.approx(limits)


def test_what_bounds_allow_is_accepted() -> None:
    for name, entry in {**ENGINE, **PERCEPTRON, **CONVNET}.items():
        if isinstance(entry, Number | Whole):
            assert all(entry.refusal(end) is None for end in bounds(name) if math.isfinite(end)), (
                name
            )
