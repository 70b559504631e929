"""`master kill`: kill a trial, a worker, or all unfinished trials of a stage.

The dashboard uses these functions too.
"""

from __future__ import annotations

from typing import Any

from common.broker.connection import open_broker
from common.errors import ConfigError
from common.folder.chosen import Chosen
from common.folder.records import SearchFolder
from common.options import Shared
from common.queue.reconcile import write_verdict
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.search.trial import TrialState
from common.shell_command import shell_command
from master.commands.redis_commands import of_folder
from master.run.jobs import tell_cancelled
from master.stages.prepare import Launched

KILLED_BY_USER = "killed by the user"


def describe_kill(trial: str | None, worker: str | None, stage: str | None) -> str:
    """Return the question to ask before a kill.

    Raises:
        ConfigError: there is not exactly one target.
    """
    if sum(target is not None for target in (trial, worker, stage)) != 1:
        raise ConfigError("kill: name exactly one of --trial ID, --worker ID, --stage NAME")
    if worker:
        return f"Stop worker {worker} (its trials go back to the queue)?"
    return f"Kill trial {trial}?" if trial else f"Kill all unfinished trials of stage {stage}?"


def kill(
    shared: Shared, chosen: Chosen | None, trial: str | None, worker: str | None, stage: str | None
) -> str:
    """Kill a trial, a worker, or all unfinished trials of a stage; return what was done, in words.

    Raises:
        ConfigError: no such target.
        QueueError: Redis cannot be reached.
    """
    describe_kill(trial, worker, stage)
    with open_broker(shared.redis, shared.checkpoints.resolve()) as broker:
        if chosen is None:
            return kill_worker(broker.client, str(worker))
        launched = of_folder(chosen)
        if trial is not None:
            return kill_trial(broker.client, launched, trial)
        return kill_stage(broker.client, launched, str(stage))


def kill_worker(client: Any, worker: str) -> str:
    """Order a worker to quit.

    Raises:
        ConfigError: no such worker.
        QueueError: Redis cannot be reached.
    """
    registry = WorkerRegistry(client)
    known = [info.worker for info in registry.list()]
    if worker not in known:
        raise ConfigError(
            f"--worker {worker}: no such worker; connected are {', '.join(known) or 'none'}"
        )
    registry.order_quit(worker)
    return f"{worker}: ordered to quit; it saves and gives back its trials at its next step"


def kill_trial(client: Any, launched: Launched, trial_id: str) -> str:
    """Kill a trial that is pending or running. A trial that has ended stays as it is.

    Raises:
        ConfigError: no such trial.
        QueueError: Redis cannot be reached.
    """
    queue = _queue(client, launched)
    if queue.state(trial_id) is None:
        raise ConfigError(
            f"--trial {trial_id}: no such trial in search {launched.search.name!r}; "
            f"`{shell_command('master rank')}` and `{shell_command('master status')}` list them"
        )
    return f"{trial_id}: {_kill_one(queue, launched.folder, trial_id)}"


def kill_stage(client: Any, launched: Launched, stage: str) -> str:
    """Kill all trials of a stage that are pending or running.

    If no trial of the search is left then, its jobs in a cluster are cancelled.

    Raises:
        ConfigError: no such stage.
        QueueError: Redis cannot be reached.
    """
    queue = _queue(client, launched)
    name = launched.search.stage(stage).name
    unfinished = queue.by_state(TrialState.PENDING, TrialState.RUNNING, stage=name)
    killed = [t for t in unfinished if _kill_one(queue, launched.folder, t) == "killed"]
    text = f"stage {name}: killed {len(killed)} {'trial' if len(killed) == 1 else 'trials'}"
    cancelled = "" if queue.count_unfinished() else tell_cancelled(launched.folder)
    return f"{text}; {cancelled}" if cancelled else text


def _queue(client: Any, launched: Launched) -> TrialQueue:
    return TrialQueue(client, launched.id, launched.search.stragglers.lease_s)


def _kill_one(queue: TrialQueue, folder: SearchFolder, trial_id: str) -> str:
    taken = queue.kill(trial_id, KILLED_BY_USER)
    if taken is None:
        return f"has ended already ({queue.state(trial_id)})"
    write_verdict(queue, folder, taken)
    return "killed"
