"""Parallel coordinates: each trial is a line through its hyperparameters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from common.search.space import Space
from master.figures.names import FIGURE_TITLES
from master.figures.scales import Scale, scales
from master.figures.style import GREY, SCALE, VERMILION, empty, frame, metric_title, safe, thin
from master.figures.table import is_min

TITLE = FIGURE_TITLES["parallel"]
SHADES = 12  # of colour, as many as the eye tells apart; the browser draws one path for each
# Quantile of the metric. Values that are worse all have the colour of the worst, so that the good
# ones differ in colour.
LOW_QUANTILE = 0.1
MOST_LINES = 1000  # more would be a block of colour
MOST_PALE = 500  # lines of trials that do not match
METRIC_TICKS = 5
PALE = "rgba(128, 134, 140, 0.4)"
HEIGHT = 460  # pixels


def parallel(
    trials: pd.DataFrame, ranges: Mapping[str, Space], matching: Collection[str] | None = None
) -> go.Figure:
    """Draw each trial as a line through its hyperparameters.

    Better trials lie on top. The best, by budget and then by the metric, is a thick line. The
    figure's ``meta`` has the ends of its axes, so that a page can offer to select a part of one.

    Args:
        trials: See ``table``. Trials without a value of the metric are left out.
        ranges: What each stage sampled.
        matching: The names of the trials to draw in colour; the others are pale. None for all.
    """
    good = trials[trials["good"]]
    shown = scales(ranges)
    if not len(good) or not shown:
        return empty(
            TITLE,
            "No trial has completed yet."
            if shown
            else "This stage samples nothing: all values are fixed.",
        )
    ends = float(good["value"].min()), float(good["value"].max())
    matches = good["trial"].isin(good["trial"] if matching is None else matching)
    drawn, thinning = thin(good[matches], MOST_LINES)
    pale, _ = thin(good[~matches], MOST_PALE)
    worst_first = drawn.sort_values("standing", ascending=False, kind="stable")
    heights = _heights(worst_first, shown, ends)  # (n, axes + 1) in [0, 1]; the metric is last
    note = "A line is a trial that completed; the best in orange. " + (
        f"Pale: {len(good) - len(good[matches]):,} that do not match. " if len(pale) else ""
    )
    figure = frame(go.Figure(), TITLE, f"{note}{thinning}".strip(), HEIGHT)
    values = worst_first["value"].to_numpy(dtype=float)
    low, high = _colour_range(good["value"].to_numpy(dtype=float), is_min(trials))
    texts = [safe(f"{trial}: does not match") for trial in pale["trial"]]
    _lines(figure, _heights(pale, shown, ends), texts, PALE, width=1, name="do not match")
    shades = np.clip((values - low) / ((high - low) or 1) * SHADES, 0, SHADES - 1).astype(int)
    names = [safe(f"{t}: {v:.4g}") for t, v in zip(worst_first["trial"], values, strict=True)]
    order = range(SHADES - 1, -1, -1) if is_min(trials) else range(SHADES)
    for shade in order:
        _lines(
            figure,
            heights[shades == shade],
            [n for n, s in zip(names, shades, strict=True) if s == shade],
            _colour(shade),
        )
    _lines(figure, heights[-1:], names[-1:], VERMILION, width=3.5, opacity=1.0, name="best")
    _axes(figure, shown, trials, ends)
    figure.update_layout(meta={"axes": _describe_axes(shown, trials, ends)}, dragmode=False)
    _colour_bar(figure, low, high, metric_title(trials))
    return figure


def _heights(
    trials: pd.DataFrame, shown: list[Scale], ends: tuple[float, float]
) -> np.ndarray[Any, Any]:
    metric = (trials["value"].to_numpy(dtype=float) - ends[0]) / ((ends[1] - ends[0]) or 1)
    return np.column_stack([*(scale.unit(trials) for scale in shown), metric])


def _colour_range(values: np.ndarray[Any, Any], small: bool) -> tuple[float, float]:
    if small:
        return float(values.min()), float(np.quantile(values, 1 - LOW_QUANTILE))
    return float(np.quantile(values, LOW_QUANTILE)), float(values.max())


def _colour(shade: int) -> str:
    colour: str = sample_colorscale(SCALE, [(shade + 0.5) / SHADES])[0]
    return colour


def _lines(
    figure: go.Figure,
    heights: np.ndarray[Any, Any],
    names: list[str],
    colour: str,
    width: float = 1.2,
    opacity: float = 0.6,
    name: str = "",
) -> None:
    """Draw many lines as one path, with gaps between them."""
    n, n_axes = heights.shape
    if not n:
        return
    x = np.tile(np.append(np.arange(n_axes, dtype=float), np.nan), n)
    y = np.column_stack([heights, np.full(n, np.nan)]).ravel()
    text = [text for name in names for text in (name,) * (n_axes + 1)]
    figure.add_scatter(
        x=x,
        y=y,
        text=text,
        mode="lines",
        line={"color": colour, "width": width},
        opacity=opacity,
        connectgaps=False,
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
        name=name,
    )


def _describe_axes(
    shown: list[Scale], trials: pd.DataFrame, ends: tuple[float, float]
) -> list[dict[str, Any]]:
    """Return what a page needs to turn a part of an axis into a comparison, an axis each."""
    named = [
        {"name": scale.name, "log": scale.log, "low": scale.low, "high": scale.high}
        | {"whole": scale.integer, "options": scale.options and list(scale.options)}
        for scale in shown
    ]
    metric = {"name": str(trials["metric"].iloc[0]), "log": False, "whole": False, "options": None}
    return [*named, metric | {"low": ends[0], "high": ends[1]}]


def _axes(
    figure: go.Figure, shown: list[Scale], trials: pd.DataFrame, ends: tuple[float, float]
) -> None:
    labels = [safe(scale.name) for scale in shown] + [safe(str(trials["metric"].iloc[0]))]
    marks = [scale.ticks() for scale in shown]
    heights = np.linspace(0, 1, METRIC_TICKS)
    marks.append(
        [
            (position, f"{value:.3g}")
            for position, value in zip(heights, np.linspace(*ends, METRIC_TICKS), strict=True)
        ]
    )
    style = {
        "showarrow": False,
        "xanchor": "left",
        "xshift": 2,
        "font": {"size": 10},
        "borderpad": 0,
        "bgcolor": "rgba(255, 255, 255, 0.85)",
    }
    texts = [
        {"x": place, "y": y, "text": text, **style}
        for place, ticks in enumerate(marks)
        for y, text in ticks
    ]
    lines = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": {"color": GREY, "width": 1}}
        for x in range(len(marks))
    ]
    figure.update_layout(annotations=texts, shapes=lines)
    figure.update_xaxes(
        tickvals=list(range(len(labels))),
        ticktext=labels,
        range=[-0.15, len(labels) - 0.45],
        showgrid=False,
        showline=False,
    )
    figure.update_yaxes(visible=False, range=[-0.04, 1.04])


def _colour_bar(figure: go.Figure, low: float, high: float, title: str) -> None:
    """Add the colour bar, by a trace without points."""
    marker = {
        "color": [low],
        "cmin": low,
        "cmax": high,
        "colorscale": SCALE,
        "showscale": True,
        "colorbar": {
            "orientation": "h",
            "thickness": 10,
            "len": 0.6,
            "y": -0.28,
            "yanchor": "top",
            "x": 0,
            "xanchor": "left",
            "title": {"text": title, "side": "bottom", "font": {"size": 11}},
        },
    }
    figure.add_scatter(
        x=[None], y=[None], mode="markers", marker=marker, showlegend=False, hoverinfo="skip"
    )
