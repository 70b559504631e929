"""How far a stage is on its rungs, and at which pace its trials train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.folder.record import ROUNDING_EPOCHS, Record
from common.search.stage import Stage
from common.search.trial import Running
from master.results.cost import held_by
from master.run.estimate import Estimate, Training, estimate
from master.stages.promotions import Decision
from master.stages.rungs import Rung, rungs_so_far

MOST_SKEW_S = 300.0  # between the clocks of a worker and of the folder


@dataclass(frozen=True)
class Seen:
    """A training that has ended: its trial, its budget, and when its attempt was held.

    ``ended`` is when its record was written, by the clock of the folder (Unix time, s).
    """

    trial: str
    budget_epochs: float
    began: float
    ended: float


def seen_of(record: Record, written_s: float) -> Seen | None:
    """Return the training of a record; None if it never trained.

    The clocks of workers may differ, so the time of the file counts. In a folder that was copied,
    that is the time of the copy; then the record's own time counts.

    Args:
        record: The record.
        written_s: The time stamp of its file, Unix time.
    """
    held = held_by(record)
    if held is None:
        return None
    copied = record.ended_at > 0 and written_s - record.ended_at > MOST_SKEW_S
    ended = record.ended_at if copied else written_s
    return Seen(record.trial, record.budget_epochs, ended - (held.ended - held.claimed), ended)


@dataclass(frozen=True)
class Step:
    """One rung of a stage: the trials that train to its budget, and those that have."""

    rung: Rung
    planned: int
    awaited: int
    trained: int
    running: int


@dataclass(frozen=True)
class Climb:
    """How far a stage is on its rungs."""

    steps: tuple[Step, ...]
    left_epochs: float  # that its trainings still have to train
    trainings_lately: tuple[Training, ...]  # its latest and its running trainings
    n_running: int

    @property
    def trained(self) -> int:
        """Number of trainings that have ended, over all rungs.

        It does not decrease when a promoted trial waits again.
        """
        return sum(step.trained for step in self.steps)

    @property
    def trainings(self) -> int:
        """Number of trainings that the stage takes, over all rungs."""
        return sum(step.planned for step in self.steps)


def climb(
    stage: Stage,
    decisions: Sequence[Decision],
    records: Mapping[str, Record],
    running: Sequence[Running],
    seen: Sequence[Seen],
    n_ended: int,
    resumes: bool,
    now_s: float,
) -> Climb:
    """Return how far a stage is.

    Args:
        stage: The stage.
        decisions: The decisions on its rungs.
        records: The last record of each trial of all stages, by name. A stage may promote trials of
            earlier stages.
        running: The running trials of all stages.
        seen: The latest trainings of all stages.
        n_ended: How many of the stage's own trials have ended, by Redis or by their records,
            whichever is ahead.
        resumes: Whether a promoted trial goes on from its saved state.
        now_s: Unix time, s.
    """
    name, rungs = stage.name, rungs_so_far(stage, decisions)
    steps, lately, left, n_running, before = list[Step](), list[Training](), 0.0, 0, 0.0
    is_certain = True  # whether no further trial will be sent to this rung
    for number, rung in enumerate(rungs):
        own = set(rung.names) if rung.names is not None else None
        planned = rung.awaited if is_certain and number else rung.planned
        trained = _count_trained(rung, records) if own is not None else n_ended
        planned, size = max(planned, trained), rung.epochs - before
        here = [one for one in running if _belongs(one.trial.id, one.trial.epochs, rung, own, name)]
        lately += [
            Training(one.began, one.ended, 1.0, size)
            for one in seen
            if _belongs(one.trial, one.budget_epochs, rung, own, name)
        ]
        done = [_so_far(one, before, rung.epochs, now_s) for one in here]
        lately += done
        left += max(0.0, (planned - trained) * size - sum(one.epochs for one in done))
        n_running += len(here)
        awaited = planned if own is None else len(own)
        steps.append(Step(rung, planned, awaited, trained, len(here)))
        before, is_certain = (rung.epochs if resumes else 0.0), is_certain and rung.is_decided
    return Climb(tuple(steps), left, tuple(lately), n_running)


def estimate_together(
    climbs: Sequence[Climb], now_s: float, later_epochs: float | None = None
) -> Estimate | None:
    """Return the pace and the time left of some stages together; None if nothing trains.

    Stages that still have work tell the pace, as their trainings may be much longer than those of
    the stages before. Until they tell it, all do.

    Args:
        climbs: How far each stage is.
        now_s: Unix time, s.
        later_epochs: The work to estimate, if it is not what these stages have left.
    """
    unfinished = [far for far in climbs if far.left_epochs > 0]
    left = sum(far.left_epochs for far in climbs) if later_epochs is None else later_epochs
    any_running = any(far.n_running for far in climbs)
    for own in (unfinished, climbs):
        lately = [one for far in own for one in far.trainings_lately]
        found = estimate(lately, left, now_s, any_running)
        if found is not None:
            return found
    return None


def _so_far(one: Running, begin: float, budget: float, now_s: float) -> Training:
    """Return what a running trial has done of its training from ``begin`` to ``budget`` epochs."""
    epoch = one.progress.epoch if one.progress else 0.0
    done = min(max(epoch - begin, 0.0), budget - begin)
    began = now_s - max(one.claimed_s, 0.0)
    # The training has not ended, so it never counts as a whole one.
    return Training(began, now_s, min(done / (budget - begin), 0.999), done)


def _count_trained(rung: Rung, records: Mapping[str, Record]) -> int:
    """Return how many trials of a rung have ended.

    They may have ended at the rung, on the way to it, or further up.
    """
    found = (records.get(trial) for trial in rung.names or ())
    return sum(
        record is not None and record.budget_epochs >= rung.epochs - ROUNDING_EPOCHS
        for record in found
    )


def _belongs(trial: str, epochs: float, rung: Rung, own: set[str] | None, stage: str) -> bool:
    """Return whether a training belongs to this rung."""
    if abs(epochs - rung.epochs) > ROUNDING_EPOCHS:
        return False
    return trial.startswith(f"{stage}-") if own is None else trial in own
