"""`master logs`: what the loop or program of a trial wrote to stdout and stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from common.errors import ConfigError
from common.folder.chosen import Chosen
from common.folder.output import Follower
from common.folder.records import StageFolder
from common.search.trial import TRIAL_PATTERN
from common.shell_command import shell_command

LOOK_S = 0.2  # between looks at a file that is followed


def show_logs(
    chosen: Chosen,
    trial: str,
    follow: bool,
    write: Callable[[bytes], object],
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Write the output of a trial's last attempt.

    Args:
        chosen: the search.
        trial: the trial's id.
        follow: whether to go on until the attempt has a record, or another one begins.
        write: writes a part of it.
        sleep: waits so many seconds.

    Raises:
        ConfigError: there is no such trial, or it has no output.
    """
    folder = _stage_of(chosen, trial)
    outputs = folder.outputs(trial)
    if not outputs:
        _check_known(chosen, folder, trial)
        raise ConfigError(
            f"{trial}: has no output in {folder.output}; only a loop or a command leaves one, once "
            "a trial of it has written something. Classes write to the worker's log"
        )
    path, follower = outputs[0], Follower(outputs[0])
    while True:
        over = not follow or _has_ended(folder, trial, path)
        for part in follower.read_new():
            write(part)
        if over:
            return
        sleep(LOOK_S)


def _stage_of(chosen: Chosen, trial: str) -> StageFolder:
    if not TRIAL_PATTERN.fullmatch(trial):
        raise ConfigError(
            f"{trial}: not a trial; name one as `{shell_command('master rank')}` does: coarse-0042"
        )
    return chosen.folder.stage(chosen.search.stage(trial.rpartition("-")[0]).name)


def _check_known(chosen: Chosen, folder: StageFolder, trial: str) -> None:
    search, (name, _, index) = chosen.folder.search() or chosen.search, trial.rpartition("-")
    if not folder.has_begun:
        raise ConfigError(
            f"{trial}: stage {name!r} of search {search.name!r} has not been launched; run "
            f"`{shell_command('master launch --stage', name)}`"
        )
    if int(index) >= search.stage(name).trials:
        raise ConfigError(
            f"{trial}: no such trial; stage {name!r} has {search.stage(name).trials}, from 0 on"
        )


def _has_ended(folder: StageFolder, trial: str, path: Path) -> bool:
    latest = folder.outputs(trial)
    attempt = next(
        file.attempt for file in folder.attempts(folder.output) if file.path.name == path.name
    )
    return latest[:1] != [path] or folder.record_path(trial, attempt).exists()
