"""Which trial a command or a request names."""

from __future__ import annotations

from common.errors import ConfigError
from common.folder.records import SearchFolder, StageFolder
from common.search.search_file import Search
from common.search.trial import TRIAL_PATTERN
from common.shell_command import shell_command


def stage_folder(search: Search, folder: SearchFolder, trial: str) -> StageFolder:
    """Return the folder of a trial's stage.

    Raises:
        ConfigError: it is not the name of a trial, or the search has no such stage.
    """
    if not TRIAL_PATTERN.fullmatch(trial):
        raise ConfigError(
            f"{trial}: not a trial; name one as `{shell_command('master rank')}` does: coarse-0042"
        )
    return folder.stage(search.stage(trial.rpartition("-")[0]).name)


def check_known(search: Search, folder: SearchFolder, trial: str) -> StageFolder:
    """Check that a trial exists, and return the folder of its stage.

    Raises:
        ConfigError: it does not.
        CheckpointError: the search's folder is damaged.
    """
    stage = stage_folder(search, folder, trial)
    # The file as it was launched may have more trials than the one that the user edits.
    as_launched, (name, _, index) = folder.search() or search, trial.rpartition("-")
    if not stage.has_begun:
        raise ConfigError(
            f"{trial}: stage {name!r} of search {search.name!r} has not been launched; run "
            f"`{shell_command('master launch --stage', name)}`"
        )
    if int(index) >= as_launched.stage(name).trials:
        raise ConfigError(
            f"{trial}: no such trial; stage {name!r} has {as_launched.stage(name).trials}, from 0 "
            "on"
        )
    return stage
