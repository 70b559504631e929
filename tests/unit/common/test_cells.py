"""No text of ours in a CSV file is a formula to a spreadsheet, and what is plain stays as it is."""

from __future__ import annotations

import pytest

from common.cells import defuse

FORMULAS = [
    "=1+1",
    "=cmd|'/C calc'!A0",
    "+1+cmd",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    "-",
    "+",
    "-inf+1",
    "-1 ",
]
PLAIN = [
    "",
    "sgd",
    "a=b",
    "1-2",
    "-1",
    "+1",
    "-1e-3",
    "-inf",
    "'=1",
    " =1",
    -1,
    -0.5,
    0,
    1.5,
    True,
    None,
    float("-inf"),
]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    assert defuse(text) == f"'{text}"


@pytest.mark.parametrize("value", PLAIN)
def test_numbers_and_plain_text_stay(value: object) -> None:
    assert defuse(value) is value
