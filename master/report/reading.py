"""The commands that read only the folder and need no Redis.

Each returns the text for stdout.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from common.console import draw, open_console
from common.errors import CheckpointError, ConfigError
from common.folder import durable
from common.folder.chosen import CONFIG, Chosen, not_launched
from common.folder.notes import find_notes
from common.folder.record import Record
from common.folder.records import StageFolder
from common.search.search_file import NAME_PATTERN, default_text
from common.shell_command import shell_command
from master.results import ranking
from master.strategy.borders import borders as find_borders
from master.strategy.guessing import guessing_so_far
from master.strategy.ranges import read_frozen


def write_example(folder: Path) -> str:
    """Write the commented search file and return a line that says where.

    Raises:
        ConfigError: the file exists already.
        CheckpointError: the folder cannot be written.
    """
    path = durable.make_folder(folder) / CONFIG
    # The search gets its own name, so it does not collide with the built-in "digits".
    name = folder.resolve().name
    text = (
        default_text().replace('name = "digits"', f'name = "{name}"')
        if NAME_PATTERN.fullmatch(name)
        else default_text()
    )
    if path in durable.write_new({path: text.encode()}):
        raise ConfigError(
            f"{path} exists already and stays as it is; name another folder: "
            f"{shell_command('master init DIR')}"
        )
    command = shell_command("master launch --stage coarse --config", str(path))
    return f"wrote {path}; edit it, then run: {command}"


def rank(
    chosen: Chosen, stage: str | None, top: int | None, form: str, warn: Callable[[str], None]
) -> str:
    """Return the ranking of a stage, or of the whole search without one, from the folder alone.

    Raises:
        ConfigError: no such stage, or it has not been launched.
        CheckpointError: no trial in it has ended.
    """
    folders, records = read_stages(chosen, stage, warn)
    table, nothing = ranking.frame(records), guessing_so_far(chosen.search, records)
    notes = find_notes(chosen.folder, warn).trials
    if form == "table":
        shown = draw(ranking.table(table, top, open_console().width, notes))
        return shown if nothing is None else f"{shown}\n\n{nothing.text}"
    table = table.head(top) if top else table
    present = {str(name) for folder in folders for name in folder.checkpoints()}
    if nothing is not None:
        warn(nothing.text)
    if form == "json":
        return ranking.as_json(table, present, None if nothing is None else nothing.as_json, notes)
    if form == "csv":
        return ranking.csv(table, present, notes).rstrip("\n")
    return ranking.markdown(table, present, notes).rstrip("\n")


def borders(chosen: Chosen, stage: str | None, as_json: bool, warn: Callable[[str], None]) -> str:
    """Return the best values that lie on the border of their range, from the folder alone.

    Raises:
        ConfigError: no such stage, or it has not been launched.
        CheckpointError: no trial in it has ended, or its frozen ranges are damaged.
    """
    folder, _ = read_stage(chosen, stage or last_searched(chosen), warn)
    own = chosen.search.stage(folder.path.name)
    if not own.searches:
        raise ConfigError(
            f"--stage {own.name}: trains configurations of earlier stages again, so it has no "
            "borders"
        )
    searched = [known for known in chosen.search.up_to(own.name) if known.searches]
    records = [
        record for known in searched for record in chosen.folder.stage(known.name).records(warn)
    ]
    nothing = guessing_so_far(chosen.search, records)
    found = (
        find_borders(records, read_frozen(folder.ranges, chosen.search.space))
        if nothing is None
        else []
    )
    if as_json:
        if nothing is not None:
            warn(nothing.text)
        return strict_json([border.as_json for border in found])
    if nothing is not None:
        return nothing.text
    return (
        "\n".join(border.text for border in found)
        or "no best value sits on the border of its range"
    )


def read_stages(
    chosen: Chosen, stage: str | None, warn: Callable[[str], None]
) -> tuple[list[StageFolder], list[Record]]:
    """Return the folders and records of one stage, or of all launched stages without a name.

    Raises:
        ConfigError: no such stage, or it has not been launched.
        CheckpointError: no trial in it has ended.
    """
    if stage is not None:
        folder, records = read_stage(chosen, stage, warn)
        return [folder], records
    last_stage(chosen)  # raises ConfigError if no stage was launched
    folders = [chosen.folder.stage(known.name) for known in chosen.search.stages]
    found = [record for folder in folders for record in folder.records(warn)]
    if not found:
        raise CheckpointError(
            f"{chosen.folder.path}: no trial has ended yet; `{shell_command('master status')}` "
            "shows how far they are"
        )
    return folders, found


def read_stage(
    chosen: Chosen, stage: str | None, warn: Callable[[str], None]
) -> tuple[StageFolder, list[Record]]:
    """Return a stage's folder and its records; without a name, those of the last launched stage.

    Raises:
        ConfigError: no such stage, or it has not been launched.
        CheckpointError: no trial in it has ended.
    """
    search, name = chosen.search, stage or last_stage(chosen)
    folder = chosen.folder.stage(search.stage(name).name)
    if not folder.has_begun:
        raise ConfigError(
            f"stage {name!r} of search {search.name!r} has not been launched; run "
            f"`{shell_command('master launch --stage', name)}`"
        )
    records = folder.records(warn)
    if not records:
        raise CheckpointError(
            f"{folder.trials}: no trial has ended yet; `{shell_command('master status')}` shows "
            "how far they are"
        )
    return folder, records


def last_stage(chosen: Chosen) -> str:
    """Return the last stage that was launched.

    Raises:
        ConfigError: no stage was launched.
    """
    names = [s.name for s in chosen.search.stages if chosen.folder.stage(s.name).has_begun]
    if not names:
        raise not_launched(chosen)
    return names[-1]


def last_searched(chosen: Chosen) -> str:
    """Return the last launched stage that samples its own configurations.

    Raises:
        ConfigError: no stage was launched.
    """
    last = chosen.search.stage(last_stage(chosen))
    return next(stage.name for stage in reversed(chosen.search.up_to(last.name)) if stage.searches)


def strict_json(value: object) -> str:
    """Return strict JSON.

    A number that is not finite is an error, so callers pass None for it.
    """
    return json.dumps(value, indent=2, allow_nan=False)
