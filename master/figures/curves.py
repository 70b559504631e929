"""Curves of chosen trials over epochs.

They show the loss on a log axis, the accuracies, and the update:weight ratio of each layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from master.figures.names import FIGURE_TITLES
from master.figures.style import LINE_COLOURS, METRIC_TITLES, empty, frame, name_layers, safe
from master.figures.table import best_first

MOST_MARKED = 40  # evaluations; with more, the marks would hide the line
BEST_CHOSEN = 3  # number of best trials shown, besides the median and the last
HEALTHY_RATIO = 1e-3  # CS231n notes, "Ratio of weights:updates": somewhere around 1e-3
RATIO = "update_ratio."
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
NO_CURVES = "No chosen trial has curves: they come with the first evaluation."


def choose_trials(trials: pd.DataFrame) -> list[str]:
    """Choose the trials whose curves are shown if none are named.

    These are the best three, the median and the last of those that completed, and one that
    exploded.
    """
    good = best_first(trials[_with_curves(trials)])
    places = (
        [*range(min(BEST_CHOSEN, len(good))), len(good) // 2, len(good) - 1] if len(good) else []
    )
    others = trials[_with_curves(trials) & ~trials["good"] & (trials["state"] == "exploded")]
    names = [str(good["trial"].iloc[place]) for place in places] + [
        str(name) for name in others["trial"].head(1)
    ]
    return list(dict.fromkeys(names))


def losses(trials: pd.DataFrame, names: Sequence[str] = ()) -> go.Figure:
    """Draw training and validation loss over epochs, on a log axis.

    Args:
        trials: See ``table``.
        names: The trials to show. If empty, those of ``choose_trials``.
    """
    return _pairs(
        trials,
        names,
        FIGURE_TITLES["losses"],
        "loss (nats, log scale)",
        ("train_loss", "val_loss"),
        log=True,
    )


def accuracies(trials: pd.DataFrame, names: Sequence[str] = ()) -> go.Figure:
    """Draw training and validation accuracy over epochs. A wide gap between them is overfitting.

    If the search ranks by another metric, that metric is drawn instead.

    Args:
        trials: See ``table``.
        names: The trials to show. If empty, those of ``choose_trials``.
    """
    metric = str(trials["metric"].iloc[0]) if len(trials) else "val_acc"
    if metric == "val_acc" or metric == "val_loss":
        return _pairs(
            trials,
            names,
            FIGURE_TITLES["accuracies"],
            "accuracy (share)",
            ("train_acc", "val_acc"),
        )
    return _pairs(
        trials,
        names,
        f"{metric} over epochs",
        METRIC_TITLES.get(metric, metric),
        (metric.replace("val_", "train_", 1), metric),
    )


def ratios(trials: pd.DataFrame, names: Sequence[str] = ()) -> go.Figure:
    """Draw the ratio of update norm to weight norm, a line for each layer.

    The axis is logarithmic, with a line at 1e-3.

    Args:
        trials: See ``table``.
        names: The trials to show. If empty, the best.
    """
    title = FIGURE_TITLES["ratios"]
    found = _rows(trials, names or choose_trials(trials)[:1])
    figure = frame(
        go.Figure(), title, "About 1e-3 is healthy; higher learns in jumps, lower hardly learns."
    )
    ends: list[float] = []
    for number, row in enumerate(found):
        curves = row["curves"]
        layers = [name for name in curves if name.startswith(RATIO)]
        words = name_layers([layer.removeprefix(RATIO) for layer in layers])
        for colour, layer in enumerate(layers):
            epochs, values = _points(curves, layer, log=True)
            ends += epochs
            name = words[layer.removeprefix(RATIO)] + (
                f", {row['trial']}" if len(found) > 1 else ""
            )
            _line(
                figure,
                epochs,
                values,
                name,
                LINE_COLOURS[colour % len(LINE_COLOURS)],
                DASHES[number % len(DASHES)],
            )
    if not ends:
        return empty(
            title,
            NO_CURVES
            if not len(found)
            else "The chosen trials have no ratios: their task has its own training loop.",
        )
    _line(
        figure,
        [min(0.0, *ends), max(ends)],
        [HEALTHY_RATIO] * 2,
        "1e-3",
        "#000000",
        "dash",
        marked=False,
    )
    shown = f" of {safe(found[0]['trial'])}" if len(found) == 1 else ""
    figure.update_layout(title_text=f"{title}{shown}")
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(
        title_text="update norm / weight norm",
        type="log",
        exponentformat="power",
        dtick=1,
    )
    return figure


def _pairs(
    trials: pd.DataFrame,
    names: Sequence[str],
    title: str,
    axis: str,
    curves: tuple[str, str],
    log: bool = False,
) -> go.Figure:
    found = _rows(trials, names or choose_trials(trials))
    figure = frame(go.Figure(), title, "Solid, full: validation. Dotted, open: training.")
    n_drawn = 0
    for number, row in enumerate(found):
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        shown = True
        for name, dash in zip(reversed(curves), ("solid", "dot"), strict=True):
            epochs, values = _points(row["curves"], name, log)
            if values:
                told = f"{row['trial']} ({_words(row)})"
                _line(
                    figure,
                    epochs,
                    values,
                    told,
                    colour,
                    dash,
                    group=str(row["trial"]),
                    legend=shown,
                    hover=name,
                )
                shown, n_drawn = False, n_drawn + 1
    if not n_drawn:
        return empty(title, NO_CURVES)
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(title_text=safe(axis), type="log" if log else "linear")
    return figure


def _rows(trials: pd.DataFrame, names: Sequence[str]) -> list[pd.Series]:
    by_name = {row["trial"]: row for _, row in trials[trials["trial"].isin(list(names))].iterrows()}
    return [by_name[name] for name in names if name in by_name and by_name[name]["curves"]]


def _with_curves(trials: pd.DataFrame) -> pd.Series[bool]:
    return trials["curves"].map(lambda curves: bool(curves and curves.get("epoch"))).astype(bool)


def _words(row: pd.Series) -> str:
    return f"#{row['rank']}" if row["good"] else str(row["state"])


def _points(
    curves: dict[str, list[float | None]], name: str, log: bool
) -> tuple[list[float], list[float]]:
    """Return a curve's epochs and values.

    Values that are not finite are left out, and on a log axis those that are not positive.
    """
    pairs = zip(curves.get("epoch", []), curves.get(name, []), strict=False)
    kept = [
        (float(e), float(v))
        for e, v in pairs
        if e is not None and v is not None and math.isfinite(v) and (v > 0 or not log)
    ]
    return [epoch for epoch, _ in kept], [value for _, value in kept]


def _line(
    figure: go.Figure,
    x: list[float],
    y: list[float],
    name: str,
    colour: str,
    dash: str,
    group: str | None = None,
    legend: bool = True,
    hover: str = "",
    marked: bool = True,
) -> None:
    mode = "lines+markers" if marked and len(x) <= MOST_MARKED else "lines"
    told = f"{safe(hover or name)}<br>epoch %{{x:.4g}}: %{{y:.4g}}<extra>{safe(name)}</extra>"
    # Different symbols, since a single evaluation has no line.
    symbol = "circle-open" if dash == "dot" else "circle"
    figure.add_scatter(
        x=x,
        y=y,
        name=safe(name),
        mode=mode,
        line={"color": colour, "dash": dash, "width": 2},
        marker={"size": 6, "symbol": symbol},
        legendgroup=safe(group) if group else None,
        showlegend=legend,
        hovertemplate=told,
    )
