"""Style that all figures share: colours, fonts, titles, axes, thinning and escaped text.

The colours are those of Okabe and Ito, "Color Universal Design" (2008). Colour-blind people can
tell them apart, and each has its own symbol. Colour scales use cividis (Nunez, Anderton and
Renslow, PLOS ONE 2018).

Everything is drawn as SVG. WebGL is missing on remote desktops, a page may hold only about sixteen
WebGL drawings, and plotly's WebGL needs a content-security policy that allows ``eval``. Thousands
of points are thinned instead, and a note says so.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
STAGE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)
LINE_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
STATE_COLOURS = {
    "completed": BLUE,
    "stopped": SKY,
    "exploded": VERMILION,
    "killed": BLACK,
    "failed": PURPLE,
}
STATE_SYMBOLS = {
    "completed": "circle",
    "stopped": "square",
    "exploded": "x",
    "killed": "cross",
    "failed": "diamond",
}
GREY, GRID, INK = "#6b6b6b", "#e4e4e4", "#222222"
SCALE = "Cividis"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
NOTE_WIDTH = 60  # characters of a line below a title; 400 pixels hold as many
REASON_WIDTH = 44  # characters of a line in the middle of an empty figure
# Points drawn in a panel. A browser draws this many in a tenth of a second, and more would hide
# each other.
MOST_POINTS = 2000
BEST_SHARE = 4  # 1 / BEST_SHARE of the drawn points are the best trials
METRIC_TITLES = {"val_acc": "validation accuracy (share)", "val_loss": "validation loss (nats)"}
# Configuration of every page that shows a figure. By default plotly.js offers to send a chart to a
# server of its makers.
CONFIG: dict[str, Any] = {
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "displaylogo": False,
    "responsive": True,
    "displayModeBar": "hover",
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}
_AXIS = {
    "gridcolor": GRID,
    "zeroline": False,
    "linecolor": GREY,
    "showline": True,
    "ticks": "outside",
    "tickcolor": GREY,
    "ticklen": 4,
    "automargin": True,
    "exponentformat": "power",
    "title": {"standoff": 6},
}
_TEMPLATE = go.layout.Template(
    {
        "layout": {
            "font": {"family": FONT, "size": 12, "color": INK},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "colorway": list(LINE_COLOURS),
            "hoverlabel": {"align": "left"},
            "xaxis": _AXIS,
            "yaxis": _AXIS,
        }
    }
)


def frame(figure: go.Figure, title: str, note: str = "", height: int = 420) -> go.Figure:
    """Give a figure its title, a note below it, and a legend at the bottom.

    The note is wrapped into lines that fit a phone.

    Args:
        figure: Changed in place.
        title: A few words; 40 characters fit a phone.
        note: What to know before reading the figure, as plain text.
        height: The height of the whole figure in pixels.
    """
    lines = textwrap.wrap(safe(note), NOTE_WIDTH)
    # Assigned here, because update_layout would merge it into plotly's own template.
    figure.layout.template = _TEMPLATE
    figure.update_layout(
        title={
            "text": safe(title),
            "x": 0.012,
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 12},
            "font": {"size": 16},
            "subtitle": {"text": "<br>".join(lines), "font": {"size": 12, "color": GREY}},
        },
        height=height,
        margin={"l": 56, "r": 16, "t": 48 + 16 * len(lines), "b": 44},
        legend={
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "x": 0,
            "xanchor": "left",
            "font": {"size": 11},
        },
        hovermode="closest",
    )
    return figure


def empty(title: str, reason: str) -> go.Figure:
    """Return a figure that has nothing to show, and says why."""
    figure = frame(go.Figure(), title, height=180)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    text = "<br>".join(textwrap.wrap(safe(reason), REASON_WIDTH))
    figure.add_annotation(
        text=text, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font={"color": GREY}
    )
    return figure


def safe(text: object) -> str:
    """Escape a text so that plotly shows it literally.

    It then holds no tag, link or template field.
    """
    printable = "".join(c if c.isprintable() else " " for c in str(text))
    return html.escape(printable, quote=False).replace("%{", "% {")


def name_layers(layers: Iterable[str]) -> dict[str, str]:
    """Return the layers' names in words.

    PyTorch numbers the modules of a sequence, activations among them. The layers of a kind are
    counted anew from 1, so that "0", "3" and "6" are the layers 1, 2 and 3. Other names stay.
    """
    names = list(layers)
    if not all(name.isdecimal() for name in names):
        return {name: f"layer {name}" for name in names}
    return {name: f"layer {n}" for n, name in enumerate(sorted(names, key=int), start=1)}


def metric_title(trials: pd.DataFrame) -> str:
    """Return the title of the metric's axis."""
    metric = str(trials["metric"].iloc[0]) if len(trials) else "val_acc"
    return METRIC_TITLES.get(metric, safe(metric))


def metric_axis(trials: pd.DataFrame) -> dict[str, Any]:
    """Return the axis of the metric.

    It is logarithmic if lower is better and all values are positive, as for losses. Otherwise bad
    values would squeeze the good ones together.
    """
    values = trials["value"].dropna()
    log = len(values) and trials["mode"].iloc[0] == "min" and values.min() > 0
    return {"title": {"text": metric_title(trials)}, "type": "log" if log else "linear"} | (
        {"dtick": 1} if log and _decades(values) > 1 else {}
    )


def _decades(values: pd.Series[float]) -> float:
    return float(np.log10(values.max() / values.min()))


def thin(
    trials: pd.DataFrame, most: int = MOST_POINTS, by: str = "rank"
) -> tuple[pd.DataFrame, str]:
    """Thin the trials to at most ``most`` rows.

    The best by the column ``by``, lowest first, are kept. The others are thinned evenly. The order
    stays.

    Returns:
        The rows, and a note that says how many are drawn (empty if all are).
    """
    if len(trials) <= most:
        return trials, ""
    order = trials[by].to_numpy().argsort(kind="stable")
    n_best = most // BEST_SHARE
    rest = np.sort(order[n_best:])
    kept = np.concatenate(
        [order[:n_best], rest[np.linspace(0, len(rest) - 1, most - n_best).astype(int)]]
    )
    return trials.iloc[
        np.sort(kept)
    ], f"{most:,} of {len(trials):,} trials are drawn, the best {n_best:,} among them."
