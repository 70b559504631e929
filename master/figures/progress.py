"""The best value so far, against the epochs trained and against time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from master.figures.names import FIGURE_TITLES
from master.figures.style import BLUE, GREY, empty, frame, metric_axis, safe, thin
from master.figures.table import is_min, with_shares

TITLE = FIGURE_TITLES["progress"]
UNITS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "days"))  # (seconds, name)
BEGUN = 0.02  # share of the trials; the axis begins near the best of the first ones
MARGIN = 0.25  # share of the shown span, added below and above
LEAST_SHOWN = 3.0  # a unit is used if the longest time is at least this many of it


def best_so_far(attempts: pd.DataFrame, columns: int = 2) -> go.Figure:
    """Draw the best value of the metric after each number of epochs and after each time.

    The best value is a line of steps, and each attempt is a pale point.

    Args:
        attempts: See ``with_shares``. A trial has one for each of its budgets, and each counts the
            epochs that it added.
        columns: The number of columns; 1 on a phone.
    """
    known = with_shares(attempts) if "own_epochs" not in attempts else attempts
    ended = known.sort_values("ended_at", kind="stable")
    if not ended["good"].any():
        return empty(TITLE, "No trial has completed yet.")
    timed = bool((ended["ended_at"] > 0).all())
    n_panels = 2 if timed else 1
    rows = -(-n_panels // columns)
    figure = make_subplots(
        rows=rows, cols=min(columns, n_panels), horizontal_spacing=0.12, vertical_spacing=0.2
    )
    good = ended["good"].to_numpy(dtype=bool)
    epochs = np.cumsum(ended["own_epochs"].to_numpy(dtype=float))
    _panel(
        figure,
        ended[good],
        epochs[good],
        float(epochs[-1]),
        "epochs trained, all trials together",
        1,
        1,
    )
    if timed:
        passed, unit = in_unit(ended["ended_at"].to_numpy(dtype=float) - _began(ended))
        place = (2, 1) if columns == 1 else (1, 2)
        _panel(
            figure,
            ended[good],
            passed[good],
            float(passed[-1]),
            f"time since the first trial began ({unit})",
            *place,
        )
    _, thinning = thin(ended[good])
    frame(
        figure,
        TITLE,
        f"Steps: the best so far. Points: trials at the end of a budget. {thinning}".strip(),
        130 + 270 * rows,
    )
    figure.update_layout(showlegend=False)
    return figure


def in_unit(seconds: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str]:
    """Return times in the unit that suits the longest of them, and the name of the unit."""
    longest = float(seconds.max()) if len(seconds) else 0.0
    size, name = next(((s, n) for s, n in reversed(UNITS) if longest >= LEAST_SHOWN * s), UNITS[0])
    return seconds / size, name


def _began(ended: pd.DataFrame) -> float:
    return float((ended["ended_at"] - ended["own_seconds"]).min())


def _panel(
    figure: go.Figure,
    good: pd.DataFrame,
    x: np.ndarray[Any, Any],
    last: float,
    title: str,
    row: int,
    column: int,
) -> None:
    values = good["value"].to_numpy(dtype=float)
    best = np.minimum.accumulate(values) if is_min(good) else np.maximum.accumulate(values)
    steps = np.flatnonzero(np.diff(best, prepend=np.nan) != 0)
    drawn, _ = thin(good.assign(_x=x))
    figure.add_scatter(
        x=drawn["_x"].to_numpy(),
        y=drawn["value"].to_numpy(),
        mode="markers",
        marker={"color": GREY, "size": 4, "opacity": 0.35},
        text=[
            safe(f"{name}, {budget:g} epochs")
            for name, budget in zip(drawn["trial"], drawn["budget_epochs"], strict=True)
        ],
        hovertemplate="%{text}: %{y:.4g}<extra></extra>",
        name="trials",
        row=row,
        col=column,
    )
    told = [*(safe(name) for name in good["trial"].to_numpy()[steps]), "now"]
    figure.add_scatter(
        x=np.append(x[steps], last),
        y=np.append(best[steps], best[-1]),
        mode="lines",
        line={"color": BLUE, "width": 2.5, "shape": "hv"},
        text=told,
        hovertemplate="%{text}: %{y:.4g}<extra>best so far</extra>",
        name="best so far",
        row=row,
        col=column,
    )
    figure.update_xaxes(title_text=title, rangemode="tozero", row=row, col=column)
    figure.update_yaxes(metric_axis(good), row=row, col=column)
    low, high = float(best[min(len(best) - 1, int(BEGUN * len(best)))]), float(best[-1])
    if not is_min(good) and high > low:
        # The first trials are far below the others and would flatten the rest to a line.
        figure.update_yaxes(
            range=[low - MARGIN * (high - low), high + MARGIN * (high - low)], row=row, col=column
        )
