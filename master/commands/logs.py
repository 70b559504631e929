"""`master logs`: what the loop or program of a trial wrote to stdout and stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from common.errors import ConfigError
from common.folder.chosen import Chosen
from common.folder.output import Follower
from common.folder.records import StageFolder
from master.commands.trials import check_known, stage_folder

LOOK_S = 0.2  # between looks at a file that is followed
LAST, ALL = "last", "all"


def show_logs(
    chosen: Chosen,
    trial: str,
    follow: bool,
    write: Callable[[bytes], object],
    sleep: Callable[[float], object] = time.sleep,
    wanted: str = LAST,
) -> None:
    """Write the output of a trial's attempts.

    Args:
        chosen: the search.
        trial: the trial's id.
        follow: whether to go on until the attempt has a record, or another one begins.
        write: writes a part of it.
        sleep: waits so many seconds.
        wanted: the number of an attempt, "last", or "all": then each has a heading, and the last
            one is followed.

    Raises:
        ConfigError: there is no such trial or attempt, or it has no output.
    """
    folder = stage_folder(chosen.search, chosen.folder, trial)
    outputs = folder.outputs_by_attempt(trial)
    if not outputs:
        check_known(chosen.search, chosen.folder, trial)
        raise ConfigError(
            f"{trial}: has no output in {folder.output}; only a loop or a command leaves one, once "
            "a trial of it has written something. Classes write to the worker's log"
        )
    chosen_ones = _choose(trial, outputs, wanted)
    for attempt in chosen_ones:
        if wanted == ALL:
            write(f"==> {trial}, attempt {attempt} <==\n".encode())
        is_last = attempt == chosen_ones[-1]
        _show(folder, trial, attempt, outputs[attempt], follow and is_last, write, sleep)


def _choose(trial: str, outputs: dict[int, Path], wanted: str) -> list[int]:
    if wanted == ALL:
        return list(outputs)
    if wanted == LAST:
        return [max(outputs)]
    if not (wanted.isascii() and wanted.isdecimal()):
        raise ConfigError(f"--attempt {wanted}: neither a number nor {LAST} nor {ALL}")
    if int(wanted) not in outputs:
        there = ", ".join(map(str, outputs))
        raise ConfigError(
            f"--attempt {wanted}: has no output of {trial}; those that have some: {there}"
        )
    return [int(wanted)]


def _show(
    folder: StageFolder,
    trial: str,
    attempt: int,
    path: Path,
    follow: bool,
    write: Callable[[bytes], object],
    sleep: Callable[[float], object],
) -> None:
    follower = Follower(path)
    while True:
        over = not follow or has_ended(folder, trial, attempt)
        for part in follower.read_new():
            write(part)
        if over:
            return
        sleep(LOOK_S)


def has_ended(folder: StageFolder, trial: str, attempt: int) -> bool:
    """Return whether an attempt has a record, or another one has begun to write."""
    latest = max(folder.outputs_by_attempt(trial), default=attempt)
    return latest != attempt or folder.record_path(trial, attempt).exists()
