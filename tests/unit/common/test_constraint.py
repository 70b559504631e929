"""Constraints on metrics: what is read, what is violated, and what is refused."""

from __future__ import annotations

import math

import pytest

from common.errors import ConfigError
from common.search.constraint import Constraint, find_violation
from common.search.search_file import Search, parse_search
from common.search.trial import TrialState, violates

OWN = 'name = "a"\ntask = "mine.py:Mine"\n{}\n[space]\nx = 1\n[budget]\n'


def parsed(line: str, task: str = "mine.py:Mine") -> Search:
    return parse_search(
        OWN.format(line).replace("mine.py:Mine", task).replace("x =", "learning_rate =")
    )


def test_one_constraint_or_several() -> None:
    assert parsed("").subject_to == ()
    assert parsed('subject_to = "latency_ms < 20"').subject_to == ("latency_ms < 20",)
    many = parsed('subject_to = ["latency_ms < 20", "size >= 1 or depth > 3"]')
    assert [one.metrics for one in many.constraints] == [["latency_ms"], ["size", "depth"]]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"latency_ms": 19.0, "size": 5.0}, None),
        ({"latency_ms": 31.25, "size": 5.0}, "violates latency_ms < 20 (latency_ms = 31.25)"),
        (
            {"latency_ms": 31.25, "size": 0.0},
            "violates latency_ms < 20 (latency_ms = 31.25); violates 1 <= size < 9 (size = 0)",
        ),
        ({"latency_ms": None, "size": 5}, "violates latency_ms < 20 (latency_ms was not reported)"),
        ({"latency_ms": math.nan, "size": 5}, "violates latency_ms < 20 (latency_ms = nan)"),
    ],
)
def test_the_reason_names_the_constraint_and_the_value(
    metrics: dict[str, float | None], expected: str | None
) -> None:
    constraints = [Constraint.parse("latency_ms < 20"), Constraint.parse("1 <= size < 9")]
    found = find_violation(constraints, metrics)
    assert found == expected
    assert violates(TrialState.COMPLETED, found) == (expected is not None)
    assert not violates(TrialState.FAILED, found)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("subject_to = 3", r"subject_to = 3: is no condition; compare a metric with a number"),
        ('subject_to = ["a <"]', r"subject_to = 'a <': cannot be read .*; compare a metric"),
        ("subject_to = \"a == 'x'\"", r"use <, <=, > or >=; compare a metric with a number"),
        ("subject_to = \"a < 'x'\"", r"use <, <=, > or >=; compare a metric with a number"),
        ('subject_to = "a in [1, 2]"', r"use <, <=, > or >="),
        ('subject_to = "1 < 2"', r"compares two values; compare a name"),
    ],
)
def test_what_is_no_constraint_is_told_with_the_remedy(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(line)


def test_a_built_in_task_measures_only_its_own_metrics() -> None:
    assert parsed('subject_to = "val_loss < 2"', "digits").constraints
    with pytest.raises(ConfigError, match=r"does not measure latency_ms; use one of val_acc"):
        parsed('subject_to = "latency_ms < 20"', "digits")
