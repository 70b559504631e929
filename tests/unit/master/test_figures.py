"""What a reader of the figures sees, from made rankings."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from common.folder.record import Record
from common.search.space import Space
from common.search.trial import TrialState
from master.figures.catalogue import Material, draw
from master.figures.curves import choose_trials
from master.figures.hyperparameters import hyperparameters
from master.figures.names import FIGURES
from master.figures.outcomes import outcomes
from master.figures.parallel import parallel
from master.figures.progress import best_so_far
from master.figures.scales import scales
from master.figures.style import CONFIG, MOST_POINTS, name_layers, thin
from master.figures.table import table
from master.figures.telling import importance, telling
from master.figures.timeline import timeline
from tests.unit.master.made import peak, record, sampled

SPACE = Space.parse(
    {
        "learning_rate": {"log_uniform": [1e-6, 1e0]},
        "hidden": {"choice": [32, 64]},
        "depth": {"int_uniform": [1, 4]},
    }
)
NARROWER = Space.parse(
    {
        "learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "hidden": {"choice": [64]},
        "depth": {"int_uniform": [1, 4]},
    }
)
RECORDS = sampled(SPACE, peak(1e-3), n=60)
CURVES = {
    "epoch": [1.0, 2.0],
    "train_loss": [2.0, 0.5],
    "val_loss": [1.5, 0.0],
    "train_acc": [0.3, 0.9],
    "val_acc": [0.4, 0.8],
}
RATIOS = {"update_ratio.0": [1e-2, 1e-3], "update_ratio.3": [None, 2e-3]}
HISTOGRAM = {
    "low": -1.0,
    "high": 1.0,
    "counts": [1, 0, 2, 1],
    "mean": 0.0,
    "std": 0.5,
    "zeros": 0.25,
}


def traces(figure: Any, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


def material(records: list[Record], space: Space = SPACE) -> Material:
    trials = table(records)
    return Material("coarse", trials, trials, trials, {"coarse": space}, {"coarse": space})


def test_each_hyperparameter_stands_in_the_scale_it_is_sampled_on_and_the_best_is_ringed() -> None:
    figure = hyperparameters(table(RECORDS), {"coarse": SPACE})
    assert [figure.layout[f"xaxis{n}"].type for n in ("", 2, 3)] == ["log", "linear", "linear"]
    assert figure.layout.xaxis.title.text == "learning_rate (log scale)"
    assert list(figure.layout.xaxis2.ticktext) == ["32", "64"]
    assert figure.layout.yaxis.title.text == "validation accuracy (share)"
    best = max(RECORDS, key=lambda r: r.val_acc or 0)
    rings = traces(figure, "best of coarse")
    assert len(rings) == 3 and rings[0].marker.line.width > 0
    assert (rings[0].x[0], rings[0].y[0]) == (best.hyperparameters["learning_rate"], best.val_acc)


def test_the_narrowing_and_the_border_zones_can_be_seen() -> None:
    figure = hyperparameters(table(RECORDS), {"coarse": SPACE, "fine (proposed)": NARROWER})
    before, after = (
        traces(figure, "range of coarse")[0],
        traces(figure, "range of fine (proposed)")[0],
    )
    assert tuple(before.x[:2]) == pytest.approx((1e-6, 1e0)) and tuple(
        after.x[:2]
    ) == pytest.approx((1e-4, 1e-2))
    assert before.y[0] > after.y[0]  # the later stage below
    assert [x for x in traces(figure, "range of fine (proposed)")[1].text if x] == [
        "64",
        "64",
    ]  # the option 32 is gone
    zone = figure.layout.shapes[0]
    assert (zone.x0, zone.x1) == pytest.approx((1e-6, 10 ** (-6 + 0.05 * 6)))


def test_border_zones_of_whole_numbers_hold_the_numbers_that_are_warned_of() -> None:
    shapes = hyperparameters(table(RECORDS), {"coarse": SPACE}).layout.shapes
    assert [(s.x0, s.x1) for s in shapes if s.xref == "x3"] == [(0.5, 1.5), (3.5, 4.5)]


def test_trials_without_a_value_are_drawn_below_all_others() -> None:
    lost = [record(99, dict(RECORDS[0].hyperparameters), state=TrialState.EXPLODED, val_acc=None)]
    figure = hyperparameters(table([*RECORDS, *lost]), {"coarse": SPACE})
    assert traces(figure, "coarse: not completed")[0].y[0] < min(r.val_acc or 0 for r in RECORDS)


def test_a_phone_gets_the_same_panels_below_each_other() -> None:
    wide, narrow = (
        hyperparameters(table(RECORDS), {"coarse": SPACE}, columns) for columns in (2, 1)
    )
    assert wide.layout.xaxis2.domain[0] > 0.5 and narrow.layout.xaxis2.domain[0] == 0
    assert narrow.layout.height > wide.layout.height and len(wide.data) == len(narrow.data)


def test_a_loss_is_best_where_it_is_small() -> None:
    records = [
        record(i, {"learning_rate": 10.0**-i}, metric="val_mae", mode="min", value=2.0**-i)
        for i in range(1, 5)
    ]
    figure = hyperparameters(
        table(records), {"coarse": Space.parse({"learning_rate": {"log_uniform": [1e-5, 1.0]}})}
    )
    assert traces(figure, "best of coarse")[0].y[0] == 2.0**-4
    assert figure.layout.yaxis.type == "log" and figure.layout.yaxis.title.text == "val_mae"
    steps = traces(best_so_far(table(records)), "best so far")[0].y
    assert list(steps) == sorted(steps, reverse=True)


@pytest.mark.parametrize(
    ("range_", "ticks"),
    [
        ({"uniform": [0.1, 0.9], "step": 0.2}, ["0.1", "0.3", "0.5", "0.7", "0.9"]),
        ({"int_uniform": [32, 512], "step": 32}, ["32", "160", "288", "384", "512"]),
        ({"int_uniform": [1, 3]}, ["1", "2", "3"]),
    ],
)
def test_ticks_of_a_range_with_steps_are_values_that_may_be_drawn(
    range_: dict[str, object], ticks: list[str]
) -> None:
    (scale,) = scales({"coarse": Space.parse({"x": range_})})
    marks = scale.ticks()
    assert [text for _, text in marks] == ticks
    assert all(0 < place < 1 for place, _ in marks)


def test_parallel_coordinates_draw_the_best_on_top() -> None:
    figure = parallel(table(RECORDS), {"coarse": SPACE})
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert lines[-1].name == "best" and lines[-1].line.width > 2
    assert sum(math.isnan(x) for trace in lines[:-1] for x in trace.x) == len(
        RECORDS
    )  # a gap after each trial
    assert list(figure.layout.xaxis.ticktext) == ["learning_rate", "hidden", "depth", "val_acc"]
    assert max(np.nanmax(trace.y) for trace in lines) <= 1


def test_curves_are_of_the_best_the_median_the_last_and_an_exploded_trial() -> None:
    good = [record(i, {"x": 1.0}, val_acc=0.9 - 0.1 * i, curves=CURVES) for i in range(7)]
    bad = record(7, {"x": 9.0}, state=TrialState.EXPLODED, val_acc=None, curves=CURVES)
    trials = table([*good, bad, record(8, {"x": 1.0}, val_acc=0.99)])  # the last has no curves
    assert choose_trials(trials) == [
        "coarse-0000",
        "coarse-0001",
        "coarse-0002",
        "coarse-0003",
        "coarse-0006",
        "coarse-0007",
    ]


def test_losses_stand_on_a_log_axis_which_has_no_zero() -> None:
    figure = draw(
        "losses", material([record(0, {"x": 1.0}, val_acc=0.9, curves=CURVES)]), ["coarse-0000"]
    )
    assert figure.layout.yaxis.type == "log" and figure.layout.xaxis.title.text == "epoch"
    assert [list(trace.y) for trace in figure.data] == [[1.5], [2.0, 0.5]]
    assert [trace.line.dash for trace in figure.data] == ["solid", "dot"]  # validation, training
    accuracies = draw("accuracies", material([record(0, {"x": 1.0}, val_acc=0.9, curves=CURVES)]))
    assert [list(trace.y) for trace in accuracies.data] == [[0.4, 0.8], [0.3, 0.9]]


def test_ratios_have_a_line_a_layer_and_the_one_at_a_thousandth() -> None:
    figure = draw("ratios", material([record(0, {"x": 1.0}, val_acc=0.9, curves=CURVES | RATIOS)]))
    assert [trace.name for trace in figure.data] == ["layer 1", "layer 2", "1e-3"]
    assert list(figure.data[1].x) == [2.0] and set(figure.data[2].y) == {1e-3}
    assert figure.layout.yaxis.type == "log"


def test_layers_of_a_kind_are_counted_and_names_stay() -> None:
    assert name_layers(["0", "10", "2"]) == {"0": "layer 1", "2": "layer 2", "10": "layer 3"}
    assert name_layers(["0", "head"]) == {"0": "layer 0", "head": "layer head"}


def test_the_best_has_its_line_of_descent() -> None:
    kin = [
        record(0, {"x": 1.0}, val_acc=0.5),
        record(1, {"x": 2.0}, val_acc=0.7, drawn="child", parents=("coarse-0000", "gone-0001")),
        record(2, {"x": 3.0}, val_acc=0.9, drawn="child", parents=("coarse-0001",)),
    ]
    figure = draw("hyperparameters", material(kin, Space.parse({"x": {"uniform": [0.0, 4.0]}})))
    line = next(trace for trace in figure.data if trace.name == "line of descent")
    assert [x for x in line.x if not math.isnan(x)] == [3.0, 2.0, 2.0, 1.0]
    assert "child of coarse-0001" in line.text[0]


def test_histograms_are_shares_of_each_layer() -> None:
    portrait = {
        "activations": {"1": {"kind": "relu", **HISTOGRAM}},
        "gradients": {"0": HISTOGRAM, "3": HISTOGRAM},
    }
    figure = draw("histograms", material([record(0, {"x": 1.0}, val_acc=0.9, portrait=portrait)]))
    assert [list(trace.y) for trace in figure.data] == [
        [25.0, 50.0, 25.0]
    ] * 3  # an empty bin has no place on a log axis
    assert list(figure.data[0].x) == [-0.75, 0.25, 0.75]
    assert "layer 1 (relu), 25% zeros" in [note.text for note in figure.layout.annotations]


def test_ends_have_a_colour_and_a_symbol_each_over_the_two_most_telling() -> None:
    ends = [
        (r, state)
        for r, state in zip(
            RECORDS, ["completed", "exploded", "stopped", "killed", "failed"] * 12, strict=True
        )
    ]
    records = [r.model_copy(update={"state": TrialState(state)}) for r, state in ends]
    figure = outcomes(table(records), {"coarse": SPACE}, ["learning_rate", "depth"])
    assert {trace.name for trace in figure.data} == {
        f"{s} (12)" for s in ("completed", "exploded", "stopped", "killed", "failed")
    }
    assert (
        len({trace.marker.symbol for trace in figure.data})
        == len({trace.marker.color for trace in figure.data})
        == 5
    )
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "linear")


def test_what_decides_is_found() -> None:
    assert telling(table(RECORDS), {"coarse": SPACE}, n=1) == ["learning_rate"]
    figure = importance(table(RECORDS), {"coarse": SPACE})
    assert (
        figure.data[0].y[-1] == "learning_rate" and figure.data[0].x[-1] > 5 * figure.data[0].x[-2]
    )
    assert "Caution" in figure.layout.title.subtitle.text
    few = importance(table(RECORDS[:5]), {"coarse": SPACE})
    assert not few.data and "too few" in few.layout.annotations[0].text


def test_the_best_so_far_rises_with_trials_and_time() -> None:
    records = [
        record(i, {}, val_acc=v, seconds=60.0, ended_at=1000.0 + 600 * i)
        for i, v in enumerate([0.5, 0.4, 0.8, 0.7])
    ]
    trials, time = traces(best_so_far(table(records)), "best so far")
    assert (list(trials.x), list(trials.y)) == ([1, 3, 4], [0.5, 0.8, 0.8])
    assert list(time.x) == [1, 21, 31]  # minutes since the first began
    figure = best_so_far(table([r.model_copy(update={"ended_at": 0.0}) for r in records]))
    assert len(traces(figure, "best so far")) == 1  # no times are known


def test_a_timeline_has_a_bar_an_attempt_and_marks_kills_and_later_tries() -> None:
    made = [
        ("w1", 1, "completed", 10, 10),
        ("w1", 1, "completed", 12, 12),
        ("w2", 2, "killed", 20, 5),
    ]
    records = [
        record(
            i,
            {},
            worker=worker,
            attempt=attempt,
            state=state,
            ended_at=1000.0 + end,
            seconds=seconds,
            val_acc=0.5,
        )
        for i, (worker, attempt, state, end, seconds) in enumerate(made)
    ]
    figure = timeline(table(records))
    bars = traces(figure, "completed (2)")[0]
    assert (
        list(bars.x[:3]) == [0, 5, 10] and bars.y[0] != bars.y[4]
    )  # both at once, so on lanes of their own
    assert list(traces(figure, "killed")[0].x) == [20] and list(
        traces(figure, "second or later attempt")[0].x
    ) == [15]
    assert list(figure.layout.yaxis.ticktext) == ["w1", "w2"]
    assert figure.layout.xaxis.title.text.endswith("(s)")


def test_thousands_of_points_are_thinned_and_it_is_said() -> None:
    trials = pd.DataFrame({"rank": np.arange(10_000, 0, -1)})
    kept, note = thin(trials)
    assert len(kept) == MOST_POINTS and kept["rank"].is_monotonic_decreasing
    assert set(range(1, 501)) <= set(kept["rank"]) and "2,000 of 10,000" in note
    assert thin(trials.head(5))[1] == ""


def test_names_are_letters_and_never_markup() -> None:
    space = Space.parse(
        {
            "optimizer": {"choice": ["<a href='http://x'>sgd</a>", "%{x}"]},
            "x": {"uniform": [0.0, 1.0]},
        }
    )
    records = [
        record(i, {"optimizer": o, "x": 0.5}, val_acc=0.5)
        for i, o in enumerate(["<a href='http://x'>sgd</a>", "%{x}"])
    ]
    lines = draw("parallel", material(records, space))
    lines.layout.meta = None  # what a page compares with; it is never drawn
    text = draw("hyperparameters", material(records, space)).to_json() + lines.to_json()
    assert "<a " not in text.replace("\\u003c", "<") and "% {x}" in text


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(
    "records",
    [[], RECORDS[:1], [record(0, {}, state=TrialState.FAILED, val_acc=None, val_loss=math.inf)]],
)
def test_every_figure_says_what_is_missing_rather_than_fail(
    name: str, records: list[Record]
) -> None:
    figure = draw(name, material(records))
    assert figure.data or figure.layout.annotations[0].text
    assert figure.layout.title.text
    json.loads(
        figure.to_json(),
        parse_constant=lambda constant: pytest.fail(f"{constant} is not strict JSON"),
    )


def test_no_chart_is_sent_anywhere() -> None:
    assert CONFIG["showSendToCloud"] is False and CONFIG["plotlyServerURL"] == ""
