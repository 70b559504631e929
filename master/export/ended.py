"""The ended trials of the chosen stages, best first. Every export format is made from these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from common.errors import CheckpointError, ConfigError
from common.folder.chosen import Chosen, not_launched
from common.folder.notes import Note, read_notes
from common.folder.record import Record
from common.search.space import Space
from common.search.stage import Stage
from common.shell_command import shell_command
from master.results import ranking
from master.results.repeats import Spread
from master.strategy.ranges import read_frozen

NOTHING = Note()
EPOCH = "epoch"  # the curve that is the axis of the others


@dataclass(frozen=True)
class Ended:
    """A trial that has ended, with its rank in its stage."""

    record: Record
    rank: int  # from 1, as in `master rank`
    checkpoint: str | None  # None if its weights are not in the folder now
    spread: Spread | None = None  # over the runs of its configuration, if there are several
    noted: Note = NOTHING  # what people wrote about it


@dataclass(frozen=True)
class EndedStage:
    """A launched stage: the ranges that it samples, and its ended trials, best first."""

    stage: Stage
    space: Space
    trials: Sequence[Ended]

    @property
    def records(self) -> list[Record]:
        """The records of the trials, best first."""
        return [trial.record for trial in self.trials]


@dataclass(frozen=True)
class Evaluation:
    """One point of a trial's curves."""

    number: int  # from 1
    step: int  # the epoch, or ``number`` if a trial was evaluated within epochs
    epoch: float | None
    values: dict[str, float]  # the measured values by curve, finite or not


def read(chosen: Chosen, stage: str | None, warn: Callable[[str], None]) -> list[EndedStage]:
    """Return the stages to export: the named one, or all launched stages that have an ended trial.

    Raises:
        ConfigError: no such stage, or it has not been launched.
        CheckpointError: no trial in them has ended.
    """
    search = chosen.search
    names = [search.stage(stage).name] if stage else [s.name for s in search.stages]
    launched = [name for name in names if chosen.folder.stage(name).has_begun]
    if not launched:
        if stage and any(chosen.folder.stage(s.name).has_begun for s in search.stages):
            raise ConfigError(
                f"stage {stage!r} of search {search.name!r} has not been launched; run "
                f"`{shell_command('master launch --stage', stage)}`"
            )
        raise not_launched(chosen)
    found = [_read_stage(chosen, name, warn) for name in launched]
    ended = [one for one in found if one.trials]
    if not ended:
        places = ", ".join(str(chosen.folder.stage(name).trials) for name in launched)
        raise CheckpointError(
            f"{places}: no trial has ended yet; `{shell_command('master status')}` shows how far "
            "they are"
        )
    return ended


def rank_ended(
    records: Sequence[Record],
    name_weights: Callable[[Record], str | None],
    notes: Mapping[str, Note] = ranking.NO_NOTES,
) -> list[Ended]:
    """Return ended trials best first, as `master rank` orders them.

    Args:
        records: the last record of each trial.
        name_weights: returns what names the weights of a trial, or None if they are not there now.
        notes: what people wrote, by trial.
    """
    ranked = ranking.rank(records) if records else []
    return [
        Ended(record, rank, name_weights(record), spread, notes.get(record.trial, NOTHING))
        for rank, (record, spread) in enumerate(
            zip(ranked, ranking.spreads_of(ranked), strict=True), start=1
        )
    ]


def evaluations(record: Record) -> Iterator[Evaluation]:
    """Yield the points of a trial's curves."""
    curves = {name: values for name, values in record.curves.items() if name != EPOCH}
    n = max((len(values) for values in record.curves.values()), default=0)
    axis = [*record.curves.get(EPOCH, [])]
    epochs = axis + [None] * (n - len(axis))
    steps = _steps(epochs)
    for i in range(n):
        values = {
            name: v
            for name, points in curves.items()
            if i < len(points) and (v := points[i]) is not None
        }
        yield Evaluation(i + 1, steps[i], epochs[i], values)


def times(record: Record) -> tuple[datetime | None, datetime | None]:
    """Return when the trial began and ended, in UTC.

    Both are None if the record does not say, or if no calendar has the date.
    """
    if not record.ended_at:
        return None, None
    try:
        end = datetime.fromtimestamp(record.ended_at, UTC)
        return end - timedelta(seconds=record.seconds), end
    except (ValueError, OverflowError, OSError):
        return None, None


def _steps(epochs: Sequence[float | None]) -> list[int]:
    """Return the epochs if they are integers and increase, else the numbers of the evaluations.

    The axes of other programs have integers only.
    """
    whole = [int(epoch) for epoch in epochs if epoch is not None and epoch.is_integer()]
    if len(whole) == len(epochs) and all(a < b for a, b in pairwise(whole)):
        return whole
    return list(range(1, len(epochs) + 1))


def _read_stage(chosen: Chosen, name: str, warn: Callable[[str], None]) -> EndedStage:
    folder = chosen.folder.stage(name)
    records = folder.records(warn)
    present = {str(checkpoint) for checkpoint in folder.checkpoints()}
    trials = rank_ended(
        records,
        lambda own: own.checkpoint if own.checkpoint in present else None,
        read_notes(chosen.folder).trials,
    )
    return EndedStage(
        chosen.search.stage(name), read_frozen(folder.ranges, chosen.search.space), trials
    )
