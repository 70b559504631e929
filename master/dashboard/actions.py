"""API routes that change something: kill a trial, a worker or a stage, and write notes and tags."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from fastapi.responses import JSONResponse

from common.errors import CheckpointError, ConfigError, QueueError
from common.folder.notes import Note, change_note
from master.commands.killing import describe_kill, kill_stage, kill_trial, kill_worker
from master.commands.trials import check_known
from master.dashboard.api import PROBLEMS, TheWatch
from master.dashboard.views import models
from master.dashboard.views.search_view import SearchView, note_row
from master.dashboard.watch import Watch

router = APIRouter(
    prefix="/api",
    responses=PROBLEMS | {401: {"model": models.Problem, "description": "The token is missing."}},
)
CONFLICT: dict[int | str, dict[str, object]] = {
    409: {"model": models.Conflict, "description": "Somebody else has changed it meanwhile."}
}


class _Conflict(Exception):
    """Somebody else has changed the note since the writer read it."""

    def __init__(self, now: Note) -> None:
        super().__init__()
        self.now = now


@router.post("/kill")
def kill(target: models.Target, watch: TheWatch) -> models.Done:
    """End a trial, a worker (its trials return to the queue), or all unfinished trials of a stage.

    This needs the token (as cookie or as ``Authorization: Bearer``) and the header ``X-Coarsefine:
    1``. The guard refuses requests without them.
    """
    try:
        describe_kill(target.trial, target.worker, target.stage)
        return models.Done(message=_kill(target, watch))
    except ConfigError as error:
        raise HTTPException(404, str(error)) from None
    except QueueError as error:
        raise HTTPException(503, str(error)) from None


def _kill(target: models.Target, watch: Watch) -> str:
    client = watch.client().client
    if target.worker is not None:
        return kill_worker(client, target.worker)
    view = _find_search(target.search, watch)
    if target.trial is not None:
        return kill_trial(client, view.launched, target.trial)
    return kill_stage(client, view.launched, str(target.stage))


@router.post("/notes", responses=CONFLICT, response_model=models.NoteRow)
def write_note(change: models.NoteChange, watch: TheWatch) -> models.NoteRow | JSONResponse:
    """Write tags and a note about a trial, or about a search, into its folder.

    They replace what is there. This needs the token and the header, as a kill does.
    """
    try:
        view = _find_search(change.search, watch)
        if change.trial is not None:
            check_known(view.search, view.folder, change.trial)
    except ConfigError as error:
        raise HTTPException(404, str(error)) from None

    def follow(before: Note) -> Note:
        if change.edit is not None and change.edit != before.edit:
            raise _Conflict(before)
        return Note(tags=tuple(change.tags), note=change.note)

    try:
        return note_row(change_note(view.folder, change.trial, follow))
    except _Conflict as conflict:
        what = change.trial or f"search {change.search!r}"
        told = f"{what}: somebody else has changed this meanwhile; look at it, and save again"
        body = models.Conflict(error=told, noted=note_row(conflict.now))
        return JSONResponse(body.model_dump(), status_code=409)
    except CheckpointError as error:
        raise HTTPException(503, str(error)) from None


def _find_search(name: str | None, watch: Watch) -> SearchView:
    view = watch.views.get(name or "")
    if view is None:
        raise ConfigError(
            f"search {name!r}: no such search; there are {', '.join(watch.views) or 'none'}"
        )
    return view
