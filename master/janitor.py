"""Removes what is no longer needed from a stage's folder: weights that fell out of ``keep``, superseded and orphaned files.

Weights go with all that belongs to them: what they predict, and the snapshots of their attempt. Of a trial that has ended only those stay
that the record of its highest ended attempt names; a record is written after its weights, so where there is none yet, they wait for it.

One at a time, under a lock in Redis. Records are always kept.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from common import durable
from common.checkpoint_name import CheckpointName
from common.queue import TrialQueue
from common.records import AttemptFile, StageFolder
from common.trial import ENDED, TrialState

LOCK_TTL_S = 60.0
ORPHAN_S = 3600.0  # a temporary file that nobody has finished for so long has no writer, predictions without weights neither


def sweep(queue: TrialQueue, folder: StageFolder, keep: int, now_s: float | None = None, mode: str = "max") -> int:
    """Removes what can go; returns the number of files. Does nothing while another janitor is at work.

    Args:
        queue: which trials have ended, and with which attempt.
        folder: the stage's.
        keep: how many weights stay.
        now_s: the time by which files are old; None: the folder's own.
        mode: whether the largest or the smallest value of the metric is best.

    Raises:
        QueueError: Redis is away.
        CheckpointError: the folder cannot be read.
    """
    with queue.lock("janitor", LOCK_TTL_S) as ours:
        if not ours:
            return 0
        names = folder.checkpoints(mode)
        recorded = recorded_weights(queue.search_id, folder, names)
        weights = superfluous_weights(names, keep, accepted_attempts(queue, names), recorded)
        states = ended_states(folder.attempts(folder.resume), queue.state)
        now_s = folder_now_s(folder.path) if now_s is None else now_s
        shared = {path for name in names if name not in weights for path in folder.belongings(name)}  # by two writers of one number
        going = (path for name in weights for path in folder.belongings(name) if path not in shared and path.exists())
        doomed = [*dict.fromkeys(going), *(file.path for file in states)]
        doomed += orphans((folder.path, folder.trials, folder.resume, folder.snapshots, folder.pictures), now_s)
        doomed += [path for path in aged(folder.left_behind(), now_s) if path not in doomed]
        durable.remove(doomed)
        return len(doomed)


def accepted_attempts(queue: TrialQueue, names: Sequence[CheckpointName]) -> dict[str, int]:
    """The attempt that each ended trial ended with."""
    results = {name.trial_id: queue.result(name.trial_id) for name in names}
    return {trial_id: result[0] for trial_id, result in results.items() if result is not None}


def recorded_weights(search_id: str, folder: StageFolder, names: Sequence[CheckpointName]) -> dict[tuple[str, int], str | None]:
    """(trial id, attempt) -> the weights that the attempt's record names, if any; attempts without a record are left out."""
    records = {name.tried: folder.record(*name.tried) for name in names}
    return {tried: record.checkpoint for tried, record in records.items() if record is not None and record.search_id == search_id}


def superfluous_weights(
    names: Sequence[CheckpointName], keep: int, accepted: Mapping[str, int], recorded: Mapping[tuple[str, int], str | None]
) -> list[CheckpointName]:
    """Weights beyond the best ``keep`` of trials that have ended, those below the attempt that counts, and those whose record names others.

    Args:
        names: all weights files, best first.
        accepted: trial id to the attempt that it ended with.
        recorded: (trial id, attempt) to the weights that the attempt's record names; nobody else will write a record of that attempt.
    """
    counts = dict(accepted)
    for trial_id, attempt in recorded:  # the highest with a record, of which Redis hears at the next launch
        if trial_id in counts:
            counts[trial_id] = max(counts[trial_id], attempt)
    superseded = [name for name in names if name.attempt < counts.get(name.trial_id, 0) or recorded.get(name.tried, str(name)) != str(name)]
    # A trial that has not ended may have weights of a worker that died before its record: they push nobody out.
    current = [name for name in names if name not in superseded and name.trial_id in accepted]
    return superseded + current[keep:]


def ended_states(files: Sequence[AttemptFile], state: Callable[[str], TrialState | None]) -> list[AttemptFile]:
    """Resume states of trials that have ended."""
    return [file for file in files if state(file.trial_id) in ENDED]


def folder_now_s(folder: Path) -> float:
    """The time by the clock that dates the folder's files, which is its server's and need not be this process's.

    Where nothing can be written it is before all time: no file is old then, as nobody can tell.
    """
    try:
        with tempfile.NamedTemporaryFile(prefix=durable.TEMPORARY_PREFIX, dir=folder) as touched:
            return os.fstat(touched.fileno()).st_mtime
    except OSError:
        return -math.inf


def orphans(folders: Sequence[Path], now_s: float) -> list[Path]:
    """Temporary files whose writer is long gone."""
    return aged((path for folder in folders for path in folder.glob(f"{durable.TEMPORARY_PREFIX}*")), now_s)


def aged(paths: Iterable[Path], now_s: float) -> list[Path]:
    """Those that were written so long ago that nobody is still writing what belongs to them."""
    found = []
    for path in paths:
        try:
            if now_s - path.stat().st_mtime > ORPHAN_S:
                found.append(path)
        except FileNotFoundError:
            continue
    return found
