"""The smaller commands that use Redis. Each returns the text for stdout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from common.broker.connection import open_broker
from common.code.store import task_digest
from common.console import draw_columns
from common.folder.checkpoint_name import format_value
from common.folder.chosen import Chosen, not_launched
from common.options import Shared
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.search.protocol import PROTOCOL, REMEDY
from common.search.search_file import Search
from common.search.trial import RETRYABLE, TrialState, WorkerInfo
from common.shell_command import shell_command
from master.commands.numbers import read_numbers
from master.report.reading import strict_json
from master.run.jobs import describe_jobs
from master.stages.prepare import Launched, renew_task
from master.stages.promotions import read_decisions
from master.stages.rungs import Rung, rung_words, rungs_so_far


def status(
    shared: Shared, chosen: Chosen, as_json: bool, warn: Callable[[str], None] = lambda told: None
) -> str:
    """Return the counts by stage and state, the workers, the pace, the time left, and the cost.

    Raises:
        QueueError: Redis cannot be reached.
    """
    launched = of_folder(chosen)
    with open_broker(shared.redis, shared.checkpoints.resolve()) as broker:
        queue = _queue(broker.client, launched)
        known, running = queue.counts(), queue.running()
        connected = [
            w
            for w in WorkerRegistry(broker.client).list()
            if w.search in ("", launched.search.name)
        ]
    counts = {
        stage.name: {s.value: known.get(stage.name, {}).get(s, 0) for s in TrialState}
        for stage in launched.search.stages
    }
    rungs, numbers = _rungs(launched), read_numbers(launched, running, counts, warn)
    if as_json:
        told = {stage: [_rung_row(rung) for rung in own] for stage, own in rungs.items()}
        return strict_json(
            {
                "search": launched.search.name,
                "stages": counts,
                "rungs": told,
                "workers": [worker_row(w) for w in connected],
                **numbers.as_json,
            }
        )
    columns: dict[str, Sequence[object]] = {"stage": list(counts)}
    columns |= {s.value: [counts[name][s] for name in counts] for s in TrialState}
    none = [s for s in ("stopped", "killed", "failed", "exploded") if not any(columns[s])]
    head = f"search {launched.search.name!r} in {launched.folder.path}"
    far = [
        f"{stage}: {rung_words(own)}"
        for stage, own in rungs.items()
        if len(own) > 1 and any(counts[stage].values())
    ]
    return "\n".join(
        [
            head,
            draw_columns(columns, spare=none),
            *far,
            *_best_lines(launched),
            *numbers.lines,
            workers_text(connected),
        ]
    )


def _rungs(launched: Launched) -> dict[str, list[Rung]]:
    """Return the progress of each stage's rungs, from the promotions in its folder."""
    stages = [stage for stage in launched.search.stages if stage.searches]
    decisions = read_decisions(launched.folder, launched.id, stages)
    return {stage.name: rungs_so_far(stage, decisions) for stage in stages}


def _rung_row(rung: Rung) -> dict[str, Any]:
    """Return one rung as plain values for JSON."""
    own = {"epochs": rung.epochs, "planned": rung.planned, "awaited": rung.awaited}
    return own | {"promoted": rung.promoted, "decided": rung.is_decided}


def _best_lines(launched: Launched) -> list[str]:
    """Return a line about the best kept checkpoint of each stage.

    The metric is read from the file name.
    """
    found = [
        (stage.name, launched.folder.stage(stage.name).checkpoints(launched.search.mode))
        for stage in launched.search.stages
    ]
    return [
        f"best of {stage} so far: {names[0].metric} {format_value(names[0].value)}, "
        f"{names[0].trial_id}"
        for stage, names in found
        if names
    ]


def workers(shared: Shared, as_json: bool) -> str:
    """Return the connected workers.

    Raises:
        QueueError: Redis cannot be reached.
    """
    with open_broker(shared.redis, shared.checkpoints.resolve()) as broker:
        connected = WorkerRegistry(broker.client).list()
    if as_json:
        return strict_json([worker_row(w) for w in connected])
    return "\n".join([workers_text(connected), *describe_jobs(shared.checkpoints.resolve())])


def worker_row(info: WorkerInfo) -> dict[str, Any]:
    """Return one worker as plain values for JSON."""
    names = (
        "worker",
        "host",
        "device",
        "state",
        "array_width",
        "trials",
        "trials_done",
        "last_seen_s",
        "backend",
        "reason",
        "protocol",
        "job",
    )
    return {name: getattr(info, name) for name in names}


def workers_text(connected: Sequence[WorkerInfo]) -> str:
    """Return the workers as a table, and the reason for each worker that gets no trials."""
    if not connected:
        return f"no worker is connected; `{shell_command('worker start')}` starts one"
    columns: dict[str, Sequence[object]] = {
        "worker": [w.worker for w in connected],
        "host": [w.host for w in connected],
        "job": [w.job for w in connected],
        "device": [w.device for w in connected],
        "state": [w.state for w in connected],
        "width": [w.array_width for w in connected],
        "trials": [w.trials for w in connected],
        "done": [w.trials_done for w in connected],
        "seen": [f"{w.last_seen_s:.0f} s ago" for w in connected],
        "steps": [w.backend.partition(":")[0] for w in connected],
    }
    if not any(columns["job"]):
        del columns["job"]
    spare = ("steps", "host", "width", "seen", "device", "done", "job")
    aside = [f"{w.worker} is set aside: {w.reason}" for w in connected if w.state == "aside"]
    return "\n".join([draw_columns(columns, spare), *aside, *_other_protocols(connected)])


def _other_protocols(connected: Sequence[WorkerInfo]) -> list[str]:
    """Return a line about each worker that cannot train what this program launches."""
    others = [w for w in connected if w.protocol != PROTOCOL]
    return [
        f"{w.worker} speaks protocol {w.protocol}, this program {PROTOCOL}: {REMEDY} on {w.host}"
        for w in others
    ]


def retry(shared: Shared, chosen: Chosen, state: str, stage: str | None) -> str:
    """Put failed or killed trials back into the queue.

    Raises:
        ConfigError: no such stage.
        QueueError: Redis cannot be reached.
    """
    wanted = TrialState(state)
    assert wanted in RETRYABLE  # the command line offers no other state
    launched = of_folder(chosen)
    stages = [launched.search.stage(stage)] if stage else list(launched.search.stages)
    with open_broker(shared.redis, shared.checkpoints.resolve()) as broker:
        queue = _queue(broker.client, launched)
        mended = renew_task(chosen, launched) and _follow_task(queue, launched)
        trials = [trial_id for s in stages for trial_id in queue.by_state(wanted, stage=s.name)]
        n_retried = sum(queue.retry(trial_id) for trial_id in trials)
    name = launched.search.name
    hint = (
        f"; `{shell_command('master launch', '--search', name, '--stage', stages[0].name)}` trains "
        "those of a stage"
        if n_retried
        else ""
    )
    code = ", with the task's new code" if mended else ""
    return f"{n_retried} {state} trials are back in the queue{code}{hint}"


def _follow_task(queue: TrialQueue, launched: Launched) -> bool:
    """Freeze the digest of the task in the folder for every stage that has another digest.

    Return whether there was such a stage.
    """
    digest = task_digest(launched.search, launched.folder)
    behind = [
        s.name
        for s in launched.search.stages
        if (queue.frozen(s.name) or {"task_digest": digest}).get("task_digest") != digest
    ]
    for stage in behind:
        queue.refreeze(stage, "task_digest", digest)
    return bool(behind)


def of_folder(chosen: Chosen) -> Launched:
    """Return the search as it was launched.

    Raises:
        ConfigError: it was never launched.
    """
    search: Search | None = chosen.folder.search()
    if search is None:
        raise not_launched(chosen)
    return Launched(search, chosen.folder)


def _queue(client: Any, launched: Launched) -> TrialQueue:
    return TrialQueue(client, launched.id, launched.search.stragglers.lease_s)
