"""Filters of the dashboard's tables."""

from __future__ import annotations

from typing import Any

import pytest

from master.dashboard.filtering import MOST_WORDS, FilterError, select


def row(trial: str, **hyperparameters: object) -> dict[str, Any]:
    return {
        **dict.fromkeys(
            ("diagnosis", "reason", "worker", "checkpoint", "drawn", "val_acc", "repeats", "value")
        ),
        "metric": "auc",
        "metrics": {"f1": len(trial + str(hyperparameters)) / 100},
        "trial": trial,
        "state": "completed",
        "parents": [],
        "hyperparameters": hyperparameters,
    }


ROWS = [
    row("coarse-0000", hidden=64, optimizer="sgd", kind="wide (deep)"),
    row("coarse-0001", hidden=128, optimizer="sgd", kind="flat"),
    row("coarse-0002", hidden=256, optimizer="adam", kind="flat"),
    row("fine-0000", hidden=64, optimizer="adam", kind="flat"),
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [0, 1, 2, 3]),
        ("hidden=64 OR hidden=128", [0, 1, 3]),
        ("hidden=64 or hidden=128", [0, 1, 3]),
        ("(hidden=64 OR hidden=128) optimizer=adam", [3]),
        ("hidden=64 OR hidden=128 optimizer=adam", [0, 3]),
        ("hidden=64 OR (hidden=256 optimizer=adam)", [0, 2, 3]),
        ("((hidden=64))", [0, 3]),
        ("hidden=64 AND optimizer=adam", [3]),
        ("fine OR hidden>200", [2, 3]),
        ('kind="wide (deep)"', [0]),
        ('"fine-0000" OR kind!="flat"', [0, 3]),
    ],
)
def test_words_alternatives_and_groups(text: str, found: list[int]) -> None:
    assert select(ROWS, text) == [ROWS[place] for place in found]


def test_metrics_and_parents_are_compared_and_sorted_by() -> None:
    values = [row["metrics"]["f1"] for row in ROWS]
    assert select(ROWS, f"f1>={max(values)}") == [ROWS[values.index(max(values))]]
    own = [{**row, "value": place / 10} for place, row in enumerate(ROWS)]
    assert [row["trial"] for row in select(own, "auc>0.1", sort="auc", descending=True)] == [
        "fine-0000",
        "coarse-0002",
    ]
    parents = (["b"], [], ["a"], [])
    bred = [{**row, "parents": names} for row, names in zip(ROWS, parents, strict=True)]
    assert [row["parents"] for row in select(bred, sort="parents")] == [["a"], ["b"], [], []]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("(hidden=64", "( without a )"),
        ("hidden=64)", ") without a ("),
        ("hidden=64 OR", "without a word"),
        ("OR", "without a word"),
        ("()", "without a word"),
        ("nothing=64", "no such column"),
        ("(" * MOST_WORDS + "x", "more than"),
        ("(" * (MOST_WORDS - 1) + "x", "( without a )"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, told: str) -> None:
    with pytest.raises(FilterError, match=r".*" + told.replace("(", r"\(").replace(")", r"\)")):
        select(ROWS, text)
