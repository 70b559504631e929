"""Tables and text as wide as the window, or as ``COLUMNS`` says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.console import Console, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 100  # characters, if the output is no terminal and COLUMNS is not set
LEAST_WIDTH = 40
GAP = 2  # spaces between two columns


def open_console(file: TextIO | None = None, stderr: bool = False) -> Console:
    """Return a console on a stream, stdout without one, with the width that its reader has."""
    console = Console(file=file, stderr=stderr)
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal():
        console.width = max(LEAST_WIDTH, int(columns))
    elif not console.is_terminal and not console.is_jupyter:
        console.width = PLAIN_WIDTH
    return console


def draw(renderable: RenderableType) -> str:
    """Return a table or text as lines that fit stdout."""
    console = open_console()
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))


def draw_columns(
    columns: Mapping[str, Sequence[object]], spare: Sequence[str] = (), right: Sequence[str] = ()
) -> str:
    """Return columns as a table that fits stdout; the arguments are those of ``fit_columns``."""
    return draw(fit_columns(columns, open_console().width, spare, right))


def fit_columns(
    columns: Mapping[str, Sequence[object]],
    width: int,
    spare: Sequence[str] = (),
    right: Sequence[str] = (),
    wraps: str = "",
    caption: str | None = None,
) -> Table:
    """Return columns as a table without lines.

    Args:
        columns: the cells by the header of their column.
        width: characters that are available.
        spare: headers of columns that are left out where the window is narrow, the least useful
            first.
        right: headers of columns that are aligned to the right.
        wraps: header of the one column whose cells may take several lines. It gets what the others
            leave.
        caption: a line below the table.
    """
    kept = {header: [str(cell) for cell in cells] for header, cells in columns.items()}
    least = {header: [] if header == wraps else cells for header, cells in kept.items()}
    for header in spare:
        if measure(least) <= width:
            break
        kept.pop(header, None)
        least.pop(header, None)
    gap = GAP if measure(least) <= width else 1
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        padding=(0, gap, 0, 0),
        caption=caption,
        caption_justify="left",
    )
    for header in kept:
        justify: JustifyMethod = "right" if header in right else "left"
        table.add_column(Text(header), no_wrap=header != wraps, justify=justify)
    for row in zip(*kept.values(), strict=True):
        table.add_row(*map(Text, row))
    return table


def measure(columns: Mapping[str, Sequence[str]]) -> int:
    """Return the characters that columns need beside each other."""
    widths = [max(map(len, [*header.split("\n"), *cells])) for header, cells in columns.items()]
    return sum(widths) + GAP * max(0, len(widths) - 1)
