"""What the commands that read the folder alone do; each returns the text for stdout. Needs no Redis."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, RenderableType

from common import durable
from common.errors import CheckpointError, ConfigError
from common.record import Record
from common.records import StageFolder
from common.search import NAME_PATTERN, default_text
from common.select import CONFIG, Chosen
from master import ranking
from master.borders import borders as find_borders
from master.ranges import read_frozen

PLAIN_WIDTH = 100  # characters of a table where there is no terminal to ask


def write_example(folder: Path) -> str:
    """Writes the commented search file.

    Raises:
        ConfigError: there is one already.
        CheckpointError: the folder cannot be written.
    """
    path = durable.make_folder(folder) / CONFIG
    name = folder.resolve().name  # a name of its own, so that it does not meet the built-in "digits"
    text = default_text().replace('name = "digits"', f'name = "{name}"') if NAME_PATTERN.fullmatch(name) else default_text()
    if path in durable.write_new({path: text.encode()}):
        raise ConfigError(f"{path} exists already and stays as it is; name another folder: master init DIR")
    return f"wrote {path}; edit it, then run: master launch --config {path} --stage coarse"


def rank(chosen: Chosen, stage: str | None, top: int | None, form: str, warn: Callable[[str], None]) -> str:
    """The ranking of a stage, from the folder alone.

    Raises:
        ConfigError: no such stage, or it has not been launched.
        CheckpointError: nothing in it has ended.
    """
    folder, records = read_stage(chosen, stage, warn)
    table = ranking.frame(records)
    if form == "table":
        return drawn(ranking.table(table, top, Console().width))
    table = table.head(top) if top else table
    present = {str(name) for name in folder.checkpoints()}
    if form == "json":
        return ranking.as_json(table, present)
    if form == "csv":
        return ranking.csv(table, present).rstrip("\n")
    return ranking.markdown(table, present).rstrip("\n")


def borders(chosen: Chosen, stage: str | None, as_json: bool, warn: Callable[[str], None]) -> str:
    """Where the best value sits on the border of its range, from the folder alone.

    Raises:
        ConfigError: no such stage, or it has not been launched.
        CheckpointError: nothing in it has ended, or its frozen ranges are damaged.
    """
    folder, records = read_stage(chosen, stage, warn)
    found = find_borders(records, read_frozen(folder.ranges, chosen.search.space))
    if as_json:
        return strict_json([border.as_json for border in found])
    return "\n".join(border.text for border in found) or "no best value sits on the border of its range"


def read_stage(chosen: Chosen, stage: str | None, warn: Callable[[str], None]) -> tuple[StageFolder, list[Record]]:
    """A stage's folder and the records in it; without a name, those of the last stage that was launched.

    Raises:
        ConfigError: no such stage, or it has not been launched.
        CheckpointError: nothing in it has ended.
    """
    search, name = chosen.search, stage or last_stage(chosen)
    folder = chosen.folder.stage(search.stage(name).name)
    if not folder.ranges.exists():
        raise ConfigError(f"stage {name!r} of search {search.name!r} has not been launched; run `master launch --stage {name}`")
    records = folder.records(warn)
    if not records:
        raise CheckpointError(f"{folder.trials}: no trial has ended yet; `master status` shows how far they are")
    return folder, records


def last_stage(chosen: Chosen) -> str:
    """The last stage that was launched.

    Raises:
        ConfigError: none was.
    """
    names = [s.name for s in chosen.search.stages if chosen.folder.stage(s.name).ranges.exists()]
    if not names:
        raise not_launched(chosen)
    return names[-1]


def not_launched(chosen: Chosen) -> ConfigError:
    """The error for a command that needs a launched search."""
    search, first = chosen.search, chosen.search.stages[0].name
    return ConfigError(f"search {search.name!r} has not been launched in {chosen.folder.root}; run `master launch --stage {first}`")


def strict_json(value: object) -> str:
    """JSON as every reader takes it: a number that is not finite would be an error, so callers pass None for it."""
    return json.dumps(value, indent=2, allow_nan=False)


def drawn(renderable: RenderableType) -> str:
    """A table as text, as wide as the terminal."""
    console = Console(width=None if Console().is_terminal else PLAIN_WIDTH)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().rstrip("\n")
