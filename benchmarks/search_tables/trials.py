"""Searches with rungs on a task, driven by the program's own strategy code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.search_tables.tables import Task
from common.search.plan import StagePlan, plan, stage_names
from common.search.stage import Strategy
from common.search.values import Hyperparameters
from master.strategy.box import propose
from master.strategy.drawing import draw_many
from master.strategy.freezing import Seen, freeze, rank_seen
from master.strategy.promotion import Candidate, choose


@dataclass
class Running:
    """One trial of a search."""

    number: int  # in the whole search
    stage: int
    index: int
    hyperparameters: Hyperparameters
    measured: list[tuple[float, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its name for the strategy."""
        return str(self.number)

    @property
    def epochs(self) -> float:
        """The epochs that it has trained."""
        return self.measured[-1][0] if self.measured else 0.0

    @property
    def candidate(self) -> Candidate:
        """The trial at its current rung, as promotions see it."""
        return self.candidate_at(self.epochs)

    def candidate_at(self, epochs: float) -> Candidate:
        """Return the trial at an earlier rung, as promotions see it."""
        return Candidate(self.name, self.stage, self.index, dict(self.measured)[epochs])

    @property
    def seen(self) -> Seen:
        """The trial as later stages see it."""
        return Seen(self.name, self.stage, self.index, self.hyperparameters, tuple(self.measured))


@dataclass(frozen=True)
class Job:
    """The training of one trial to one rung. ``rung`` counts within the stage that trains it."""

    stage: int
    rung: int
    trial: str
    epochs: float  # that the job trains


class Trials:
    """All trials of a search, their cost, and the jobs in the order in which they were decided.

    Args:
        task: what is searched.
        seed: the search's seed.
        resumes: whether a promoted trial resumes from its state. Otherwise its earlier epochs are
            trained again.
    """

    def __init__(self, task: Task, seed: int, resumes: bool = True) -> None:
        self.task, self.spent, self.jobs = task, 0.0, list[Job]()
        # For each rung that was decided: the trials that stood at the preceding rung.
        self.rivals: dict[tuple[int, int], list[str]] = {}
        self._all: dict[str, Running] = {}
        self._in_stage: dict[int, int] = {}
        self._seed, self._resumes = seed, resumes

    def __getitem__(self, name: str) -> Running:
        return self._all[name]

    @property
    def seen(self) -> list[Seen]:
        """All trials, as later stages see them."""
        return [trial.seen for trial in self._all.values()]

    def add(self, stage: int, configurations: Sequence[Hyperparameters]) -> list[str]:
        """Add the new trials of a stage. Return their names."""
        start, first = len(self._all), self._in_stage.get(stage, 0)
        self._in_stage[stage] = first + len(configurations)
        new = [
            Running(start + index, stage, first + index, own)
            for index, own in enumerate(configurations)
        ]
        self._all |= {trial.name: trial for trial in new}
        return [trial.name for trial in new]

    def train(self, names: Sequence[str], epochs: float, stage: int, rung: int) -> None:
        """Train trials to ``epochs``."""
        trials = [self._all[name] for name in names]
        if not trials:
            return
        values = self.task.measure(
            [(trial.number, trial.hyperparameters) for trial in trials], epochs, self._seed
        )
        for trial, value in zip(trials, values, strict=True):
            cost = epochs - (trial.epochs if self._resumes else 0.0)
            self.jobs.append(Job(stage, rung, trial.name, cost))
            self.spent += cost
            trial.measured.append((epochs, value))

    def promote(
        self, own: StagePlan, stage: int, rung: int, within: Sequence[str] | None = None
    ) -> None:
        """Train the best trials of the preceding rung to this rung.

        ``within`` limits the choice to some trials.
        """
        among = self._all.values() if within is None else [self._all[name] for name in within]
        rivals = [trial for trial in among if trial.epochs == own.rungs[rung - 1]]
        self.rivals[stage, rung] = [trial.name for trial in rivals]
        self.train(
            choose([trial.candidate for trial in rivals], own.keep[rung]),
            own.rungs[rung],
            stage,
            rung,
        )

    @property
    def chosen(self) -> Hyperparameters:
        """The configuration that ranks first."""
        return self._all[rank_seen(self.seen)[0].trial].hyperparameters


def staged(
    task: Task, plans: Sequence[StagePlan], seed: int, options: Strategy, borders: bool = True
) -> Trials:
    """Run the program's default search: stages of halving, each drawn from the best before.

    Args:
        task: what is searched.
        plans: the stages.
        seed: the search's seed.
        options: of the strategy. With ``overlap``, the next stage does not know a stage's last
            rung.
        borders: whether ends of ranges move.
    """
    trials, box, waiting = (
        Trials(task, seed, options.resumes),
        task.space,
        list[Callable[[], None]](),
    )
    names = stage_names(len(plans))
    for stage, own in enumerate(plans):
        if stage and borders:
            box = propose(task.space, box, trials.seen).space
        frozen = freeze(task.space, box, trials.seen)
        drawn = draw_many(task.space, frozen, seed, names[stage], range(own.keep[0]), options)
        for last in waiting:
            last()
        waiting.clear()
        trials.train(
            trials.add(stage, [one.hyperparameters for one in drawn]), own.rungs[0], stage, 0
        )
        for rung in range(1, len(own.rungs)):
            if bool(options.overlap) and rung == len(own.rungs) - 1:
                waiting.append(partial(trials.promote, own, stage, rung))
            else:
                trials.promote(own, stage, rung)
    for last in waiting:
        last()
    return trials


def ours(task: Task, budget: float, seed: int, options: Strategy) -> Hyperparameters:
    """Return what the program's default search selects with ``budget`` epochs."""
    return staged(task, plan(budget, task.max_epochs, None, options.resumes), seed, options).chosen
