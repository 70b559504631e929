"""The page and its files, and plotly.js out of the plotly package; nothing comes from another host."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

STATIC = Path(str(resources.files("master.serve") / "static"))
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
PLOTLY = "plotly.min.js"
ONE_DAY = "private, max-age=86400"  # plotly.js: five megabytes that change with the package alone
ALWAYS_ASK = "no-cache"

router = APIRouter(include_in_schema=False)


@router.get("/")
def index() -> FileResponse:
    """The page; what it shows is behind the '#' of its address."""
    return static("index.html")


@router.get("/api/docs")
def documentation() -> FileResponse:
    """The OpenAPI document, drawn by a script of our own: the usual viewers come from other hosts."""
    return static("docs.html")


@router.get("/favicon.ico")
def icon() -> FileResponse:
    """What browsers ask for by themselves."""
    return static("icon.svg")


@router.get("/static/{name}")
def static(name: str) -> FileResponse:
    """One of the files of the page: looked up in a list, so that no name can climb."""
    path = _files().get(name)
    if path is None:
        raise HTTPException(404, f"{name!r}: no such file")
    return FileResponse(path, media_type=TYPES[path.suffix], headers={"cache-control": ONE_DAY if name == PLOTLY else ALWAYS_ASK})


@cache
def _files() -> dict[str, Path]:
    own = {path.name: path for path in STATIC.iterdir() if path.suffix in TYPES}
    return {**own, PLOTLY: Path(str(resources.files("plotly") / "package_data" / PLOTLY))}
