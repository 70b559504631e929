"""How trials ended, over the two hyperparameters that explain most of their ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from common.search.space import Space
from master.figures.names import FIGURE_TITLES
from master.figures.scales import scales
from master.figures.style import (
    STATE_COLOURS,
    STATE_SYMBOLS,
    empty,
    frame,
    metric_title,
    safe,
    thin,
)
from master.figures.telling import telling

TITLE = FIGURE_TITLES["outcomes"]


def outcomes(
    trials: pd.DataFrame, ranges: Mapping[str, Space], axes: Sequence[str] = ()
) -> go.Figure:
    """Draw a point for each trial. Its colour and symbol show how the trial ended.

    Args:
        trials: See ``table``.
        ranges: What each stage sampled.
        axes: The two hyperparameters. If empty, those that explain most of the ranks (``telling``).
    """
    if not len(trials):
        return empty(TITLE, "No trial has ended yet.")
    names = list(axes) or telling(trials, ranges)
    by_name = {scale.name: scale for scale in scales(ranges)}
    if len(names) < 2 or any(name not in by_name for name in names):
        return empty(TITLE, "This needs two hyperparameters that vary.")
    x, y = (by_name[name] for name in names[:2])
    drawn, thinning = thin(trials)
    figure = frame(
        go.Figure(), TITLE, f"Over the two hyperparameters that tell most. {thinning}".strip(), 480
    )
    for state, colour in STATE_COLOURS.items():
        part = drawn[drawn["state"] == state]
        if len(part):
            figure.add_scatter(
                x=x.places(part),
                y=y.places(part),
                mode="markers",
                name=f"{state} ({(trials['state'] == state).sum():,})",
                text=[
                    safe(f"{name}: {metric_title(trials)} {v:.4g}")
                    for name, v in zip(part["trial"], part["value"], strict=True)
                ],
                hovertemplate=f"%{{text}}<br>{safe(x.name)} %{{x:.4g}}<br>"
                f"{safe(y.name)} %{{y:.4g}}<extra>{state}</extra>",
                marker={"color": colour, "symbol": STATE_SYMBOLS[state], "size": 7, "opacity": 0.7},
            )
    figure.update_layout(xaxis=x.axis, yaxis=y.axis)
    return figure
