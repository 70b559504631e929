"""How users see a trial's descent: rungs, budgets, how it was drawn, and its parents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from common.folder.chosen import Chosen
from common.folder.record import Record
from common.search.trial import TrialState
from master.figures.hyperparameters import hyperparameters
from master.figures.progress import best_so_far
from master.figures.rungs import MOST_LINES, rungs
from master.figures.style import BEST_SHARE
from master.figures.table import table, with_shares
from master.figures.timeline import timeline
from master.report import stage_report
from master.report.figure_data import find_superseded, gather, read_known
from master.results import ranking
from master.results.lineage import (
    at_rungs,
    budget_words,
    children_of,
    describe_draw,
    line_of_descent,
    rung_values,
)
from master.stages.promotions import Decision
from master.stages.rungs import rung_words, rungs_so_far
from tests.unit.master.made import record
from tests.unit.master.played import TEXT, Played

CURVES = {"epoch": [1.0, 2.0, 3.0], "val_acc": [0.5, 0.7, 0.6]}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """A search that was planned from a budget and ran to its end."""
    made = Played(tmp_path_factory.mktemp("checkpoints"))
    made.run_all()
    made.folder.search_file.write_text(TEXT)
    return made


def whole(played: Played) -> list[Record]:
    return [
        own
        for stage in played.search.stages
        for own in played.folder.stage(stage.name).records(pytest.fail)
    ]


def promoted(index: int, *values: float, **more: Any) -> Record:
    """Return a trial that ended at a rung.

    Each of its budgets 1, 3 and 9 has a value; the last is under its current budget.
    """
    budgets = (1.0, 3.0, 9.0)[: len(values)]
    usual: dict[str, Any] = {
        "budget_epochs": budgets[-1], "epochs": budgets[-1], "passed": budgets[:-1],
        "max_epochs": 9.0, "val_acc": max(values),
        "attempt": len(values), "curves": {"epoch": list(budgets), "val_acc": list(values)},
        "seconds": 10 * budgets[-1],
        "ended_at": 1000 + 10 * budgets[-1], "worker": "w",
    }  # fmt: skip
    return record(index, {"x": 0.5}, **usual | more)


def traces(figure: Any, start: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name.startswith(start)]


# -- words -----------------------------------------------------------------------------------------


def test_a_budget_is_told_with_the_longest_and_the_promotions() -> None:
    assert budget_words(7, 20, 2) == "7 of 20 epochs, promoted twice"
    assert budget_words(20, 20, 3) == "20 epochs, promoted 3 times"
    assert budget_words(1, 0, 0) == "1 epoch"
    assert budget_words(1, 20, 0) == "1 of 20 epochs"


def test_how_a_configuration_was_drawn_names_its_parents() -> None:
    assert (
        describe_draw("child", ("coarse-0001", "middle-0002"))
        == "bred from two of the best trials: coarse-0001, middle-0002"
    )
    assert describe_draw("sobol") == "a point of a Sobol sequence"
    assert describe_draw("") == ""


def test_a_trial_has_a_value_at_each_budget_that_it_reached() -> None:
    assert rung_values(promoted(0, 0.5, 0.6, 0.7)) == [(1, 0.5), (3, 0.6), (9, 0.7)]
    exploded = promoted(0, 0.5, 0.6, state=TrialState.EXPLODED)
    assert rung_values(exploded) == [(1, 0.5)]  # it never reached 3 epochs
    light = promoted(0, 0.5, 0.9, 0.7).model_copy(
        update={"curves": at_rungs(promoted(0, 0.5, 0.9, 0.7))}
    )
    assert rung_values(light) == [(1, 0.5), (3, 0.9), (9, 0.9)]  # the best so far


def test_a_line_of_descent_goes_over_stages_and_names_nobody_twice() -> None:
    old = record(0, {}, val_acc=0.5, drawn="sobol")
    twin = record(1, {}, val_acc=0.6, drawn="child", parents=("coarse-0000",))
    child = record(
        2, {}, val_acc=0.7, drawn="child", parents=("coarse-0000", "coarse-0001", "gone-0001")
    )
    line = line_of_descent(child, {one.trial: one for one in (old, twin, child)})
    assert [(own.record.trial, own.generation) for own in line] == [
        ("coarse-0002", 0),
        ("coarse-0000", 1),
        ("coarse-0001", 1),
    ]
    assert [one.trial for one in children_of("coarse-0000", (old, twin, child))] == [
        "coarse-0001",
        "coarse-0002",
    ]


def test_how_far_the_rungs_of_a_stage_are(played: Played) -> None:
    stage = next(own for own in played.search.stages if len(own.plan.rungs) > 2)
    first, second, third = stage.plan.rungs[:3]
    before = rungs_so_far(stage, [])
    assert [(rung.awaited, rung.promoted, rung.is_decided) for rung in before[:2]] == [
        (stage.trials, 0, False),
        (0, 0, False),
    ]
    known = rungs_so_far(
        stage,
        [
            Decision(stage.name, second, ("a-0001", "a-0002"), complete=False),
            Decision("other", third, ("b",)),
        ],
    )
    assert (known[0].promoted, known[0].is_decided, known[1].awaited, known[2].awaited) == (
        2,
        False,
        2,
        0,
    )
    assert rung_words(known).startswith(
        f"{stage.trials} to {first:g} epoch, 2 of {stage.plan.keep[1]} to {second:g}"
    )
    done = rungs_so_far(stage, played.before().decisions)
    assert all(rung.is_decided and rung.awaited == rung.planned for rung in done)


# -- figures ---------------------------------------------------------------------------------------


def test_promoted_trials_are_lines_over_a_log_axis_and_the_best_is_thick() -> None:
    trials = table(
        [promoted(0, 0.5), promoted(1, 0.6, 0.7), promoted(2, 0.7, 0.75, 0.8), promoted(3, 0.9)]
    )
    figure = rungs(trials)
    assert figure.layout.xaxis.type == "log" and list(figure.layout.xaxis.tickvals) == [1, 3, 9]
    assert (
        traces(figure, "not promoted (2)")[0].mode,
        traces(figure, "on to 3 epochs (1)")[0].mode,
    ) == ("markers", "lines+markers")
    colours = {traces(figure, name)[0].line.color for name in ("on to 3", "on to 9", "not")}
    assert len(colours) == 3
    best = traces(figure, "best: coarse-0002")[
        0
    ]  # by budget first: 0.9 after one epoch is not comparable
    assert best.line.width > 3 and len(best.x) == 4 and best.x[3] is None
    assert list(best.y[:3]) == pytest.approx([0.3, 0.25, 0.2])
    assert figure.layout.yaxis.ticktext[1] == "0.8"  # a share stands by what it lacks to 1


def test_of_many_trials_the_best_are_drawn_and_some_of_all_others() -> None:
    n = 4 * MOST_LINES
    figure = rungs(table([promoted(i, i / n) for i in range(n)]))
    (dots,) = traces(figure, f"not promoted ({MOST_LINES:,})")
    drawn = {int(words[7:].partition("<br>")[0]) for words in dots.text if words is not None}
    n_best = MOST_LINES // BEST_SHARE
    assert len(drawn) == MOST_LINES and drawn >= {0, *range(n - n_best, n)}
    assert f"{MOST_LINES:,} of {n:,} trials are drawn" in figure.layout.title.subtitle.text.replace(
        "<br>", " "
    )


def test_who_was_lost_on_the_way_is_marked_and_a_loss_stands_on_its_own_axis() -> None:
    lost = promoted(1, 0.6, 0.7, state=TrialState.EXPLODED)
    figure = rungs(table([promoted(0, 0.5, 0.6), lost]))
    assert (
        traces(figure, "lost on the way (1)")[0].text[0]
        == "coarse-0001: exploded on the way to 3 epochs"
    )
    assert not traces(figure, "not promoted")
    loss = [
        promoted(
            i,
            0.5,
            metric="val_loss",
            mode="min",
            val_loss=0.5 + i,
            curves={"epoch": [1.0], "val_loss": [0.5 + i]},
        )
        for i in (0, 1)
    ]
    assert list(traces(rungs(table(loss)), "not promoted")[0].y) == [0.5, None, 1.5, None]


def test_the_best_so_far_counts_each_epoch_of_a_promoted_trial_once() -> None:
    records = [promoted(0, 0.5), promoted(1, 0.4), promoted(0, 0.5, 0.6)]
    step = traces(best_so_far(table(records)), "best so far")[0]
    assert (list(step.x), list(step.y)) == ([1, 4, 4], [0.5, 0.6, 0.6])
    again = with_shares(
        table(records), resumes=False
    )  # a task that cannot resume pays its first epochs again
    assert sorted(again["own_epochs"]) == [1, 1, 3]


def test_a_promotion_is_no_second_try() -> None:
    first, on, retried = (
        promoted(0, 0.5),
        promoted(0, 0.5, 0.6),
        promoted(1, 0.4, 0.5).model_copy(update={"attempt": 3}),
    )
    shares = with_shares(table([first, on, promoted(1, 0.4), retried]))
    assert list(shares["retried"]) == [
        False,
        False,
        False,
        True,
    ]  # its second attempt was lost and left no record
    assert list(shares["own_seconds"]) == [10, 20, 10, 20]
    figure = timeline(shares)
    assert (
        len(traces(figure, "promoted")[0].x) == 1
        and len(traces(figure, "second or later")[0].x) == 1
    )


def test_points_tell_how_they_were_drawn_and_how_long_they_trained(played: Played) -> None:
    stage = played.search.stages[-1]
    known = read_known(
        played.search,
        played.folder,
        stage,
        played.folder.stage(stage.name).records(pytest.fail),
        pytest.fail,
    )
    material = gather(played.search, played.folder, stage, known, None)
    figure = hyperparameters(material.history, material.following)
    symbols = {
        symbol
        for trace in figure.data
        if trace.name in material.ranges and trace.xaxis == "x"
        for symbol in trace.marker.symbol
    }
    assert {"circle", "triangle-up"} <= symbols  # Sobol points and children
    assert traces(figure, "drawn: Sobol") and traces(figure, "drawn: child")
    sizes = [
        size
        for trace in figure.data
        if trace.name in material.ranges and trace.xaxis == "x"
        for size in trace.marker.size
    ]
    assert max(sizes) > min(sizes)


def test_the_figures_know_every_attempt_of_the_stages_so_far(played: Played) -> None:
    stage = played.search.stages[-1]
    known = read_known(
        played.search,
        played.folder,
        stage,
        played.folder.stage(stage.name).records(pytest.fail),
        pytest.fail,
    )
    attempts = gather(played.search, played.folder, stage, known, None).attempts
    n_files = sum(
        len(list(played.folder.stage(own.name).trials.iterdir())) for own in played.search.stages
    )
    assert len(attempts) == n_files > len(known.whole) and not attempts["retried"].any()
    assert len(find_superseded(played.folder.stage(stage.name), known.records)) == sum(
        own.rung for own in known.records
    )


# -- the report ------------------------------------------------------------------------------------


def test_the_report_tells_where_the_best_of_the_search_comes_from(played: Played) -> None:
    last = played.search.stages[-1].name
    stage_report.report(Chosen(played.search, "", Path(), played.folder), last, pytest.fail)
    page = (played.folder.stage(last).path / "report.html").read_text()
    best = ranking.best(whole(played), 1)[0]
    words = page[: page.index("<h2>Figures</h2>")]
    assert f"Best: {best.trial}" in words and f"<h2>Line of descent of {best.trial}</h2>" in words
    assert budget_words(best.budget_epochs, best.max_epochs, best.rung) in words
    row = re.search(rf"<tr><td>{best.trial}</td><td>the best</td>.*?</tr>", words)
    assert row is not None
    for _, value in rung_values(best):
        assert f"<td>{value:.4f}</td>" in row[0]
    for parent in best.parents:
        assert f"<td>{parent}</td><td>parent</td>" in words
