"""The data for the figures and the report of a stage, read from the folder alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.errors import ConfigError
from common.folder import pictures
from common.folder.record import Record
from common.folder.records import SearchFolder, StageFolder
from common.search.search_file import Search
from common.search.space import Space
from common.search.stage import Stage
from master.figures.catalogue import Material
from master.figures.table import table, with_shares
from master.results import ranking
from master.stages.source import make_proposal, read_before
from master.strategy.box import Proposal
from master.strategy.ranges import read_frozen, read_proposal

PROPOSED = "{stage} (proposed)"


@dataclass(frozen=True)
class Following:
    """The ranges of the next stage.

    ``notes`` has the reason for each hyperparameter. It is empty if a user edited the proposal.
    """

    stage: Stage
    space: Space
    notes: dict[str, str]


@dataclass(frozen=True)
class Known:
    """The records of a stage and of the stages before it.

    They are the last record of each trial, and those of its other attempts.
    """

    records: Sequence[Record]  # last records of the stage
    earlier: Sequence[Record]  # last records of the stages before it
    others: Sequence[Record]  # records of other attempts: at shorter budgets, or lost

    @property
    def whole(self) -> list[Record]:
        """The last record of each trial, in the order of the stages."""
        return [*self.earlier, *self.records]

    @property
    def attempts(self) -> list[Record]:
        """One record for each attempt that has one."""
        return [*self.others, *self.whole]


def read_known(
    search: Search,
    folder: SearchFolder,
    stage: Stage,
    records: Sequence[Record],
    warn: Callable[[str], None],
) -> Known:
    """Read the records of the earlier stages and of other attempts.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    before = _before(search, folder, stage)
    earlier = [record for s in before for record in folder.stage(s.name).records(warn)]
    latest = [*earlier, *records]
    return Known(
        records,
        earlier,
        [
            record
            for s in [*before, stage]
            for record in find_superseded(folder.stage(s.name), latest)
        ],
    )


def gather(
    search: Search, folder: SearchFolder, stage: Stage, known: Known, following: Following | None
) -> Material:
    """Read what the figures need beside the last record of each trial.

    Args:
        search: as launched.
        folder: the folder of the search.
        stage: a stage that has been launched.
        known: the result of ``read_known``.
        following: the result of ``read_following``.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    until = [*_before(search, folder, stage), stage]
    ranges = {s.name: read_frozen(folder.stage(s.name).ranges, search.space) for s in until}
    proposal = {PROPOSED.format(stage=following.stage.name): following.space} if following else {}
    drawn = {name: space for name, space in ranges.items() if space.sampled}
    trials = table(known.records)
    history = table(known.whole) if known.earlier else trials
    attempts = table(known.attempts) if known.others else history
    return Material(
        stage=stage.name,
        trials=trials,
        history=history,
        attempts=with_shares(attempts, search.strategy.resumes),
        ranges=ranges,
        following=drawn | proposal,
        picture=_pictures(folder.stage(stage.name), known.records),
    )


def read_following(
    search: Search, folder: SearchFolder, stage: Stage, records: Sequence[Record]
) -> Following | None:
    """Return the ranges that the next stage will sample.

    They are the proposal in ``ranges.toml``, edited or not, or else one that is made now.
    """
    following = search.after(stage.name)
    if (
        following is None
        or not (stage.searches and following.searches)
        or not ranking.best(records, 1)
    ):
        return None
    before = read_before(search, folder, search.up_to(stage.name), lambda _: None)
    proposal: Proposal = make_proposal(search, folder, stage, following, before)
    try:
        written = read_proposal(folder.stage(stage.name).ranges, search.space)
    except ConfigError:
        # The proposal was edited into something that cannot be sampled. The launch of the next
        # stage explains what is wrong with it.
        written = None
    if written is not None and written != proposal.space:
        return Following(following, written, {})
    return Following(following, proposal.space, dict(proposal.notes))


def find_superseded(folder: StageFolder, records: Sequence[Record]) -> list[Record]:
    """Return the readable records of attempts that are not their trial's last.

    These attempts had a shorter budget, or were lost.
    """
    latest = {(record.trial, record.attempt) for record in records}
    others = [
        file
        for file in folder.attempts(folder.trials)
        if (file.trial_id, file.attempt) not in latest
    ]
    found = (folder.record(file.trial_id, file.attempt) for file in others)
    return [record for record in found if record is not None]


def _before(search: Search, folder: SearchFolder, stage: Stage) -> list[Stage]:
    """Return the launched stages before ``stage``."""
    return [s for s in search.up_to(stage.name)[:-1] if folder.stage(s.name).has_begun]


def _pictures(folder: StageFolder, records: Sequence[Record]) -> Callable[[str], bytes | None]:
    paths = {
        record.trial: folder.picture_path(record.trial, record.attempt)
        for record in records
        if record.checkpoint
    }

    def picture(trial: str) -> bytes | None:
        try:
            return pictures.read(paths[trial]) if trial in paths else None
        except OSError:
            # A trial may have no picture, or the janitor may just have removed it. A damaged file
            # must not end a report.
            return None

    return picture
