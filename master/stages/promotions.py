"""Decisions on promotion, kept as files in the stage's folder, so that nobody decides twice.

    checkpoints/digits/middle/promotions/epochs=7-part=1.json
    {"format": 1, "search_id": "...", "stage": "middle", "epochs": 7.0,
     "trials": ["middle-0031"], "complete": false}

A decision may come in parts: trials that are among the best, whatever the unfinished ones do, are
promoted at once. The last part is marked as complete. A part is written before Redis hears of it,
and the first file with a part's number counts. So two masters decide alike, and either can go on
where the other was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from common.folder import durable
from common.folder.json_file import read_model
from common.folder.records import SearchFolder
from common.search.stage import Stage
from common.shell_command import shell_command

MAX_PART_BYTES = 64 << 20  # enough for a million trials


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    format: int = 1
    search_id: str
    stage: str
    epochs: float = Field(gt=0)
    trials: list[str]
    complete: bool


@dataclass(frozen=True)
class Decision:
    """Trials promoted to ``epochs`` in a stage, as far as decided; best first within each part."""

    stage: str
    epochs: float
    trials: tuple[str, ...] = ()
    complete: bool = False
    n_parts: int = 0


def read_decisions(folder: SearchFolder, search_id: str, stages: Sequence[Stage]) -> list[Decision]:
    """Return the decisions on all rungs of these stages but the first, in the order they are made.

    Raises:
        CheckpointError: one is damaged, or cannot be read.
    """
    return [
        _read(folder.stage(stage.name).promotions, search_id, Decision(stage.name, epochs))
        for stage in stages
        for epochs in stage.plan.rungs[1:]
    ]


def write_part(
    folder: SearchFolder, search_id: str, known: Decision, trials: Sequence[str], complete: bool
) -> Decision:
    """Write the next part of a decision. If another master was faster, its part counts.

    Returns:
        The decision as it stands now. It includes all that is ``known``, even if a file was lost
        meanwhile.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    place = folder.stage(known.stage).promotions
    durable.make_folder(place)
    part = _Part(
        search_id=search_id,
        stage=known.stage,
        epochs=known.epochs,
        trials=list(trials),
        complete=complete,
    )
    path, content = _path(place, known.epochs, known.n_parts + 1), part.model_dump_json().encode()
    if (
        path in durable.write_new({path: content})
        and _read_part(path, search_id, known.stage) is None
    ):
        durable.set_aside(path)  # another search's file would be in the way for ever
        durable.write_new({path: content})
    return _read(place, search_id, known)


def _path(place: Path, epochs: float, part: int) -> Path:
    return place / f"epochs={epochs:g}-part={part}.json"


def _read(place: Path, search_id: str, known: Decision) -> Decision:
    """Return a decision with the parts that follow the known ones."""
    trials, number, complete = list(known.trials), known.n_parts, known.complete
    while not complete:
        part = _read_part(_path(place, known.epochs, number + 1), search_id, known.stage)
        if part is None:
            break
        number, complete = number + 1, part.complete
        trials += [trial for trial in part.trials if trial not in trials]
    return Decision(known.stage, known.epochs, tuple(trials), complete, number)


def _read_part(path: Path, search_id: str, stage: str) -> _Part | None:
    """Return a part; None if there is none, or if another search of this name left it."""
    part = read_model(
        _Part,
        path,
        MAX_PART_BYTES,
        f"`{shell_command('master recover')}` sets it aside and decides again from the records",
    )
    if part is None:
        return None
    return part if (part.search_id, part.stage) == (search_id, stage) else None
