"""What the reports of a search share: a page that leads to them, and plotly.js."""

from __future__ import annotations

import html
from collections.abc import Collection

from common.folder import durable
from common.folder.records import REPORT, SearchFolder
from common.search.search_file import Search
from common.search.stage import Stage
from master.report.page import cells, library_name, page, plotly_js


def share_library(folder: SearchFolder) -> str:
    """Write plotly.js into the search's folder unless it is there, and return its name.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    name, content = library_name(), plotly_js().encode()
    path = folder.path / name
    if not path.is_file() or path.stat().st_size != len(content):
        durable.replace(path, content)
    return name


def write_contents(search: Search, folder: SearchFolder) -> None:
    """Write the page of the search that leads to the reports of its stages.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    rows = ""
    for stage in search.stages:
        name = html.escape(stage.name)
        link = f'<a href="{name}/{REPORT}">report</a>' if _is_drawn(folder, stage) else "none yet"
        rows += (
            f"<tr><td>{name}</td><td>{stage.kind}</td><td>{stage.trials}</td><td>{link}</td></tr>"
        )
    title = f"{search.name}: reports"
    body = (
        f"<h1>{html.escape(title)}</h1>"
        f'<div class="table"><table>{cells(["stage", "kind", "trials", ""], "th")}{rows}</table>'
        "</div>"
    )
    durable.replace(folder.path / REPORT, page(title, body, []).encode())


def find_ways(
    search: Search, folder: SearchFolder, stage: Stage, also: Collection[str] = ()
) -> str:
    """Return the links from a stage's report to the others of its search, as HTML.

    Args:
        search: the search.
        folder: its folder.
        stage: the stage.
        also: stages whose reports are about to be written.
    """
    parts = [f'<a href="../{REPORT}">{html.escape(search.name)}</a>']
    for other in search.stages:
        name = html.escape(other.name)
        if other.name == stage.name:
            parts.append(f"<b>{name}</b>")
        elif other.name in also or _is_drawn(folder, other):
            parts.append(f'<a href="../{name}/{REPORT}">{name}</a>')
    return f'<p class="small">{" · ".join(parts)}</p>'


def _is_drawn(folder: SearchFolder, stage: Stage) -> bool:
    return (folder.stage(stage.name).path / REPORT).is_file()
