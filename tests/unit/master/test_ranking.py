from __future__ import annotations

import csv
import io
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from common.folder.record import Diagnosis, Record, format_metric
from common.intervals import wilson
from common.search.trial import ENDED, TrialState
from master.results import ranking
from tests.unit.master.made import record

CONTRACT = [
    "rank", "trial", "stage", "state", "val_acc", "val_loss", "epochs", "hyperparameters",
    "checkpoint", "worker", "attempt", "reason",
    "metric", "value", "diagnosis", "budget_epochs", "max_epochs", "rung", "drawn", "parents",
    "repeats", "seconds", "metrics", "tags", "note",
]  # fmt: skip
NUMBERS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


def drawn(renderable: RenderableType, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def order(records: list[Record]) -> list[int]:
    return [r.index for r in ranking.rank(records)]


def test_accuracy_then_loss_then_fewer_epochs_then_number() -> None:
    records = [
        record(0, {}, val_acc=0.90, val_loss=0.1),
        record(1, {}, val_acc=0.95, val_loss=0.3, epochs=2),
        record(2, {}, val_acc=0.95, val_loss=0.2, epochs=2),
        record(3, {}, val_acc=0.95, val_loss=0.3, epochs=1),
        record(5, {}, val_acc=0.90, val_loss=0.2),
        record(4, {}, val_acc=0.90, val_loss=0.2),
    ]
    assert order(records) == [2, 3, 1, 0, 4, 5]


def test_states_below_the_completed_in_their_order() -> None:
    states = [
        TrialState.FAILED,
        TrialState.KILLED,
        TrialState.STOPPED,
        TrialState.EXPLODED,
        TrialState.COMPLETED,
    ]
    records = [
        record(i, {}, state=state, val_acc=0.99 - 0.1 * (state == "completed"))
        for i, state in enumerate(states)
    ]
    assert order(records) == [4, 3, 2, 1, 0]


def test_a_trial_that_stopped_early_ranks_by_its_best_epoch() -> None:
    reason = "no progress: best value 0.95 at epoch 3, none better in 5 epochs"
    records = [
        record(0, {}, val_acc=0.90),
        record(1, {}, val_acc=0.95, state=TrialState.STOPPED, reason=reason),
        record(
            2,
            {},
            val_acc=0.99,
            state=TrialState.STOPPED,
            reason="no better than guessing after 3 epochs",
        ),
    ]
    assert order(records) == [1, 0, 2]
    assert [r.index for r in ranking.best(records)] == [1, 0]


def mae(index: int, value: float | None, **more: object) -> Record:
    """Of a regression: no accuracy, and the smallest error is the best."""
    return record(index, {"x": 0.1 * index}, metric="val_mae", mode="min", value=value, **more)


def test_the_search_s_own_metric_ranks_and_the_smallest_is_best_where_it_says_so() -> None:
    killed = record(
        4, {"x": 0.4}, state=TrialState.KILLED, reason="killed by the user"
    )  # as the master writes it: it knows no metric
    records = [
        mae(0, 3.0),
        mae(1, 0.25, val_loss=0.4),
        mae(2, 12.0),
        mae(3, 0.25, val_loss=0.1),
        killed,
        mae(5, math.nan),
    ]
    assert order(records) == [3, 1, 0, 2, 5, 4]
    assert [r.index for r in ranking.best(records, 3)] == [3, 1, 0]
    rows = ranking.rows(ranking.frame(records), ())
    assert [row["value"] for row in rows] == [0.25, 0.25, 3.0, 12.0, None, None]
    assert (rows[0]["metric"], rows[0]["val_acc"]) == ("val_mae", None)
    highest = [
        record(i, {}, metric="val_f1", value=value, val_acc=1 - value)
        for i, value in enumerate((0.2, 0.9, 0.5))
    ]
    assert order(highest) == [1, 2, 0]
    assert order(
        [
            record(i, {}, metric="val_loss", mode="min", val_loss=loss)
            for i, loss in enumerate((0.9, 0.1))
        ]
    ) == [1, 0]


def test_the_search_s_own_metric_is_a_column_and_what_nothing_has_is_none() -> None:
    ranked = ranking.frame([mae(0, 2.5), mae(1, 0.25)])
    header = (
        "| rank | trial | state | val_mae | val_loss | epochs | diagnosis | x | checkpoint | "
        "reason |"
    )
    assert ranking.markdown(ranked, ()).splitlines()[0] == header
    assert "| 1 | coarse-0001 | completed | 0.2500 | 0.5000 |" in ranking.markdown(ranked, ())
    text = drawn(ranking.table(ranked)).splitlines()
    assert text[0].split()[:4] == ["#", "trial", "val_mae", "val_loss"] and text[1].split()[:3] == [
        "1",
        "coarse-0001",
        "0.2500",
    ]
    table = list(csv.DictReader(io.StringIO(ranking.csv(ranked, ()))))
    assert [(row["metric"], row["value"], row["val_acc"]) for row in table] == [
        ("val_mae", "0.25", ""),
        ("val_mae", "2.5", ""),
    ]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, None])
def test_a_metric_that_is_not_finite_ranks_last_among_the_completed(odd: float | None) -> None:
    records = [
        record(0, {}, val_acc=odd),
        record(1, {}, val_acc=0.1),
        record(2, {}, state=TrialState.EXPLODED),
    ]
    assert order(records) == [1, 0, 2]
    assert [r.index for r in ranking.best(records)] == [1]


def test_a_loss_that_is_not_finite_loses_a_tie() -> None:
    assert order(
        [record(0, {}, val_acc=0.5, val_loss=math.nan), record(1, {}, val_acc=0.5, val_loss=9.0)]
    ) == [1, 0]


def test_what_was_trained_longer_ranks_above_whatever_a_short_training_reached() -> None:
    records = [
        record(0, {}, val_acc=0.99, budget_epochs=1.0),
        record(
            1,
            {},
            val_acc=0.7,
            budget_epochs=20.0,
            epochs=12.0,
            state=TrialState.STOPPED,
            reason="no progress for 5 epochs",
        ),
        record(2, {}, val_acc=0.8, budget_epochs=20.0, epochs=20.0),
        record(3, {}, val_acc=0.9, budget_epochs=7.0, epochs=7.0),
        record(4, {}, val_acc=1.0, budget_epochs=20.0, state=TrialState.EXPLODED),
        record(5, {}, val_acc=None, budget_epochs=20.0),
    ]
    assert order(records) == [2, 1, 5, 3, 0, 4]
    assert [r.index for r in ranking.best(records, 3)] == [2, 1, 3]


def test_of_equals_the_one_of_the_earlier_stage_comes_first_then_the_lower_number() -> None:
    stages = [("coarse", 3), ("coarse", 1), ("fine", 0), ("fine", 2)]
    records = [
        record(i, {}, trial=f"{stage}-{i:04d}", stage=stage, val_acc=0.5) for stage, i in stages
    ]
    assert [r.trial for r in ranking.rank(records)] == [
        "coarse-0001",
        "coarse-0003",
        "fine-0000",
        "fine-0002",
    ]


def test_the_csv_tells_how_a_trial_came_about() -> None:
    one = record(
        7,
        {"x": 1},
        val_acc=0.9,
        passed=(1.0,),
        budget_epochs=2.0,
        drawn="child",
        parents=("coarse-0003", "coarse-0001"),
    )
    (row,) = csv.DictReader(io.StringIO(ranking.csv(ranking.frame([one]), ())))
    assert (row["rung"], row["drawn"], row["parents"]) == ("1", "child", "coarse-0003 coarse-0001")


def test_the_csv_has_the_columns_that_are_asked_for() -> None:
    one = record(7, {"x": 1}, val_acc=0.9, parents=("a-0003",), metrics={"auc": 0.7})
    columns = ["trial", "auc", "x", "parents", "diagnosis"]
    text = ranking.rows_as_csv(ranking.rows(ranking.frame([one]), ()), columns)
    assert text == "trial,auc,x,parents,diagnosis\ncoarse-0007,0.7,1,a-0003,\n"


def test_rows_have_exactly_the_keys_of_the_contract() -> None:
    one = record(
        7,
        {"learning_rate": 0.1, "hidden": 64, "nesterov": True},
        val_acc=0.9,
        checkpoint="a.pt",
        worker="w",
        attempt=2,
        budget_epochs=7.0,
        max_epochs=20.0,
        passed=(1.0, 2.0),
        drawn="child",
        parents=("coarse-0003",),
        seconds=12.5,
        metrics={"val_acc": 0.9, "val_loss": 0.5, "auc": math.nan},
    )
    row = ranking.rows(ranking.frame([one]), {"a.pt"})[0]
    assert list(row) == CONTRACT
    assert row == {
        "rank": 1, "trial": "coarse-0007", "stage": "coarse", "state": "completed", "val_acc": 0.9,
        "val_loss": 0.5, "epochs": 1.0,
        "hyperparameters": {"learning_rate": 0.1, "hidden": 64, "nesterov": True},
        "checkpoint": "a.pt", "worker": "w", "attempt": 2,
        "reason": None, "metric": "val_acc", "value": 0.9, "diagnosis": None,
        "budget_epochs": 7.0, "max_epochs": 20.0, "rung": 2, "drawn": "child",
        "parents": ["coarse-0003"], "repeats": None, "seconds": 12.5,
        "metrics": {"val_acc": 0.9, "val_loss": 0.5, "auc": None}, "tags": [], "note": "",
    }  # fmt: skip


def test_a_column_with_the_name_of_a_metric_has_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "COLUMNS", (*ranking.COLUMNS, "val_f1"))
    measured = [{"val_f1": 0.25}, {}, {"val_f1": math.inf}]
    records = [record(i, {}, val_acc=0.9 - i / 10, metrics=m) for i, m in enumerate(measured)]
    rows = ranking.rows(ranking.frame(records), ())
    assert [row["val_f1"] for row in rows] == [0.25, None, None]


def test_a_checkpoint_that_was_removed_is_not_named() -> None:
    records = [
        record(0, {}, val_acc=0.9, checkpoint="here.pt"),
        record(1, {}, val_acc=0.8, checkpoint="gone.pt"),
    ]
    assert [row["checkpoint"] for row in ranking.rows(ranking.frame(records), ["here.pt"])] == [
        "here.pt",
        None,
    ]


@given(
    values=st.lists(
        st.tuples(NUMBERS, NUMBERS, st.sampled_from(sorted(ENDED)), st.text(max_size=20)),
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_the_json_is_strict_and_whole(
    values: list[tuple[float | None, float | None, TrialState, str]],
) -> None:
    records = [
        record(i, {"x": text}, val_acc=a, val_loss=b, state=s, reason=text)
        for i, (a, b, s, text) in enumerate(values)
    ]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not strict JSON")

    rows = json.loads(ranking.as_json(ranking.frame(records), ()), parse_constant=refuse)
    assert sorted(row["trial"] for row in rows) == sorted(r.trial for r in records)
    assert [row["rank"] for row in rows] == list(range(1, len(records) + 1))
    completed = [
        row["val_acc"] for row in rows if row["state"] == "completed" and row["val_acc"] is not None
    ]
    assert completed == sorted(completed, reverse=True)
    assert rows == ranking.rows(ranking.frame(records), ())


def test_a_hyperparameter_that_is_not_finite_becomes_null() -> None:
    odd = record(0, {}, val_acc=0.5).model_copy(update={"hyperparameters": {"x": math.nan}})
    assert json.loads(ranking.as_json(ranking.frame([odd]), ()))[0]["hyperparameters"] == {
        "x": None
    }


def test_no_records_give_an_empty_ranking_in_every_form() -> None:
    empty = ranking.frame([])
    assert json.loads(ranking.as_json(empty, ())) == []
    assert ranking.csv(empty, ()).startswith("rank,trial")
    assert ranking.markdown(empty, ()).count("\n") == 2
    assert "trial" in drawn(ranking.table(empty))


def test_csv_reads_back_with_a_column_for_each_hyperparameter() -> None:
    records = [
        record(0, {"learning_rate": 1e-7, "optimizer": "sgd"}, val_acc=0.123456789, worker="a,b"),
        record(
            1,
            {"learning_rate": 0.5, "hidden": 32},
            state=TrialState.FAILED,
            reason='line 1\nline "2"',
        ),
    ]
    rows = list(csv.DictReader(io.StringIO(ranking.csv(ranking.frame(records), ()))))
    assert float(rows[0]["val_acc"]) == 0.123456789 and float(rows[0]["learning_rate"]) == 1e-7
    assert (rows[0]["optimizer"], rows[0]["hidden"], rows[0]["worker"]) == ("sgd", "", "a,b")
    assert (rows[1]["hidden"], rows[1]["val_acc"], rows[1]["reason"]) == (
        "32",
        "",
        'line 1\nline "2"',
    )


def test_no_text_of_the_csv_is_a_formula_and_numbers_stay_numbers() -> None:
    formula = "=HYPERLINK(A1)"
    one = record(
        0,
        {formula: formula, "shift": -2, "scale": -1e-3},
        val_acc=0.5,
        val_loss=-0.25,
        worker="@w",
        reason="-1+1",
    )
    (row,) = csv.DictReader(io.StringIO(ranking.csv(ranking.frame([one]), ())))
    assert row[f"'{formula}"] == f"'{formula}" and (row["worker"], row["reason"]) == (
        "'@w",
        "'-1+1",
    )
    assert [float(row[name]) for name in ("shift", "scale", "val_loss")] == [-2.0, -0.001, -0.25]
    assert ranking.rows(ranking.frame([one]), ())[0]["worker"] == "@w", "JSON has no formulas"


def test_markdown_keeps_its_columns_whatever_a_reason_says() -> None:
    records = [
        record(0, {}, val_acc=0.9),
        record(1, {}, state=TrialState.FAILED, reason="a | b\nsecond line"),
    ]
    lines = ranking.markdown(ranking.frame(records), ()).splitlines()
    assert len(lines) == 4
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "second line" not in lines[-1]


def test_the_table_fits_80_columns_with_a_column_for_what_varies() -> None:
    hyperparameters = [
        {
            "learning_rate": 0.0123456 * (i + 1),
            "weight_decay": 1.2345e-6 * (i + 1),
            "dropout": 0.1 * i,
            "hidden": 32 * (i + 1),
            "depth": 2,
        }
        for i in range(5)
    ]
    text = drawn(
        ranking.table(
            ranking.frame(
                [record(i, h, val_acc=0.9 - 0.01 * i) for i, h in enumerate(hyperparameters)]
            )
        )
    )
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "learning_" in text and "0.0123" in text and "depth" not in text
    assert [line.split()[1] for line in text.splitlines()[2:]] == [
        f"coarse-000{i}" for i in range(5)
    ]


def test_the_table_folds_many_hyperparameters_and_tells_why_a_trial_ended() -> None:
    many = [{f"hyperparameter_{k}": i * 1000.5 + k for k in range(8)} for i in range(2)]
    records = [
        record(0, many[0], val_acc=0.9),
        record(1, many[1], state=TrialState.EXPLODED, reason="[red]loss 7.1\x1b[2J\nmore"),
    ]
    text = drawn(ranking.table(ranking.frame(records)))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "exploded: [red]loss 7.1" in text
    assert "\x1b" not in text and "more" not in text
    assert all(f"hyperparameter_{k}" in text.replace("\n", " ") for k in range(8))


def test_a_table_of_very_many_says_how_to_see_the_rest() -> None:
    records = [record(i, {"x": i / 7}, val_acc=0.5) for i in range(300)]
    text = " ".join(drawn(ranking.table(ranking.frame(records))).split())
    assert "the best 200 of 300 trials; --top N shows N" in text
    assert "coarse-0299" in drawn(ranking.table(ranking.frame(records), top=300))


def test_wilson_agrees_with_published_values() -> None:
    """Newcombe, "Two-sided confidence intervals for the single proportion".

    Statistics in Medicine 17 (1998), table I.
    """
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@given(n=st.integers(1, 10**6), data=st.data())
def test_wilson_holds_the_share_and_stays_in_the_unit_interval(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n + 1e-12 and correct / n - 1e-12 <= high <= 1


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_cannot_be_counted(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="correct of"):
        wilson(correct, n)


# -- the diagnosis ---------------------------------------------------------------------------------

STILL = Diagnosis(
    word="still improving",
    sentence="Validation loss fell by 9%: train longer.",
    figures={"val_loss": 0.5},
)


def test_the_diagnosis_is_in_every_form_of_the_ranking() -> None:
    ranked = ranking.frame(
        [record(0, {"x": 0.1}, val_acc=0.9, diagnosis=STILL), record(1, {"x": 0.2}, val_acc=0.8)]
    )
    rows = json.loads(ranking.as_json(ranked, ()))
    assert [row["diagnosis"] for row in rows] == [
        {"word": STILL.word, "sentence": STILL.sentence},
        None,
    ]
    assert [row["diagnosis"] for row in csv.DictReader(io.StringIO(ranking.csv(ranked, ())))] == [
        "still improving",
        "",
    ]
    assert "| still improving | 0.1 |" in ranking.markdown(ranked, ())
    text = drawn(ranking.table(ranked)).splitlines()
    assert "diagnosis" in text[0] and "still improving" in text[1]


def test_a_ranking_without_diagnoses_has_no_column_for_them() -> None:
    assert "diagnosis" not in drawn(
        ranking.table(ranking.frame([record(0, {"x": 0.1}, val_acc=0.9)]))
    )


def test_where_hyperparameters_leave_no_room_for_a_column_the_word_stands_before_them() -> None:
    many = {f"hyperparameter_{i}": 0.123 for i in range(6)}
    failed = record(
        2,
        many,
        state=TrialState.EXPLODED,
        reason="loss above 3 x its first",
        diagnosis=Diagnosis(word="exploded", sentence="."),
    )
    ranked = ranking.frame(
        [record(0, many, val_acc=0.9, diagnosis=STILL), record(1, many, val_acc=0.8), failed]
    )
    text = drawn(ranking.table(ranked, width=80))
    assert "still improving; " in text and "diagnosis" not in text and text.count("exploded") == 1
    assert drawn(ranking.table(ranked, width=120), 120).split()[:5] == [
        "#",
        "trial",
        "val_acc",
        "val_loss",
        "diagnosis",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (0.0, "0.0000"),
        (0.93614, "0.9361"),
        (-2.5, "-2.5000"),
        (0.001, "0.0010"),
        (9.1e-4, "0.00091"),
        (1e-12, "1e-12"),
        (9999.0, "9999.0000"),
        (1e4, "1e+04"),
        (1e308, "1e+308"),
        (-3.2e-7, "-3.2e-07"),
        (float("inf"), "inf"),
    ],
)
def test_a_metric_is_shown_in_few_digits_whatever_its_size(value: float | None, shown: str) -> None:
    assert format_metric(value) == shown
