"""The inside of a kept model.

The figures show histograms of activations and gradients in each layer, and the first layer's
weights.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from master.figures.names import FIGURE_TITLES
from master.figures.style import BLUE, VERMILION, empty, frame, name_layers, safe
from master.figures.table import best_first

ROW = 170  # pixels of a row of histograms
PARTS = {"activations": (BLUE, "activation"), "gradients": (VERMILION, "gradient of the loss")}
NOT_KEPT = "No chosen trial has histograms: only trials with a kept checkpoint have them."


def find_portrayed(trials: pd.DataFrame) -> str | None:
    """Return the best trial that has histograms, or None."""
    good = best_first(trials)
    return next(
        (
            str(name)
            for name, portrait in zip(good["trial"], good["portrait"], strict=True)
            if portrait
        ),
        None,
    )


def histograms(trials: pd.DataFrame, name: str | None = None, columns: int = 2) -> go.Figure:
    """Draw a row of histograms for each layer: activations and gradients side by side.

    Shares are on a log axis, so that tails and dead units are visible.

    Args:
        trials: See ``table``.
        name: The trial. If None, the best that has histograms.
        columns: The number of columns; 1 on a phone.
    """
    title, chosen = FIGURE_TITLES["histograms"], name or find_portrayed(trials)
    rows = trials[trials["trial"] == chosen] if chosen else trials.iloc[:0]
    portrait = rows["portrait"].iloc[0] if len(rows) else None
    if not portrait:
        return empty(title, NOT_KEPT)
    panels = _panels(portrait, columns)
    n_rows = -(-len(panels) // columns)
    words = {part: name_layers(portrait.get(part) or {}) for part in PARTS}
    titles = [_title(panel, words) for panel in panels]
    figure = make_subplots(
        rows=n_rows,
        cols=columns,
        subplot_titles=titles,
        vertical_spacing=min(0.5 / n_rows, 74 / (n_rows * (ROW + 74))),
        horizontal_spacing=0.12,
    )
    for number, panel in enumerate(panels):
        if panel is not None:
            _bars(figure, panel, number // columns + 1, number % columns + 1)
    figure.update_annotations(font_size=12)
    frame(
        figure,
        f"{title} of {chosen}",
        "On validation examples, with the best epoch's weights.",
        110 + n_rows * (ROW + 74),
    )
    figure.update_layout(showlegend=False, bargap=0, margin={"t": 92})
    return figure


def weights(picture: bytes | None, name: str = "") -> go.Figure:
    """Draw the first layer's weights as a picture, a tile for each unit.

    Each tile is scaled by its own largest weight.

    Args:
        picture: A PNG, as workers write it for image models whose checkpoint is kept.
        name: The trial.
    """
    title = FIGURE_TITLES["weights"]
    if picture is None:
        return empty(
            title, "No chosen trial has a picture: only image models with a kept checkpoint do."
        )
    source = "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
    figure = frame(
        go.Figure(go.Image(source=source, hoverinfo="skip")),
        f"{title} of {name}",
        "A tile a unit. Red: positive, blue: negative.",
        480,
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def _panels(portrait: dict[str, Any], columns: int) -> list[tuple[str, str, dict[str, Any]] | None]:
    """Return (part, layer, histogram) in the order of the grid.

    Two columns put the parts side by side. One column puts one part below the other.
    """
    parts = {
        part: [(part, layer, found) for layer, found in (portrait.get(part) or {}).items()]
        for part in PARTS
    }
    if columns == 1:
        return [panel for part in PARTS for panel in parts[part]]
    longest = max(len(panels) for panels in parts.values())
    return [
        parts[part][row] if row < len(parts[part]) else None
        for row in range(longest)
        for part in PARTS
    ]


def _title(panel: tuple[str, str, dict[str, Any]] | None, words: dict[str, dict[str, str]]) -> str:
    if panel is None:
        return ""
    part, layer, found = panel
    layer = words[part][layer]
    kind = f" ({safe(found['kind'])})" if "kind" in found else ""
    return (
        f"{safe(layer)}{kind}, {found.get('zeros', 0.0):.0%} zeros"
        if part == "activations"
        else safe(layer)
    )


def _bars(figure: go.Figure, panel: tuple[str, str, dict[str, Any]], row: int, column: int) -> None:
    part, layer, found = panel
    colour, axis = PARTS[part]
    counts = np.array(found["counts"], dtype=float)
    width = (float(found["high"]) - float(found["low"])) / len(counts) or 1.0
    centres = float(found["low"]) + width * (np.arange(len(counts)) + 0.5)
    shares = 100 * counts / (counts.sum() or 1)
    drawn = shares > 0  # a log axis cannot show zero
    figure.add_bar(
        x=centres[drawn],
        y=shares[drawn],
        width=width,
        marker_color=colour,
        name=safe(f"{part} {layer}"),
        hovertemplate="%{x:.3g}: %{y:.2f} %<extra></extra>",
        row=row,
        col=column,
    )
    figure.update_xaxes(title_text=axis, row=row, col=column)
    figure.update_yaxes(title_text="share (%)", type="log", dtick=1, row=row, col=column)
