"""What the smaller commands that ask Redis do; each returns the text for stdout."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from common.broker import open_broker
from common.checkpoint_name import named
from common.options import Shared
from common.queue import TrialQueue
from common.records import SearchFolder, StageFolder
from common.search import Search
from common.select import Chosen
from common.trial import RETRYABLE, TrialState, WorkerInfo
from common.workers import WorkerRegistry
from master.prepare import Launched, renew_task, task_digest
from master.progress import PACE_WINDOW_S, duration
from master.reading import drawn, not_launched, strict_json


def status(shared: Shared, chosen: Chosen, as_json: bool) -> str:
    """Counts by stage and state, workers, pace, time left.

    Raises:
        QueueError: Redis cannot be reached.
    """
    launched = of_folder(chosen)
    with open_broker(shared.redis, shared.checkpoints.resolve()) as broker:
        known = _queue(broker.client, launched).counts()
        connected = [w for w in WorkerRegistry(broker.client).list() if w.search in ("", launched.search.name)]
    counts = {stage.name: {s.value: known.get(stage.name, {}).get(s, 0) for s in TrialState} for stage in launched.search.stages}
    if as_json:
        return strict_json({"search": launched.search.name, "stages": counts, "workers": [worker_row(w) for w in connected]})
    table = _table("stage", *(s.value for s in TrialState))
    for name, by_state in counts.items():
        table.add_row(name, *(str(by_state[s]) for s in TrialState))
    head = f"search {launched.search.name!r} in {launched.folder.path}"
    return "\n".join([head, drawn(table), *_best_lines(launched), _pace_line(launched.folder, counts), workers_text(connected)])


def _best_lines(launched: Launched) -> list[str]:
    """The best kept checkpoint of each stage: its name says what it is worth."""
    found = [(stage.name, launched.folder.stage(stage.name).checkpoints(launched.search.mode)) for stage in launched.search.stages]
    return [f"best of {stage} so far: {names[0].metric} {named(names[0].value)}, {names[0].trial_id}" for stage, names in found if names]


def _pace_line(folder: SearchFolder, counts: Mapping[str, Mapping[str, int]]) -> str:
    ended = sum(_ended_lately(folder.stage(name), time.time()) for name in counts)
    left = sum(by_state[TrialState.PENDING] + by_state[TrialState.RUNNING] for by_state in counts.values())
    if not left:
        return "nothing is waiting or running"
    if not ended:
        return f"{left} trials to go; none has ended in the last minute"
    pace = ended / PACE_WINDOW_S
    return f"{pace:.2f} trials/s in the last minute, {left} to go, about {duration(left / pace)} left"


def _ended_lately(folder: StageFolder, now_s: float) -> int:
    return sum(now_s - _written_at(file.path) < PACE_WINDOW_S for file in folder.attempts(folder.trials))


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def workers(shared: Shared, as_json: bool) -> str:
    """The workers that are connected.

    Raises:
        QueueError: Redis cannot be reached.
    """
    with open_broker(shared.redis, shared.checkpoints.resolve()) as broker:
        connected = WorkerRegistry(broker.client).list()
    return strict_json([worker_row(w) for w in connected]) if as_json else workers_text(connected)


def worker_row(info: WorkerInfo) -> dict[str, Any]:
    """One worker as scripts read it."""
    names = ("worker", "host", "device", "state", "array_width", "trials", "trials_done", "last_seen_s", "backend", "reason")
    return {name: getattr(info, name) for name in names}


def workers_text(connected: Sequence[WorkerInfo]) -> str:
    """The workers as a table, and why those that are aside are."""
    if not connected:
        return "no worker is connected; `worker start` starts one"
    table = _table("worker", "host", "device", "state", "width", "trials", "done", "seen", "steps")
    for w in connected:
        numbers = (w.array_width, w.trials, w.trials_done, f"{w.last_seen_s:.0f} s ago")
        cells = (w.worker, w.host, w.device, w.state, *numbers, w.backend.partition(":")[0])
        table.add_row(*(Text(str(cell)) for cell in cells))
    return "\n".join([drawn(table), *(f"{w.worker} is aside: {w.reason}" for w in connected if w.state == "aside")])


def retry(shared: Shared, chosen: Chosen, state: str, stage: str | None) -> str:
    """Sends failed or killed trials back to the queue.

    Raises:
        ConfigError: no such stage.
        QueueError: Redis cannot be reached.
    """
    wanted = TrialState(state)
    assert wanted in RETRYABLE  # the command line offers no other
    launched = of_folder(chosen)
    stages = [launched.search.stage(stage)] if stage else list(launched.search.stages)
    with open_broker(shared.redis, shared.checkpoints.resolve()) as broker:
        queue = _queue(broker.client, launched)
        mended = renew_task(chosen, launched) and _follow_task(queue, launched)
        trials = [trial_id for s in stages for trial_id in queue.by_state(wanted, stage=s.name)]
        n_retried = sum(queue.retry(trial_id) for trial_id in trials)
    name = launched.search.name
    hint = f"; `master launch --search {name} --stage {stages[0].name}` trains and watches a stage's" if n_retried else ""
    code = ", with the task's new code" if mended else ""
    return f"{n_retried} {state} trials are back in the queue{code}{hint}"


def _follow_task(queue: TrialQueue, launched: Launched) -> bool:
    """Freezes the digest of the task in the folder for every stage that has another; whether there was one."""
    digest = task_digest(launched.search, launched.folder)
    behind = [s.name for s in launched.search.stages if (queue.frozen(s.name) or {"task_digest": digest}).get("task_digest") != digest]
    for stage in behind:
        queue.refreeze(stage, "task_digest", digest)
    return bool(behind)


def of_folder(chosen: Chosen) -> Launched:
    """The search as it was launched.

    Raises:
        ConfigError: it never was.
    """
    search: Search | None = chosen.folder.search()
    if search is None:
        raise not_launched(chosen)
    return Launched(search, chosen.folder)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _queue(client: Any, launched: Launched) -> TrialQueue:
    return TrialQueue(client, launched.id, launched.search.stragglers.lease_s)
