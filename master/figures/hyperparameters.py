"""The metric against each hyperparameter, on the scale that it is sampled on.

The figure shows where and how each trial was drawn, with every stage's range below. Ranges rarely
change. It is the points that move towards the good configurations from stage to stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from common.search.space import Space
from master.figures.names import FIGURE_TITLES
from master.figures.scales import Scale, scales, segments, zones
from master.figures.style import (
    BLACK,
    GREY,
    STAGE_COLOURS,
    empty,
    frame,
    metric_axis,
    metric_title,
    safe,
    thin,
)
from master.figures.table import is_min

TITLE = FIGURE_TITLES["hyperparameters"]
ROW = 240  # pixels of a panel's upper part
BAR = 18  # pixels of a stage's range below it
GAP = 66  # pixels between rows, for an axis with its title
TOP, BOTTOM = 96, 70  # pixels for title and legend
COLUMN_GAP = 0.09  # share of the width, for the metric's ticks and title
# Trials without a value are drawn beyond the worst value by this share of the metric's span.
RUG = 0.07
# Points of a stage in all panels together. A browser draws this many in less than half a second.
MOST_POINTS = 6000
LEAST_POINTS = 500  # allowed in a panel, however many panels there are
SMALLEST, LARGEST = 6.0, 11.0  # size of a point in pixels, at the shortest and the longest budget
DRAWN_SYMBOLS = {  # how a configuration was drawn -> symbol
    "sobol": "circle",
    "plain": "circle-open",
    "density": "diamond",
    "child": "triangle-up",
    "grid": "square",
    "suggested": "square-open",
    "repeat": "star",
}
DRAWN_TITLES = {
    "sobol": "Sobol",
    "plain": "plain",
    "density": "density",
    "child": "child",
    "grid": "grid",
    "suggested": "suggested",
}
MOST_KIN = 20  # trials of the line of descent that is drawn
BORDER_TINT = "rgba(213, 94, 0, 0.13)"  # vermilion, for the border zones behind the points


@dataclass(frozen=True)
class _Panel:
    """The place of one hyperparameter in the figure.

    It has the number of its axes and the part of the figure that it covers.
    """

    scale: Scale
    number: int
    x: tuple[float, float]
    metric: tuple[float, float]
    bars: tuple[float, float]

    @property
    def x_axis(self) -> str:
        return _axis("x", self.number)

    @property
    def y_axis(self) -> str:
        return _axis("y", 2 * self.number - 1)

    @property
    def bar_axis(self) -> str:
        return _axis("y", 2 * self.number)


def hyperparameters(
    trials: pd.DataFrame, ranges: Mapping[str, Space], columns: int = 2
) -> go.Figure:
    """Draw a panel for each hyperparameter, with a point for each trial.

    The colour of a point is its stage, its symbol is how it was drawn, and its size grows with the
    budget. The best of each stage is ringed, and the outer 5 % of the last stage's range is tinted.

    Args:
        trials: The trials of one or several stages, see ``table``.
        ranges: What each stage sampled, in order. For a stage without trials (the next, proposed)
            only the range is drawn.
        columns: The number of columns of panels; 1 on a phone.
    """
    shown = scales(ranges)
    if not len(trials) or not shown:
        return empty(
            TITLE,
            "No trial has ended yet."
            if shown
            else "This stage samples nothing: all values are fixed.",
        )
    drawn, thinning = _thin_stages(trials, max(LEAST_POINTS, MOST_POINTS // len(shown)))
    colours = {stage: STAGE_COLOURS[i % len(STAGE_COLOURS)] for i, stage in enumerate(ranges)}
    larger = "Larger: longer budget. " if drawn["budget_epochs"].nunique() > 1 else ""
    kin = _find_kin(trials)
    descent = "Thin line: how the best descends. " if len(kin) else ""
    note = (
        f"Orange: outer 5 % of the range. Ringed: best of a stage. {descent}{larger}{thinning}"
    ).strip()
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    height = TOP + BOTTOM + rows * (ROW + BAR * len(ranges)) + (rows - 1) * GAP
    figure = frame(go.Figure(), TITLE, note, height)
    figure.update_layout(margin={"t": TOP, "b": BOTTOM}, legend_itemsizing="constant")
    for panel in _panels(shown, columns, len(ranges), height - TOP - BOTTOM):
        _draw(figure, panel, drawn, ranges, colours)
        _descent(figure, panel, kin)
    _explain_symbols(figure, drawn)
    return figure


def _thin_stages(trials: pd.DataFrame, most: int) -> tuple[pd.DataFrame, str]:
    """Thin each stage by itself, and add the ``size`` of each point in pixels.

    A fine stage is thus not lost among the thousands of a coarse one. A point grows with the
    logarithm of its trial's budget.

    Returns:
        The trials that are drawn, and a note about the thinning.
    """
    parts = [thin(part, most) for _, part in trials.groupby("stage", sort=False)]
    drawn = pd.concat([part for part, _ in parts])
    budgets = np.log(drawn["budget_epochs"].to_numpy(dtype=float))
    span = budgets.max() - budgets.min()
    sizes = SMALLEST + (LARGEST - SMALLEST) * ((budgets - budgets.min()) / span if span else 0.25)
    return drawn.assign(size=sizes), " ".join(note for _, note in parts if note)


def _panels(shown: Sequence[Scale], columns: int, n_bars: int, height: int) -> list[_Panel]:
    panels = []
    width = (1 - COLUMN_GAP * (columns - 1)) / columns
    for number, scale in enumerate(shown):
        row, column = divmod(number, columns)
        left = column * (width + COLUMN_GAP)
        top = 1 - row * (ROW + BAR * n_bars + GAP) / height
        middle = top - ROW / height
        bottom = max(0.0, middle - BAR * n_bars / height)
        panels.append(
            _Panel(
                scale,
                number + 1,
                (left, left + width),
                (middle + 4 / height, top),
                (bottom, middle),
            )
        )
    return panels


def _draw(
    figure: go.Figure,
    panel: _Panel,
    trials: pd.DataFrame,
    ranges: Mapping[str, Space],
    colours: Mapping[str, str],
) -> None:
    axis = metric_axis(trials)
    bottom = _bottom(trials, axis["type"] == "log")
    for stage, part in trials.groupby("stage", sort=False):
        _points(figure, panel, part, str(stage), colours.get(str(stage), GREY), bottom)
    for number, (stage, space) in enumerate(ranges.items()):
        _bars(figure, panel, stage, space, colours[stage], len(ranges) - 1 - number)
    sampled = [stage for stage in ranges if (trials["stage"] == stage).any()] or list(ranges)
    _tint(figure, panel, ranges[sampled[-1]])
    figure.update_layout(
        {
            _key(panel.x_axis): {**panel.scale.axis, "domain": panel.x, "anchor": panel.bar_axis},
            _key(panel.y_axis): {**axis, "domain": panel.metric, "anchor": panel.x_axis},
            _key(panel.bar_axis): {
                "domain": panel.bars,
                "anchor": panel.x_axis,
                "range": [-0.5, len(ranges) - 0.5],
                "showgrid": False,
                "ticks": "",
                "tickvals": list(range(len(ranges))),
                "ticktext": [safe(stage) for stage in reversed(list(ranges))],
                "tickfont": {"size": 10},
            },
        }
    )


def _points(
    figure: go.Figure, panel: _Panel, part: pd.DataFrame, stage: str, colour: str, bottom: float
) -> None:
    places = panel.scale.places(part)
    good, values = part["good"].to_numpy(dtype=bool), part["value"].to_numpy(dtype=float)
    hover = (
        f"%{{text}}<br>{safe(panel.scale.name)} %{{x:.4g}}<br>"
        f"{metric_title(part)} %{{y:.4g}}<extra>{safe(stage)}</extra>"
    )
    if panel.scale.options is not None:
        hover = f"%{{text}}<br>{metric_title(part)} %{{y:.4g}}<extra>{safe(stage)}</extra>"
    axes = {"xaxis": panel.x_axis, "yaxis": panel.y_axis, "mode": "markers"}
    first = panel.number == 1
    cross = {
        "color": colour,
        "size": 5,
        "opacity": 0.55,
        "symbol": "x-thin",
        "line": {"width": 1, "color": colour},
    }
    unknown = f"%{{text}}<br>{safe(panel.scale.name)} %{{x:.4g}}<extra>{safe(stage)}</extra>"
    symbols = np.array([DRAWN_SYMBOLS.get(word, "circle") for word in part["drawn"]])
    dot = {
        "color": colour,
        "size": part["size"].to_numpy(dtype=float)[good],
        "opacity": 0.65,
        "symbol": symbols[good],
    }
    for chosen, name, marker, template in (
        (good, stage, dot, hover),
        (~good, f"{stage}: not completed", cross, unknown),
    ):
        if chosen.any():
            heights = np.where(np.isnan(values), bottom, values)[chosen]
            text = [safe(_words(row)) for row in part[chosen].itertuples()]
            figure.add_scatter(
                x=places[chosen],
                y=heights,
                text=text,
                hovertemplate=template,
                marker=marker,
                name=safe(name),
                legendgroup=safe(name),
                showlegend=first,
                **axes,
            )
    _ring(figure, part[part["good"]], panel, stage, axes)


def _find_kin(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the ancestors of the best trial, each with a row for its child before it.

    The rows come in pairs: a child, then its parent.
    """
    good = trials[trials["good"]]
    places = dict(zip(trials["trial"], range(len(trials)), strict=True))
    if not len(good):
        return trials.iloc[:0]
    first = places[good.sort_values("standing", kind="stable")["trial"].iloc[0]]
    pairs, waiting, seen = list[int](), [first], {first}
    while waiting and len(seen) < MOST_KIN:
        child = waiting.pop(0)
        for parent in dict.fromkeys(trials["parents"].iloc[child]):
            if (place := places.get(parent)) is not None and place not in seen:
                pairs += [child, place]
                waiting.append(place)
                seen.add(place)
    return trials.iloc[pairs]


def _descent(figure: go.Figure, panel: _Panel, kin: pd.DataFrame) -> None:
    """Draw a line from each trial of ``_find_kin`` to its parent, with a mark at the parent."""
    if not len(kin):
        return
    x, y = panel.scale.places(kin), kin["value"].to_numpy(dtype=float)
    gap = np.full(len(kin) // 2, np.nan)
    words = [safe(_words(row)) for row in kin.itertuples()]
    text = [told for n in range(0, len(words), 2) for told in (*words[n : n + 2], "")]
    figure.add_scatter(
        x=np.column_stack([x[0::2], x[1::2], gap]).ravel(),
        y=np.column_stack([y[0::2], y[1::2], gap]).ravel(),
        mode="lines+markers",
        connectgaps=False,
        line={"color": BLACK, "width": 1},
        marker={"color": BLACK, "size": 4},
        opacity=0.7,
        name="line of descent",
        showlegend=False,
        text=text,
        hovertemplate="%{text}<extra>an ancestor of the best</extra>",
        xaxis=panel.x_axis,
        yaxis=panel.y_axis,
    )


def _words(row: Any) -> str:
    """Return the hover text: ``fine-0037: completed at 20 epochs, child of middle-0007``."""
    drawn = f", {DRAWN_TITLES.get(row.drawn, row.drawn)}" if row.drawn else ""
    if drawn and len(row.parents):
        drawn += f" of {' and '.join(dict.fromkeys(row.parents))}"
    return f"{row.trial}: {row.state} at {row.budget_epochs:g} epochs{drawn}"


def _explain_symbols(figure: go.Figure, trials: pd.DataFrame) -> None:
    """Add a legend entry for each way of drawing, if the trials have more than one."""
    ways = [way for way in DRAWN_TITLES if (trials["drawn"] == way).any()]
    for way in ways if len(ways) > 1 else []:
        marker = {"symbol": DRAWN_SYMBOLS[way], "color": GREY, "size": 8}
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker=marker,
            name=f"drawn: {DRAWN_TITLES[way]}",
            hoverinfo="skip",
        )


def _ring(
    figure: go.Figure, good: pd.DataFrame, panel: _Panel, stage: str, axes: Mapping[str, str]
) -> None:
    """Ring the best trial of the stage. Its trace is named ``best of STAGE``."""
    if not len(good):
        return
    best = good.sort_values("standing", kind="stable").head(1)
    marker = {"size": 14, "color": "rgba(0, 0, 0, 0)", "line": {"width": 2.5, "color": BLACK}}
    figure.add_scatter(
        x=panel.scale.places(best),
        y=best["value"],
        name=f"best of {safe(stage)}",
        marker=marker,
        showlegend=False,
        text=[safe(f"the best of {stage}: {_words(next(best.itertuples()))}")],
        hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
        **axes,
    )


def _bars(
    figure: go.Figure, panel: _Panel, stage: str, space: Space, colour: str, height: int
) -> None:
    """Draw a stage's range as a bar on its own line, with darker border zones at its ends."""
    ends: dict[str, list[Any]] = {"x": [], "y": [], "text": []}
    for start, end, words in segments(panel.scale, space):
        ends["x"] += [start, end, None]
        ends["y"] += [height, height, None]
        ends["text"] += [words, words, None]
    line = {"color": colour, "width": 9}
    axes = {"xaxis": panel.x_axis, "yaxis": panel.bar_axis, "mode": "lines", "showlegend": False}
    figure.add_scatter(
        **ends,
        line=line,
        name=f"range of {safe(stage)}",
        hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        **axes,
    )
    if panel.scale.name in space.ranged:
        dark = [
            x for start, end in zones(space.ranged[panel.scale.name]) for x in (start, end, None)
        ]
        heights = [None if x is None else height for x in dark]
        figure.add_scatter(
            x=dark,
            y=heights,
            line={"color": BLACK, "width": 9},
            opacity=0.55,
            hoverinfo="skip",
            name="border zones",
            **axes,
        )


def _tint(figure: go.Figure, panel: _Panel, space: Space) -> None:
    """Tint the border zones of the last stage that has trials, behind the points."""
    for start, end in (
        zones(space.ranged[panel.scale.name]) if panel.scale.name in space.ranged else []
    ):
        figure.add_shape(
            type="rect",
            x0=start,
            x1=end,
            y0=0,
            y1=1,
            xref=panel.x_axis,
            yref=f"{panel.y_axis} domain",
            fillcolor=BORDER_TINT,
            line_width=0,
            layer="below",
            name="border zone",
        )


def _bottom(trials: pd.DataFrame, log: bool) -> float:
    """Return the height at which trials without a value are drawn.

    It is below all others if higher is better, and above them if lower is better or the axis is
    logarithmic: always beyond the worst.
    """
    values = trials["value"].dropna()
    if not len(values):
        return 0.0
    if log:
        return float(values.max() * (values.max() / values.min()) ** RUG)
    span = float(values.max() - values.min()) or 1.0
    return float(values.max() + RUG * span if is_min(trials) else values.min() - RUG * span)


def _axis(letter: str, number: int) -> str:
    return letter if number == 1 else f"{letter}{number}"


def _key(axis: str) -> str:
    """Return the layout's name of an axis: ``xaxis2`` for ``x2``."""
    return f"{axis[0]}axis{axis[1:]}"
