"""What the figures and the report of a stage are made from, read from the folder alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common import pictures
from common.errors import ConfigError
from common.record import Record
from common.records import SearchFolder, StageFolder
from common.search import Search, Stage
from common.space import Space
from master import ranking
from master.figures.catalogue import Material
from master.figures.table import table
from master.ranges import read_frozen, read_proposal
from master.stage_ranges import make_proposal
from master.stages import Proposal

PROPOSED = "{stage} (proposed)"


@dataclass(frozen=True)
class Following:
    """The next stage's ranges. ``notes``: why, by hyperparameter; empty where a user edited the proposal."""

    stage: Stage
    space: Space
    notes: dict[str, str]


def gather(
    search: Search, folder: SearchFolder, stage: Stage, records: Sequence[Record], following: Following | None, warn: Callable[[str], None]
) -> Material:
    """Reads what the figures need beside the stage's own records.

    Args:
        search: as launched.
        folder: its folder.
        stage: launched.
        records: of that stage, the latest attempt of each trial.
        following: see ``proposed``.
        warn: where damaged records are told.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    before = [s for s in _until(search, stage) if folder.stage(s.name).ranges.exists()]
    ranges = {s.name: read_frozen(folder.stage(s.name).ranges, search.space) for s in [*before, stage]}
    earlier = [record for s in before for record in folder.stage(s.name).records(warn)]
    proposal = {PROPOSED.format(stage=following.stage.name): following.space} if following else {}
    own = folder.stage(stage.name)
    drawn = {name: space for name, space in ranges.items() if space.sampled}
    return Material(
        stage=stage.name,
        trials=table(records),
        history=table([*earlier, *records]),
        attempts=table([*superseded(own, records), *records]),
        ranges=ranges,
        following=drawn | proposal,
        picture=_pictures(own, records),
    )


def proposed(search: Search, folder: SearchFolder, stage: Stage, records: Sequence[Record]) -> Following | None:
    """The ranges that the next stage is going to sample: as proposed in ``ranges.toml``, edited or not, or made now."""
    following = search.after(stage.name)
    if following is None or not stage.kind == following.kind == "search" or not ranking.best(records, 1):
        return None
    proposal: Proposal = make_proposal(search, folder, stage, following, records)
    try:
        written = read_proposal(folder.stage(stage.name).ranges, search.space)
    except ConfigError:
        written = None  # edited into something that cannot be sampled: the launch of that stage says what is wrong with it
    if written is not None and written != proposal.space:
        return Following(following, written, {})
    return Following(following, proposal.space, dict(proposal.notes))


def superseded(folder: StageFolder, records: Sequence[Record]) -> list[Record]:
    """The readable records of attempts that are not their trial's last."""
    latest = {(record.trial, record.attempt) for record in records}
    others = [file for file in folder.attempts(folder.trials) if (file.trial_id, file.attempt) not in latest]
    found = (folder.record(file.trial_id, file.attempt) for file in others)
    return [record for record in found if record is not None]


def _until(search: Search, stage: Stage) -> list[Stage]:
    names = [s.name for s in search.stages]
    return list(search.stages[: names.index(stage.name)])


def _pictures(folder: StageFolder, records: Sequence[Record]) -> Callable[[str], bytes | None]:
    paths = {record.trial: folder.picture_path(record.trial, record.attempt) for record in records if record.checkpoint}

    def picture(trial: str) -> bytes | None:
        try:
            return pictures.read(paths[trial]) if trial in paths else None
        except OSError:
            return None  # not every kept trial has one, the janitor may have removed it a moment ago, and damage must not end a report

    return picture
