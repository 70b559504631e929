"""The one thing that can be changed from the dashboard: a trial, a worker or a stage can be ended."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException

from common.errors import ConfigError, QueueError
from master.killing import describe_kill, kill_stage, kill_trial, kill_worker
from master.serve import models
from master.serve.api import PROBLEMS, TheWatch
from master.serve.watch import Watch

router = APIRouter(prefix="/api", responses=PROBLEMS)


@router.post("/kill", responses={401: {"model": models.Problem, "description": "The token is missing."}})
def kill(target: models.Target, watch: TheWatch) -> models.Done:
    """Ends a trial, a worker (its trials go back to the queue), or all unfinished trials of a stage.

    The guard in front lets it pass only with the token (the cookie, or ``Authorization: Bearer``) and the header ``X-Coarsefine: 1``.
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
    view = watch.views.get(target.search or "")
    if view is None:
        raise ConfigError(f"search {target.search!r}: no such search; there are {', '.join(watch.views) or 'none'}")
    if target.trial is not None:
        return kill_trial(client, view.launched, target.trial)
    return kill_stage(client, view.launched, str(target.stage))
