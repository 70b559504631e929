"""Ladder of one stage: which trials are awaited at each rung, and which are promoted from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from common.search.stage import Stage
from common.search.trial import Result, Trial
from master.stages.promotions import Decision
from master.stages.standings import Standings
from master.strategy.promotion import Candidate, certain, choose

Write = Callable[[Decision, Sequence[str], bool], Decision]


class Climb:
    """Base of all ways to run a stage: it holds the trials and the decisions on the rungs."""

    def __init__(
        self, stage: Stage, standings: Standings, decisions: Sequence[Decision], write: Write
    ) -> None:
        """Make it from what the folder knows.

        Args:
            stage: the stage, with its rungs.
            standings: standings of all trials that it may promote.
            decisions: the decisions on its rungs that were made so far.
            write: makes the next part of a decision durable.
        """
        self._stage = stage
        self._standings = standings
        self._decisions = list(decisions)
        self._write = write

    @property
    def standings(self) -> Standings:
        """Standings of all trials that the stage may promote."""
        return self._standings

    @property
    def rung(self) -> int:
        """Number of the awaited rung, counted from 0."""
        return next(
            (n for n, own in enumerate(self._decisions) if not own.complete), len(self._decisions)
        )

    @property
    def epochs(self) -> float:
        """The budget of the awaited rung."""
        return self._stage.plan.rungs[self.rung]

    def note(self, trial_id: str, result: Result) -> None:
        """Note how a trial ended."""
        self._standings.note(trial_id, result)

    def release(self) -> list[Trial]:
        """Return the trials that are promoted now that the next stage is frozen.

        There are none unless this stage's last rung runs beside the next stage.
        """
        return []


class Ladder(Climb):
    """Ladder that decides a stage's promotions as its trials end.

    The outcome does not depend on the order in which they end. A rung is decided once all its
    trials have ended. A trial that is promoted earlier would have been promoted then, too. The
    trials of a repeated configuration are compared by their mean, and promoted together.
    """

    def __init__(
        self,
        stage: Stage,
        standings: Standings,
        decisions: Sequence[Decision],
        write: Write,
        holds_last: bool = False,
    ) -> None:
        """Make a ladder from what the folder knows.

        Args:
            stage: the stage, with its rungs.
            standings: standings of all trials that it may promote.
            decisions: the decisions on its rungs that were made so far.
            write: makes the next part of a decision durable.
            holds_last: whether the last rung is decided only at ``release``, because it runs beside
                the next stage.
        """
        super().__init__(stage, standings, decisions, write)
        self._holds_last = holds_last
        self._position = standings.position(stage.name)

    @property
    def awaited(self) -> list[str]:
        """Ids of the trials that train to the awaited rung, or have ended there or on the way."""
        if self.rung == 0:
            return [trial.id for trial in self._standings.of_stage(self._stage.name)]
        return list(self._decisions[self.rung - 1].trials)

    @property
    def is_decided(self) -> bool:
        """Whether no more trials will be promoted, as far as the stage may decide now."""
        return self.rung >= self._last

    @property
    def is_over(self) -> bool:
        """Whether all awaited trials have ended, so that the next stage may be frozen."""
        return self.is_decided and not self._standings.find_unfinished()

    @property
    def _last(self) -> int:
        return (
            max(0, len(self._decisions) - 1)
            if self._holds_last and self._decisions
            else len(self._decisions)
        )

    def release(self) -> list[Trial]:
        """Decide the last rung as well, now that the next stage is frozen.

        Returns:
            The promoted trials.
        """
        self._holds_last = False
        return self.advance()

    def advance(self, n_workers: int = 1) -> list[Trial]:
        """Return the trials that are promoted now, with their longer budgets.

        The decision is durable by then. The number of workers changes nothing.

        Raises:
            CheckpointError: the decision cannot be written.
        """
        promoted: list[Trial] = []
        while self.rung < self._last:
            number = self.rung
            known, epochs = self._decisions[number], self._stage.plan.rungs[number]
            plan, n_known = self._stage.plan, self._standings.n_configurations(known.trials)
            n_left = max(0, plan.keep[number + 1] // plan.repeats - n_known)
            candidates = self._standings.join_runs(self._candidates(number), epochs)
            n_unfinished = self._standings.n_unfinished(epochs, self._position)
            chosen = (
                certain(candidates, n_unfinished, n_left)
                if n_unfinished
                else choose(candidates, n_left)
            )
            if n_unfinished and not chosen:
                break
            runs = {one.trial: one.runs for one in candidates}
            trials = [run for one in chosen for run in runs[one]]
            self._decisions[number] = self._write(known, trials, not n_unfinished)
            promoted += self._standings.promote(self._decisions[number])
            if not self._decisions[number].complete:
                break
        return promoted

    def _candidates(self, number: int) -> list[Candidate]:
        """Return the trials that may be promoted from a rung.

        They are of this stage and those before it, even if a later stage has begun already.
        """
        epochs, following = self._stage.plan.rungs[number : number + 2]
        able = [
            *self._standings.candidates(epochs),
            *self._standings.find_gone_on(epochs, following),
        ]
        return [one for one in able if one.stage <= self._position]
