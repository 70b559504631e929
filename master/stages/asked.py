"""Configurations that a sampler was asked for one after another, as files in the stage's folder.

    checkpoints/digits/coarse/asked/first=000016.json
    {"format": 1, "search_id": "...", "stage": "coarse",
     "trials": [{"hyperparameters": {...}, "drawn": "suggested", ...}]}

They depend on what was known at that moment, so nobody can compute them again. A batch is written
before its trials are queued, and the first file with a batch's number counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from common.folder import durable
from common.folder.json_file import read_model
from common.folder.records import StageFolder
from common.search.values import Value
from master.strategy.drawing import Drawn

MAX_BATCH_BYTES = 64 << 20


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    hyperparameters: dict[str, Value]
    drawn: str
    parents: tuple[str, ...] = ()
    epochs: float = 0.0


class _Batch(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = 1
    search_id: str
    stage: str
    trials: list[_Asked]


def read_asked(folder: StageFolder, search_id: str) -> list[Drawn]:
    """Return all configurations of a stage that were asked for so far, by number.

    Raises:
        CheckpointError: a batch is damaged or cannot be read.
    """
    found: list[Drawn] = []
    while True:
        path = folder.asked / f"first={len(found):06d}.json"
        batch = read_model(
            _Batch,
            path,
            MAX_BATCH_BYTES,
            "put it back from a backup, or begin anew with --new-name",
        )
        if batch is None:
            return found
        if (batch.search_id, batch.stage) != (search_id, folder.path.name) or not batch.trials:
            return found
        found += [
            Drawn(dict(own.hyperparameters), own.drawn, own.parents, own.epochs)
            for own in batch.trials
        ]


def write_asked(
    folder: StageFolder, search_id: str, first: int, drawn: Sequence[Drawn]
) -> list[Drawn]:
    """Write the configurations numbered from ``first`` on, and return those that count.

    If another master was faster, its batch counts.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    durable.make_folder(folder.asked)
    trials = [
        _Asked(
            hyperparameters=own.hyperparameters,
            drawn=own.drawn,
            parents=own.parents,
            epochs=own.epochs,
        )
        for own in drawn
    ]
    batch = _Batch(search_id=search_id, stage=folder.path.name, trials=trials)
    durable.write_new({folder.asked / f"first={first:06d}.json": batch.model_dump_json().encode()})
    return read_asked(folder, search_id)[first:]
