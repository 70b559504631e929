"""The best so far, against trials and against time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from master.figures.style import BLUE, GREY, empty, framed, metric_axis, safe, thinned
from master.figures.table import is_min

TITLE = "Best so far"
UNITS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "days"))  # seconds of each
LEAST_SHOWN = 3.0  # of a unit: below it the smaller one is taken


def best_so_far(trials: pd.DataFrame, columns: int = 2) -> go.Figure:
    """The best value of the metric after so many trials and after so much time, as steps; each trial a pale point.

    Args:
        trials: see ``table``.
        columns: 1 on a phone.
    """
    ended = trials.sort_values("ended_at", kind="stable")
    if not ended["good"].any():
        return empty(TITLE, "No trial has completed yet.")
    timed = bool((ended["ended_at"] > 0).all())
    n_panels = 2 if timed else 1
    rows = -(-n_panels // columns)
    figure = make_subplots(rows=rows, cols=min(columns, n_panels), horizontal_spacing=0.12, vertical_spacing=0.2)
    good = ended["good"].to_numpy(dtype=bool)
    counts = np.arange(1, len(ended) + 1, dtype=float)[good]
    _panel(figure, ended[good], counts, float(len(ended)), "trials ended", 1, 1)
    if timed:
        passed, unit = in_unit(ended["ended_at"].to_numpy(dtype=float) - _began(ended))
        place = (2, 1) if columns == 1 else (1, 2)
        _panel(figure, ended[good], passed[good], float(passed[-1]), f"time since the first trial began ({unit})", *place)
    _, thinning = thinned(ended[good])
    framed(figure, TITLE, f"Steps: the best so far. Points: trials that completed. {thinning}".strip(), 130 + 270 * rows)
    figure.update_layout(showlegend=False)
    return figure


def in_unit(seconds: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str]:
    """Times in the unit that suits the longest of them."""
    longest = float(seconds.max()) if len(seconds) else 0.0
    size, name = next(((s, n) for s, n in reversed(UNITS) if longest >= LEAST_SHOWN * s), UNITS[0])
    return seconds / size, name


def _began(ended: pd.DataFrame) -> float:
    return float((ended["ended_at"] - ended["seconds"].fillna(0.0)).min())


def _panel(figure: go.Figure, good: pd.DataFrame, x: np.ndarray[Any, Any], last: float, title: str, row: int, column: int) -> None:
    values = good["value"].to_numpy(dtype=float)
    best = np.minimum.accumulate(values) if is_min(good) else np.maximum.accumulate(values)
    steps = np.flatnonzero(np.diff(best, prepend=np.nan) != 0)
    drawn, _ = thinned(good.assign(_x=x))
    figure.add_scatter(
        x=drawn["_x"].to_numpy(), y=drawn["value"].to_numpy(), mode="markers", marker={"color": GREY, "size": 4, "opacity": 0.35},
        text=[safe(name) for name in drawn["trial"]], hovertemplate="%{text}: %{y:.4g}<extra></extra>", name="trials", row=row, col=column,
    )  # fmt: skip
    told = [*(safe(name) for name in good["trial"].to_numpy()[steps]), "now"]
    figure.add_scatter(
        x=np.append(x[steps], last), y=np.append(best[steps], best[-1]), mode="lines", line={"color": BLUE, "width": 2.5, "shape": "hv"},
        text=told, hovertemplate="%{text}: %{y:.4g}<extra>best so far</extra>",
        name="best so far", row=row, col=column,
    )  # fmt: skip
    figure.update_xaxes(title_text=title, rangemode="tozero", row=row, col=column)
    figure.update_yaxes(metric_axis(good), row=row, col=column)
