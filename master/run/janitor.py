"""The janitor: it removes surplus weights, superseded files and orphaned files of a stage.

Surplus weights are those beyond the best ``keep``. Weights are removed together with their
predictions and the snapshots of their attempt. Once a trial has ended, it keeps only the weights
that the record of its highest ended attempt names. A record is written after its weights, so
weights without a record wait for it.

A trial that stands at a rung may go on later, also in a later stage. So the resume states of the
best such trials stay, as many as the plan may promote from there.

Only one janitor works at a time, under a lock in Redis. Records are always kept.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.broker.embedded_server import FOLDER as EMBEDDED
from common.broker.shared_server import FOLDER as SHARED
from common.folder import durable
from common.folder.checkpoint_name import CheckpointName
from common.folder.promotable import (
    Standing,
    best_standing,
    find_repeats,
    most_promotable,
)
from common.folder.records import AttemptFile, SearchFolder, StageFolder
from common.queue.trial_queue import TrialQueue
from common.search.plan import StagePlan
from common.search.trial import ENDED, Trial, TrialState, violates

LOCK_TTL_S = 60.0
# Files left by the servers of a root, which are unfinished copies of their data, and by processes
# that tried for a socket.
OF_A_SERVER = ("temp-rewriteaof-*.aof", "temp-[0-9]*.rdb", "[0-9]*.sock")
# Seconds after which an unfinished temporary file has no writer any more. The same holds for
# predictions without weights.
ORPHAN_S = 3600.0


def sweep(
    queue: TrialQueue,
    folder: StageFolder,
    keep: int,
    now_s: float | None = None,
    mode: str = "max",
    plans: Sequence[StagePlan] | None = None,
) -> int:
    """Remove the files that can go, and return their number.

    Do nothing while another janitor is at work.

    Args:
        queue: knows which trials have ended, and with which attempt.
        folder: the stage's folder.
        keep: how many weights stay.
        now_s: the time from which the age of files is computed; None: that of the folder's own
            clock.
        mode: whether the largest (``max``) or the smallest (``min``) value of the metric is best.
        plans: plans of the search's stages, which say how many trials may be promoted from a rung;
            None keeps the states of all trials that may be.

    Raises:
        QueueError: Redis cannot be reached.
        CheckpointError: the folder cannot be read.
    """
    with queue.lock("janitor", LOCK_TTL_S) as ours:
        if not ours:
            return 0
        names = folder.checkpoints(mode)
        recorded = find_recorded_weights(queue.search_id, folder, names)
        weights = superfluous_weights(names, keep, find_accepted_attempts(queue, names), recorded)
        files = folder.attempts(folder.resume)
        states = find_spent_states(
            files, stances(queue, {file.trial_id for file in files}), plans, mode
        )
        now_s = folder_now_s(folder.path) if now_s is None else now_s
        # Files of weights that stay. Superfluous weights may share them, because two workers may
        # have written the same attempt.
        shared = {path for name in names if name not in weights for path in folder.belongings(name)}
        going = (
            path
            for name in weights
            for path in folder.belongings(name)
            if path not in shared and path.exists()
        )
        doomed = [*dict.fromkeys(going), *(file.path for file in states)]
        # A master may have been killed while it wrote to one of these folders.
        written_by_masters = (folder.path.parent, folder.promotions, folder.asked)
        doomed += orphans(
            (
                folder.path,
                folder.trials,
                folder.resume,
                folder.snapshots,
                folder.pictures,
                *written_by_masters,
            ),
            now_s,
        )
        doomed += [
            path for path in find_aged(folder.find_left_behind(), now_s) if path not in doomed
        ]
        durable.remove(doomed)
        return len(doomed)


def sweep_left_over(folder: SearchFolder) -> int:
    """Remove what killed programs have left for a search.

    They may have left it in the search's folder, in its root or in the folder of the root's server.
    Files whose writer may still live stay. No lock is needed, because nobody waits for such a file.

    Returns:
        The number of files removed.
    """
    doomed = find_aged(_find_left_over(folder), folder_now_s(folder.path))
    durable.remove(doomed)
    return len(doomed)


def _find_left_over(folder: SearchFolder) -> Iterator[Path]:
    name = f"{durable.TEMPORARY_PREFIX}*"
    yield from folder.root.glob(name)
    # The search's own folder, the folders of its stages and logs, and the folders in these.
    for depth in ("", "*/", "*/*/"):
        yield from folder.path.glob(depth + name)
    for pattern in (name, *OF_A_SERVER):
        for place in (EMBEDDED, SHARED, f"{SHARED}/data"):
            yield from (folder.root / place).glob(pattern)


def find_accepted_attempts(queue: TrialQueue, names: Sequence[CheckpointName]) -> dict[str, int]:
    """Return the attempt that each ended trial ended with, by trial id."""
    results = {name.trial_id: queue.result(name.trial_id) for name in names}
    return {trial_id: result[0] for trial_id, result in results.items() if result is not None}


def find_recorded_weights(
    search_id: str, folder: StageFolder, names: Sequence[CheckpointName]
) -> dict[tuple[str, int], str | None]:
    """Return the weights that each attempt's record names, by (trial id, attempt).

    The value is None where the record names no weights. Attempts without a record are left out.
    """
    records = {name.tried: folder.record(*name.tried) for name in names}
    return {
        tried: record.checkpoint
        for tried, record in records.items()
        if record is not None and record.search_id == search_id
    }


def superfluous_weights(
    names: Sequence[CheckpointName],
    keep: int,
    accepted: Mapping[str, int],
    recorded: Mapping[tuple[str, int], str | None],
) -> list[CheckpointName]:
    """Return the weights that can be removed.

    These are the weights beyond the best ``keep`` of trials that have ended, those of attempts
    below the one that counts, and those whose record names other weights.

    Args:
        names: all weights files, best first.
        keep: how many weights stay.
        accepted: trial id to the attempt that it ended with.
        recorded: (trial id, attempt) to the weights that the attempt's record names; no other
            record of that attempt will be written.
    """
    counts = dict(accepted)
    # The highest attempt with a record counts. Redis hears of it at the next launch.
    for trial_id, attempt in recorded:
        if trial_id in counts:
            counts[trial_id] = max(counts[trial_id], attempt)
    superseded = [
        name
        for name in names
        if name.attempt < counts.get(name.trial_id, 0)
        or recorded.get(name.tried, str(name)) != str(name)
    ]
    # A trial that has not ended may have weights of a worker that died before it wrote the record.
    # These weights displace no others.
    current = [name for name in names if name not in superseded and name.trial_id in accepted]
    return superseded + current[keep:]


@dataclass(frozen=True)
class Stance:
    """State of a trial that has ended."""

    state: TrialState
    trial: Trial | None = None  # None if Redis no longer knows it
    value: float | None = None  # value of the search's metric
    violates: bool = False  # a constraint of the search


def stances(queue: TrialQueue, trial_ids: Iterable[str]) -> dict[str, Stance]:
    """Return the stance of each of these trials that has ended, by trial id."""
    states = {trial_id: queue.state(trial_id) for trial_id in sorted(trial_ids)}
    waiting = [trial_id for trial_id, state in states.items() if state is TrialState.COMPLETED]
    found = {trial_id: Stance(state) for trial_id, state in states.items() if state in ENDED}
    for trial_id, trial in zip(waiting, queue.trials_of(waiting), strict=True):
        result = queue.result(trial_id)
        if result is None:  # it is being promoted at this moment
            del found[trial_id]
        else:
            own = result[1]
            found[trial_id] = Stance(
                TrialState.COMPLETED, trial, own.value, violates(own.state, own.reason)
            )
    return found


def find_spent_states(
    files: Sequence[AttemptFile],
    ended: Mapping[str, Stance],
    plans: Sequence[StagePlan] | None,
    mode: str,
) -> list[AttemptFile]:
    """Return the resume states from which no trial will go on.

    These are states of trials that have ended for good, of attempts before a trial's last one, and
    of trials that stand at a rung from which enough others would be promoted first. All states of a
    trial that waits or runs stay.
    """
    latest: dict[str, int] = {}
    for file in files:
        latest[file.trial_id] = max(file.attempt, latest.get(file.trial_id, 0))
    rungs: dict[float, list[Standing]] = {}
    for trial_id in latest:
        trial = ended[trial_id].trial if trial_id in ended else None
        if trial is not None and trial.epochs < trial.horizon:
            own = ended[trial_id]
            worst = -math.inf if mode == "max" else math.inf
            value = worst if own.value is None else own.value
            rungs.setdefault(trial.epochs, []).append(
                Standing(trial_id, trial.index, value, own.violates)
            )
    able: set[str] = set()
    for epochs, standing in rungs.items():
        most = len(standing) if plans is None else most_promotable(plans, epochs)
        able |= best_standing(standing, most, mode, find_repeats(plans or ()))
    return [
        f
        for f in files
        if f.trial_id in ended and not (f.trial_id in able and f.attempt == latest[f.trial_id])
    ]


def folder_now_s(folder: Path) -> float:
    """Return the time by the clock that dates the folder's files.

    This is the file server's clock, which may differ from this process's. If nothing can be
    written, return -inf: no file is old then, because its age is unknown.
    """
    try:
        with tempfile.NamedTemporaryFile(prefix=durable.TEMPORARY_PREFIX, dir=folder) as touched:
            return os.fstat(touched.fileno()).st_mtime
    except OSError:
        return -math.inf


def orphans(folders: Sequence[Path], now_s: float) -> list[Path]:
    """Return the temporary files whose writer is long gone."""
    return find_aged(
        (path for folder in folders for path in folder.glob(f"{durable.TEMPORARY_PREFIX}*")), now_s
    )


def find_aged(paths: Iterable[Path], now_s: float) -> list[Path]:
    """Return the files that are so old that nobody is still writing what belongs to them."""
    found = []
    for path in paths:
        try:
            if now_s - path.stat().st_mtime > ORPHAN_S:
                found.append(path)
        except OSError:  # gone, or not accessible
            continue
    return found
