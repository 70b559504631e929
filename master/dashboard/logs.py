"""API routes that read logs: what trials and workers write, a part at a time.

A page that follows a log asks for what came after the part that it has.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request

from common.errors import ConfigError
from common.folder.output import Part, read_part
from common.search.search_file import NAME_PATTERN
from master.commands.logs import has_ended
from master.commands.trials import stage_folder
from master.dashboard.api import PROBLEMS, TheSearch, TheWatch
from master.dashboard.views import models
from master.dashboard.watch import Watch
from master.launchers.stayed import FOLDER

MOST_BYTES = 64 << 10  # of one answer
MOST_FILES = 500  # that are listed
# Below the logs of a search. It leads to no other folder.
LOG_PATTERN = re.compile(r"(?:[a-z]{1,20}/)?[A-Za-z0-9][A-Za-z0-9_.-]{0,120}\.log")
WORKER_LOG = re.compile(rf"(?P<search>{NAME_PATTERN.pattern})/{FOLDER}/(?P<name>.+)")
NEEDS_TOKEN = "logs of workers need the token: open the address that `master serve` printed"
PRIVATE = PROBLEMS | {401: {"model": models.Problem, "description": "The token is missing."}}

router = APIRouter(prefix="/api", responses=PROBLEMS)
At = Annotated[
    int | None, Query(ge=0, description="The first byte; without it, the end of the log.")
]
File = Annotated[str, Query(max_length=64, description="The `file` of the part before.")]


@router.get("/searches/{search}/trials/{trial}/output")
def output(
    view: TheSearch,
    trial: str,
    attempt: Annotated[int | None, Query(ge=1)] = None,
    at: At = None,
    file: File = "",
) -> models.LogPart:
    """Return a part of what the loop or program of a trial wrote to stdout and stderr.

    Without an attempt, it is that of the last one. At most 64 KiB come at a time.
    """
    try:
        stage = stage_folder(view.search, view.folder, trial)
    except ConfigError as error:
        raise HTTPException(404, str(error)) from None
    outputs = stage.outputs_by_attempt(trial)
    wanted = attempt or max(outputs, default=0)
    if wanted not in outputs:
        raise HTTPException(
            404, f"{trial}: has no output{f' of attempt {attempt}' if attempt else ''}"
        )
    over = has_ended(stage, trial, wanted)  # asked first, so that no last words are missed
    return _answer(outputs[wanted], at, file, over, wanted, list(outputs))


@router.get("/workers/log", responses=PRIVATE)
def worker_log(
    request: Request, watch: TheWatch, worker: str, at: At = None, file: File = ""
) -> models.LogPart:
    """Return a part of the log of a worker, if it is in the checkpoint folder of this machine.

    This needs the token, since logs may show what the folder's rights hide from others.
    """
    _check_token(request)
    return _answer(_find_worker_log(watch, worker), at, file)


@router.get("/searches/{search}/logs", responses=PRIVATE)
def list_logs(request: Request, view: TheSearch) -> list[models.LogFile]:
    """Return the logs of workers and jobs in the folder of a search, the latest first.

    This needs the token.
    """
    _check_token(request)
    folder = view.folder.path / FOLDER
    found = []
    for path in (*folder.glob("*.log"), *folder.glob("*/*.log")):
        name = path.relative_to(folder).as_posix()
        if LOG_PATTERN.fullmatch(name) and path.is_file():
            seen = path.stat()
            found.append(models.LogFile(name=name, size=seen.st_size, at=seen.st_mtime))
    return sorted(found, key=lambda one: (-one.at, one.name))[:MOST_FILES]


@router.get("/searches/{search}/logs/{name:path}", responses=PRIVATE)
def log(
    request: Request, view: TheSearch, name: str, at: At = None, file: File = ""
) -> models.LogPart:
    """Return a part of one of the logs in the folder of a search. This needs the token."""
    _check_token(request)
    if not LOG_PATTERN.fullmatch(name):
        raise HTTPException(404, f"{name!r}: not a log of search {view.search.name!r}")
    return _answer(view.folder.path / FOLDER / name, at, file)


def _check_token(request: Request) -> None:
    if not request.app.state.access.has_token(request.headers):
        raise HTTPException(401, NEEDS_TOKEN)


def _answer(
    path: Path,
    at: int | None,
    file: str,
    over: bool = False,
    attempt: int | None = None,
    attempts: list[int] | None = None,
) -> models.LogPart:
    try:
        part: Part = read_part(path, MOST_BYTES, at, file)
    except OSError as error:
        raise HTTPException(404, f"{path}: {error.strerror}") from None
    return models.LogPart(
        where=str(path),
        text=part.text,
        begin=part.begin,
        end=part.end,
        size=part.size,
        file=part.file,
        # The last bytes may be no whole character, and then nothing comes after them.
        over=over and (part.end >= part.size or not part.text),
        attempt=attempt,
        attempts=attempts or [],
    )


def _find_worker_log(watch: Watch, worker: str) -> Path:
    """Return the log of a worker.

    Raises:
        HTTPException: there is no such worker, or its log is not here (404). The message says where
            it is.
    """
    row = next((one for one in watch.workers if one.worker == worker), None)
    if row is None:
        raise HTTPException(404, f"{worker!r}: no such worker; `master workers` lists them")
    match = WORKER_LOG.fullmatch(row.log)
    view = watch.views.get(match["search"]) if match else None
    if match is None or view is None or not LOG_PATTERN.fullmatch(match["name"]):
        raise HTTPException(404, _tell_elsewhere(row))
    path = view.folder.path / FOLDER / match["name"]
    if not path.is_file():
        raise HTTPException(
            404,
            f"{worker} writes to {row.log} on host {row.host}; the checkpoint folder of this "
            "machine does not have that file",
        )
    return path


def _tell_elsewhere(row: models.WorkerRow) -> str:
    if row.log:
        return (
            f"{row.worker} writes to {row.log} on host {row.host}, which is not in the logs of a "
            "search that this dashboard shows"
        )
    job = f", job {row.job}" if row.job else ""
    ask = f"; try: kubectl logs job/{row.job}" if row.job.startswith("coarsefine-") else ""
    return (
        f"{row.worker} writes to no file but to a terminal or a pipe (host {row.host}{job}), so "
        f"there is no log to show here{ask}"
    )
