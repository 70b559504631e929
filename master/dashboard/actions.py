"""API route that kills a trial, a worker or the trials of a stage.

The dashboard can change nothing else.
"""

from __future__ import annotations

from fastapi import APIRouter, HTTPException

from common.errors import ConfigError, QueueError
from master.commands.killing import describe_kill, kill_stage, kill_trial, kill_worker
from master.dashboard.api import PROBLEMS, TheWatch
from master.dashboard.views import models
from master.dashboard.watch import Watch

router = APIRouter(prefix="/api", responses=PROBLEMS)


@router.post(
    "/kill", responses={401: {"model": models.Problem, "description": "The token is missing."}}
)
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
    view = watch.views.get(target.search or "")
    if view is None:
        raise ConfigError(
            f"search {target.search!r}: no such search; "
            f"there are {', '.join(watch.views) or 'none'}"
        )
    if target.trial is not None:
        return kill_trial(client, view.launched, target.trial)
    return kill_stage(client, view.launched, str(target.stage))
