"""The metric against the budget, a line for each trial.

It shows which trials were promoted and how far.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from master.figures.names import FIGURE_TITLES
from master.figures.scales import GOLDEN
from master.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    empty,
    frame,
    metric_axis,
    metric_title,
    safe,
    thin,
)
from master.figures.table import is_min
from master.results.lineage import describe_draw

TITLE = FIGURE_TITLES["rungs"]
# By the longest budget that a promoted trial reached, the shortest first.
WENT_ON_COLOURS = (SKY, GREEN, BLUE, PURPLE, ORANGE)
# Decades to either side over which trials of the same budget are spread, else they would hide each
# other.
SPREAD = 0.06
ROOM = 0.12  # decades beside the first and the last budget
# Ticks of the axis of a share, given as 1 - share.
SHARE_TICKS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
LEAST_MISSING = 5e-4  # lower bound of 1 - share, since a log axis cannot show 0
MOST_LINES = 600  # trials drawn; browsers draw more only slowly, and they hide one another
HEIGHT = 460  # pixels


def rungs(trials: pd.DataFrame) -> go.Figure:
    """Draw each trial's best value within each budget that it reached.

    Promoted trials are lines, the others dots. The best is a thick line.

    Args:
        trials: The trials of this stage and of those before it, see ``table``.
    """
    measured = trials[trials["rungs"].map(len) > 0]
    if not len(measured):
        return empty(TITLE, "No trial has completed yet.")
    best_first = measured.sort_values("standing", kind="stable")
    drawn, thinning = thin(best_first, MOST_LINES, by="standing")
    ends = sorted({row[-1][0] for row in drawn["rungs"] if len(row) > 1})
    note = "Lines: promoted trials, from budget to budget. Dots: trials that were not promoted."
    note += "" if ends else " No trial was promoted in these stages."
    note += f" {thinning}" if thinning else ""
    figure = frame(go.Figure(), TITLE, note, HEIGHT)
    alone = drawn[(drawn["rungs"].map(len) == 1) & (drawn["rung"] == 0)]
    share = _is_share(measured)
    _paths(figure, alone, share, f"not promoted ({len(alone):,})", GREY, lines=False)
    for number, end in enumerate(ends):
        part = drawn[drawn["rungs"].map(lambda row, end=end: len(row) > 1 and row[-1][0] == end)]
        colour = WENT_ON_COLOURS[min(number, len(WENT_ON_COLOURS) - 1)]
        _paths(figure, part, share, f"on to {end:g} epochs ({len(part):,})", colour)
    _lost(figure, drawn, share)
    _paths(
        figure,
        best_first.head(1),
        share,
        f"best: {best_first['trial'].iloc[0]}",
        VERMILION,
        width=3.5,
    )
    _axes(figure, drawn)
    return figure


def _paths(
    figure: go.Figure,
    trials: pd.DataFrame,
    share: bool,
    name: str,
    colour: str,
    lines: bool = True,
    width: float = 1.4,
) -> None:
    """Draw all trials of a kind as one path, with gaps between them."""
    if not len(trials):
        return
    x, y, text = list[float | None](), list[float | None](), list[str | None]()
    row: Any
    for row in trials.itertuples():
        words, shift = _words(row), _shift(row.index)
        for epochs, value in row.rungs:
            x.append(epochs * shift)
            y.append(_height(value, share))
            text.append(
                f"{words}<br>{value:.4g} within {epochs:g} {'epoch' if epochs == 1 else 'epochs'}"
            )
        x.append(None)
        y.append(None)
        text.append(None)
    figure.add_scatter(
        x=x,
        y=y,
        text=text,
        mode="lines+markers" if lines else "markers",
        connectgaps=False,
        name=safe(name),
        line={"color": colour, "width": width},
        marker={"size": 5 if lines else 4, "color": colour, "opacity": 1.0 if lines else 0.5},
        hovertemplate="%{text}<extra></extra>",
    )


def _shift(index: int) -> float:
    """Return the factor on the budgets of a trial.

    It moves the trial aside from others of the same budget.
    """
    return float(10 ** (SPREAD * (2 * (index * GOLDEN % 1) - 1)))


def _words(row: Any) -> str:
    """Return the hover text: ``middle-0037, bred from two of the best trials: a, b``."""
    words = describe_draw(row.drawn, row.parents)
    return safe(f"{row.trial}, {words}" if words else str(row.trial))


def _lost(figure: go.Figure, trials: pd.DataFrame, share: bool) -> None:
    """Mark promoted trials that did not reach their longer budget.

    Each has a cross where it was last measured.
    """
    lost = trials[~trials["good"] & (trials["rung"] > 0)]
    if not len(lost):
        return
    places = [
        row[-1][0] * _shift(index) for row, index in zip(lost["rungs"], lost["index"], strict=True)
    ]
    figure.add_scatter(
        x=places,
        y=[_height(row[-1][1], share) for row in lost["rungs"]],
        mode="markers",
        name=f"lost on the way ({len(lost):,})",
        marker={"symbol": "x", "size": 8, "color": BLACK},
        text=[
            safe(f"{row.trial}: {row.state} on the way to {row.budget_epochs:g} epochs")
            for row in lost.itertuples()
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _axes(figure: go.Figure, trials: pd.DataFrame) -> None:
    budgets = sorted({epochs for row in trials["rungs"] for epochs, _ in row})
    ends = np.log10([budgets[0], budgets[-1]])
    figure.update_xaxes(
        type="log",
        title_text="budget (epochs, log scale)",
        tickvals=budgets,
        ticktext=[f"{epochs:g}" for epochs in budgets],
        range=[ends[0] - ROOM, ends[1] + ROOM],
    )
    figure.update_yaxes(_height_axis(trials))


def _is_share(trials: pd.DataFrame) -> bool:
    """Return whether the metric is a share, such as accuracy.

    This is so if higher is better and all values lie between 0 and 1.
    """
    return not is_min(trials) and all(
        0 <= value <= 1 for row in trials["rungs"] for _, value in row
    )


def _height(value: float, is_share: bool) -> float:
    """Return the height at which a value is drawn.

    For a share it is 1 - value, so that good trials can be told apart.
    """
    return max(1 - value, LEAST_MISSING) if is_share else value


def _height_axis(trials: pd.DataFrame) -> dict[str, Any]:
    """Return the axis of the metric.

    The axis of a share is logarithmic in 1 - share, and its ticks show the share itself.
    """
    if not _is_share(trials):
        return metric_axis(trials)
    missing = [_height(value, True) for row in trials["rungs"] for _, value in row]
    low, high = np.log10(min(missing)), np.log10(max(missing))
    marks = {"tickvals": list(SHARE_TICKS), "ticktext": [f"{1 - tick:g}" for tick in SHARE_TICKS]}
    return {
        "title": {"text": metric_title(trials)},
        "type": "log",
        "range": [high + ROOM / 2, low - ROOM / 2],
        **marks,
    }
