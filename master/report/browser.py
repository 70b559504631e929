"""Figures as PNG, drawn by an installed Chromium or Chrome, or else by kaleido."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import plotly.graph_objects as go

from common.errors import CheckpointError, ConfigError
from master.report.page import Drawn, page, place

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH = 1280  # pixels
DEADLINE_S = 60.0  # limit for one picture, after which the browser is killed
DRAWING_MS = 5000  # virtual time for drawing, which a headless browser passes at once
MARGIN = 8  # pixels below the figure


def png(figure: go.Figure) -> bytes:
    """Return the figure as a PNG, 1280 pixels wide.

    Raises:
        ConfigError: neither kaleido nor a browser is installed.
        CheckpointError: the browser or kaleido made no picture.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is not None:
        return _screenshot(browser, figure)
    if importlib.util.find_spec("kaleido") is not None:
        try:
            return bytes(figure.to_image("png", width=WIDTH))
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"kaleido made no picture: {error}; write .html or .json instead"
            ) from error
    raise ConfigError(
        f"a .png needs kaleido (pip install kaleido) or one of {', '.join(BROWSERS)} in the PATH; "
        "or write .html or .json"
    )


def _screenshot(browser: str, figure: go.Figure) -> bytes:
    height = int(figure.layout.height or 420) + MARGIN
    drawn = Drawn("only", figure)
    bare = (
        "<style>body { margin: 0; padding: 0; } figure { margin: 0; } "
        ".modebar { display: none; }</style>"
    )
    with tempfile.TemporaryDirectory(prefix="coarsefine-png-") as folder:
        source, picture = Path(folder, "figure.html"), Path(folder, "figure.png")
        source.write_text(page("figure", bare + place(drawn), [drawn]), encoding="utf-8")
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
            f"--screenshot={picture}",
            f"--window-size={WIDTH},{height}",
            f"--virtual-time-budget={DRAWING_MS}",
            *_as_root(),
            source.as_uri(),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=DEADLINE_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CheckpointError(
                f"{browser} made no picture: {error}; write .html or .json instead"
            ) from error
        if not picture.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(
                f"{browser} made no picture (exit {done.returncode}): {last}; write .html or .json "
                "instead"
            )
        return picture.read_bytes()


def _as_root() -> list[str]:
    """Return the options that let root start Chromium, which refuses its sandbox to root.

    No sandbox is needed: the page is our own and may load nothing.
    """
    return ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
