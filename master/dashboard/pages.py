"""Routes of the page and its static files.

plotly.js is served from the installed plotly package, so nothing comes from another host.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles

STATIC = Path(str(resources.files("master.dashboard") / "static"))
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
PLOTLY = "plotly.min.js"
ONE_DAY = "private, max-age=86400"  # plotly.js: 5 MB, changes only with the package
ALWAYS_ASK = "no-cache"

router = APIRouter(include_in_schema=False)


@router.get("/")
def index(request: Request) -> Response:
    """Return the page. The part after the '#' of its address says what it shows."""
    return static(request, "index.html")


@router.get("/api/docs")
def documentation(request: Request) -> Response:
    """Return the page that draws the OpenAPI document.

    It uses the dashboard's own script, since the usual viewers are loaded from other hosts.
    """
    return static(request, "docs.html")


@router.get("/favicon.ico")
def icon(request: Request) -> Response:
    """Return the icon, which browsers request by themselves."""
    return static(request, "icon.svg")


@router.get("/static/{name}")
def static(request: Request, name: str) -> Response:
    """Return one of the page's files, or 304 if the browser has it already.

    The name is looked up in a list, so it cannot lead to another folder.

    Raises:
        HTTPException: No such file (404).
    """
    path = _files().get(name)
    if path is None:
        raise HTTPException(404, f"{name!r}: no such file")
    file = FileResponse(
        path,
        media_type=TYPES[path.suffix],
        headers={"cache-control": ONE_DAY if name == PLOTLY else ALWAYS_ASK},
        stat_result=path.stat(),
    )
    if _served().is_not_modified(file.headers, request.headers):
        return NotModifiedResponse(file.headers)
    return file


@cache
def _served() -> StaticFiles:
    return StaticFiles(directory=STATIC)


@cache
def _files() -> dict[str, Path]:
    own = {path.name: path for path in STATIC.iterdir() if path.suffix in TYPES}
    return {**own, PLOTLY: Path(str(resources.files("plotly") / "package_data" / PLOTLY))}
