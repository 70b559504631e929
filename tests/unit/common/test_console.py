from __future__ import annotations

import pytest

from common.console import LEAST_WIDTH, PLAIN_WIDTH, draw, draw_columns, fit_columns, open_console

COLUMNS = {
    "trial": ["coarse-0001", "fine-0012"],
    "value": [0.123456, 0.9],
    "loss": [1.5, 2.5],
    "note": ["a", "b"],
}


def test_the_width_is_that_of_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert open_console().width == PLAIN_WIDTH
    for given, width in (("200", 200), ("60", 60), ("3", LEAST_WIDTH), ("wide", PLAIN_WIDTH)):
        monkeypatch.setenv("COLUMNS", given)
        assert open_console().width == width


def test_a_narrow_window_leaves_out_the_least_useful_columns_first() -> None:
    spare = ("note", "loss")
    headers = [
        [column.header.plain for column in fit_columns(COLUMNS, width, spare).columns]  # type: ignore[union-attr]
        for width in (80, 28, 24)
    ]
    assert headers == [
        ["trial", "value", "loss", "note"],
        ["trial", "value", "loss"],
        ["trial", "value"],
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_table_fits_the_window_and_breaks_no_number(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns = COLUMNS | {f"number {n}": [1.2345678, 10.0] for n in range(8)}
    drawn = draw_columns(columns, spare=[f"number {n}" for n in range(7, -1, -1)])
    assert max(map(len, drawn.splitlines())) <= width
    assert len(drawn.splitlines()) == 3
    shown = [word for word in drawn.split() if word.startswith(("0.12", "1.2"))]
    assert set(shown) <= {"0.123456", "1.2345678"} and "0.123456" in shown


def test_one_column_may_take_several_lines_and_gets_what_is_left() -> None:
    words = "learning_rate 0.0177, weight_decay 0.0052"
    table = fit_columns(
        {"trial": ["coarse-0001"], "words": [words]}, 40, spare=("trial",), wraps="words"
    )
    table.width = 40
    lines = [line.split() for line in draw(table).splitlines()]
    shown = [word for line in lines[1:] for word in line]
    assert shown[0] == "coarse-0001" and " ".join(shown[1:]) == words
    assert len(lines) == 3
