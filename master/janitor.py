"""Removes what is no longer needed from a stage's folder: weights that fell out of ``keep``, superseded and orphaned files.

Weights go with all that belongs to them: what they predict, and the snapshots of their attempt.

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
        weights = superfluous_weights(names, keep, accepted_attempts(queue, names))
        states = ended_states(folder.attempts(folder.resume), queue.state)
        now_s = folder_now_s(folder.path) if now_s is None else now_s
        doomed = [path for name in weights for path in folder.belongings(name) if path.exists()] + [file.path for file in states]
        doomed += orphans((folder.path, folder.trials, folder.resume, folder.snapshots, folder.pictures), now_s)
        doomed += [path for path in aged(folder.left_behind(), now_s) if path not in doomed]
        durable.remove(doomed)
        return len(doomed)


def accepted_attempts(queue: TrialQueue, names: Sequence[CheckpointName]) -> dict[str, int]:
    """The attempt that each ended trial ended with."""
    results = {name.trial_id: queue.result(name.trial_id) for name in names}
    return {trial_id: result[0] for trial_id, result in results.items() if result is not None}


def superfluous_weights(names: Sequence[CheckpointName], keep: int, accepted: Mapping[str, int]) -> list[CheckpointName]:
    """Weights beyond the best ``keep``, and those of an attempt below the one that was accepted.

    Args:
        names: all weights files, best first.
        accepted: trial id to the attempt that it ended with.
    """
    superseded = [name for name in names if name.attempt < accepted.get(name.trial_id, 0)]
    current = [name for name in names if name not in superseded]
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
