"""What every format is made of: the ended trials of the chosen stages, best first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from common.errors import CheckpointError, ConfigError
from common.record import Record
from common.search import Stage
from common.select import Chosen
from common.space import Space
from master import ranking
from master.ranges import read_frozen
from master.reading import not_launched

EPOCH = "epoch"  # the curve that is the others' axis


@dataclass(frozen=True)
class Ended:
    """A trial that has ended, and where it stands in its stage."""

    record: Record
    rank: int  # from 1, as `master rank` counts
    checkpoint: str | None  # None where its weights are not in the folder now


@dataclass(frozen=True)
class EndedStage:
    """A launched stage: the ranges that it samples, and its ended trials, best first."""

    stage: Stage
    space: Space
    trials: Sequence[Ended]

    @property
    def records(self) -> list[Record]:
        """The trials' records, best first."""
        return [trial.record for trial in self.trials]


@dataclass(frozen=True)
class Evaluation:
    """One point of a trial's curves."""

    number: int  # from 1
    step: int  # the epoch; ``number`` where a trial was evaluated within epochs
    epoch: float | None
    values: dict[str, float]  # by curve; those that were measured, finite or not


def read(chosen: Chosen, stage: str | None, warn: Callable[[str], None]) -> list[EndedStage]:
    """The stages to export: the one that was named, or each that was launched and has an ended trial.

    Raises:
        ConfigError: no such stage, or it has not been launched.
        CheckpointError: nothing in them has ended.
    """
    search = chosen.search
    names = [search.stage(stage).name] if stage else [s.name for s in search.stages]
    launched = [name for name in names if chosen.folder.stage(name).ranges.exists()]
    if not launched:
        if stage and any(chosen.folder.stage(s.name).ranges.exists() for s in search.stages):
            raise ConfigError(f"stage {stage!r} of search {search.name!r} has not been launched; run `master launch --stage {stage}`")
        raise not_launched(chosen)
    found = [_read_stage(chosen, name, warn) for name in launched]
    ended = [one for one in found if one.trials]
    if not ended:
        places = ", ".join(str(chosen.folder.stage(name).trials) for name in launched)
        raise CheckpointError(f"{places}: no trial has ended yet; `master status` shows how far they are")
    return ended


def evaluations(record: Record) -> Iterator[Evaluation]:
    """A trial's curves, point by point."""
    curves = {name: values for name, values in record.curves.items() if name != EPOCH}
    n = max((len(values) for values in record.curves.values()), default=0)
    axis = [*record.curves.get(EPOCH, [])]
    epochs = axis + [None] * (n - len(axis))
    steps = _steps(epochs)
    for i in range(n):
        values = {name: v for name, points in curves.items() if i < len(points) and (v := points[i]) is not None}
        yield Evaluation(i + 1, steps[i], epochs[i], values)


def times(record: Record) -> tuple[datetime | None, datetime | None]:
    """When it began and ended, in UTC; None of a record that does not say, or says what no calendar has."""
    if not record.ended_at:
        return None, None
    try:
        end = datetime.fromtimestamp(record.ended_at, UTC)
        return end - timedelta(seconds=record.seconds), end
    except (ValueError, OverflowError, OSError):
        return None, None


def _steps(epochs: Sequence[float | None]) -> list[int]:
    """Whole, growing epochs as they are, else the evaluations' numbers: other programs' axes know whole numbers only."""
    whole = [int(epoch) for epoch in epochs if epoch is not None and epoch.is_integer()]
    if len(whole) == len(epochs) and all(a < b for a, b in pairwise(whole)):
        return whole
    return list(range(1, len(epochs) + 1))


def _read_stage(chosen: Chosen, name: str, warn: Callable[[str], None]) -> EndedStage:
    folder = chosen.folder.stage(name)
    records = folder.records(warn)
    present = {str(checkpoint) for checkpoint in folder.checkpoints()}
    ranked = ranking.ranked(records) if records else []
    trials = [
        Ended(record, rank, record.checkpoint if record.checkpoint in present else None) for rank, record in enumerate(ranked, start=1)
    ]
    return EndedStage(chosen.search.stage(name), read_frozen(folder.ranges, chosen.search.space), trials)
