"""Workers over time.

Each attempt is a bar on the lanes of its worker. Later attempts, promotions and kills are marked.
"""

from __future__ import annotations

import heapq

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from master.figures.names import FIGURE_TITLES
from master.figures.progress import in_unit
from master.figures.style import BLACK, GREEN, ORANGE, STATE_COLOURS, empty, frame, safe
from master.figures.table import with_shares

TITLE = FIGURE_TITLES["timeline"]
# Lanes of a worker. It trains hundreds of trials at once, and a lane needs a pixel or two.
MOST_LANES = 16
WORKER_PIXELS = 64
MOST_WORKERS = 24  # only the busiest are shown; with more the figure would be too tall
NOBODY = "no worker"
NAME_WIDTH = 14  # characters of a worker's name on the axis; hovering shows the whole name


def timeline(attempts: pd.DataFrame) -> go.Figure:
    """Draw a bar for each attempt, from its start to its end, coloured by how it ended.

    Args:
        attempts: See ``with_shares``. All attempts that left a record, not only each trial's last.
    """
    known = with_shares(attempts) if "own_seconds" not in attempts else attempts
    known = known[known["ended_at"] > 0]
    if not len(known):
        return empty(TITLE, "No trial has ended yet.")
    worker = known["worker"].map(lambda name: name if isinstance(name, str) else NOBODY)
    busiest = worker.value_counts().index[:MOST_WORKERS]
    bars = known.assign(worker=worker)[worker.isin(busiest)].copy()
    begun = (bars["ended_at"] - bars["own_seconds"]).to_numpy(dtype=float)
    scaled, unit = in_unit(
        np.column_stack([begun, bars["ended_at"].to_numpy(dtype=float)]).ravel() - begun.min()
    )
    bars["start"], bars["end"] = scaled[0::2], scaled[1::2]
    names = sorted(busiest)
    n_lanes = _set_lanes(bars, names)
    missing = worker.nunique() - len(names)
    note = "A bar is an attempt at one budget; many train together in one worker."
    note += f" The {len(names)} busiest of {worker.nunique()} workers." if missing else ""
    figure = frame(go.Figure(), TITLE, note, 150 + WORKER_PIXELS * max(2, len(names)))
    width = max(1.5, min(10.0, 0.7 * WORKER_PIXELS / n_lanes))
    for state, colour in STATE_COLOURS.items():
        part = bars[bars["state"] == state]
        if len(part):
            _bars(figure, part, state, colour, width)
    _marks(
        figure,
        bars[(bars["rung"] > 0) & ~bars["retried"]],
        "start",
        "promoted: a longer budget",
        "triangle-right",
        GREEN,
    )
    _marks(figure, bars[bars["retried"]], "start", "second or later attempt", "diamond", ORANGE)
    _marks(figure, bars[bars["state"] == "killed"], "end", "killed", "x", BLACK)
    figure.update_xaxes(title_text=f"time since the first trial began ({unit})", rangemode="tozero")
    ticks = [
        safe(name if len(name) <= NAME_WIDTH else f"\u2026{name[-NAME_WIDTH:]}") for name in names
    ]
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=ticks,
        range=[-0.6, len(names) - 0.4],
        tickfont={"size": 10},
        showgrid=False,
    )
    return figure


def _set_lanes(bars: pd.DataFrame, names: list[str]) -> int:
    """Set the height ``y`` of each bar, and return the largest number of lanes.

    Bars of one worker that overlap lie on different lanes.
    """
    heights, most = np.zeros(len(bars)), 1
    start, end = bars["start"].to_numpy(dtype=float), bars["end"].to_numpy(dtype=float)
    for number, name in enumerate(names):
        own = np.flatnonzero(bars["worker"].to_numpy() == name)
        own = own[np.argsort(start[own], kind="stable")]
        lanes = _lanes(list(zip(start[own].tolist(), end[own].tolist(), strict=True)))
        used = min(MOST_LANES, max(lanes) + 1)
        most = max(most, used)
        heights[own] = [number + 0.4 - 0.8 * (lane % MOST_LANES + 0.5) / used for lane in lanes]
    bars["y"] = heights
    return most


def _lanes(spans: list[tuple[float, float]]) -> list[int]:
    """Return the lowest free lane for each (start, end), given in the order of starts."""
    lanes: list[int] = []
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for start, end in spans:
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end, lane))
        lanes.append(lane)
    return lanes


def _bars(figure: go.Figure, part: pd.DataFrame, state: str, colour: str, width: float) -> None:
    """Draw all bars of a state as one path, with gaps.

    The middle point of a bar is there for the hover text.
    """
    n = len(part)
    start, end = part["start"].to_numpy(dtype=float), part["end"].to_numpy(dtype=float)
    x = (
        np.column_stack([start, (start + end) / 2, end, np.full(n, np.nan)])
        .ravel()
        .astype(np.float32)
    )
    y = np.repeat(part["y"].to_numpy(dtype=np.float32), 4)
    text = [
        told for row in part.itertuples() for told in (None, _describe_attempt(row), None, None)
    ]
    figure.add_scatter(
        x=x,
        y=y,
        text=text,
        mode="lines",
        line={"color": colour, "width": width},
        opacity=0.75,
        connectgaps=False,
        name=f"{state} ({n:,})",
        hovertemplate="%{text}<extra></extra>",
    )


def _describe_attempt(row: object) -> str:
    names = ("trial", "attempt", "worker", "own_seconds", "budget_epochs")
    trial, attempt, worker, seconds, budget = (getattr(row, name) for name in names)
    where = f" on {worker}" if len(worker) > NAME_WIDTH else ""
    return safe(f"{trial} try {attempt} to {budget:g} epochs, {seconds:.3g} s{where}")


def _marks(
    figure: go.Figure, part: pd.DataFrame, place: str, name: str, symbol: str, colour: str
) -> None:
    if len(part):
        figure.add_scatter(
            x=part[place].to_numpy(dtype=float),
            y=part["y"].to_numpy(dtype=float),
            mode="markers",
            name=name,
            text=[_describe_attempt(row) for row in part.itertuples()],
            hovertemplate=f"{name}: %{{text}}<extra></extra>",
            marker={
                "symbol": symbol,
                "size": 9,
                "color": colour,
                "line": {"color": "white", "width": 1},
            },
        )
