"""Asynchronous successive halving: a stage whose configurations are drawn one after another.

A trial is promoted as soon as it is in the best third of those that have reached its rung. This
keeps every worker busy, and the outcome depends on the order in which trials end.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (ASHA), MLSys 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from common.search.plan import ETA
from common.search.stage import Stage
from common.search.trial import Trial
from master.samplers.protocol import Sampler
from master.stages.ladder import Climb, Write
from master.stages.promotions import Decision
from master.stages.standings import Standings
from master.strategy.drawing import Drawn

# Trials at once for each worker: an array of the usual width on a CPU.
SLOTS_A_WORKER = {"staged": 16}
Ask = Callable[[int, Sequence[Drawn]], list[Trial]]


class AskingLadder(Climb):
    """Ladder that fills free slots with promoted trials, and then with new ones."""

    def __init__(
        self,
        stage: Stage,
        standings: Standings,
        decisions: Sequence[Decision],
        write: Write,
        sampler: Sampler,
        add: Ask,
        slots: int | None,
        slots_a_worker: int,
    ) -> None:
        """Make a ladder from what the folder knows.

        Args:
            stage: the stage, with all rungs or with one.
            standings: standings of its trials, including those that were asked for before.
            decisions: the decisions on its rungs that were made so far.
            write: makes the next part of a decision durable.
            sampler: is asked for new configurations.
            add: makes new configurations durable, numbered from its first argument, and returns
                their trials.
            slots: number of trials at once; None follows the number of workers.
            slots_a_worker: number of trials at once for each worker.
        """
        super().__init__(stage, standings, decisions, write)
        self._sampler = sampler
        self._add = add
        self._slots = slots
        self._slots_a_worker = slots_a_worker

    @property
    def awaited(self) -> list[str]:
        """Ids of all trials that were asked for so far."""
        return [trial.id for trial in self._standings.of_stage(self._stage.name)]

    @property
    def epochs(self) -> float:
        """The longest budget of the stage."""
        return self._stage.plan.rungs[-1]

    @property
    def is_over(self) -> bool:
        """Whether all trials were asked for and have ended, and all promotions are decided."""
        all_asked = len(self.awaited) >= self._stage.trials
        return (
            all_asked
            and all(own.complete for own in self._decisions)
            and not self._standings.find_unfinished()
        )

    def advance(self, n_workers: int = 1) -> list[Trial]:
        """Return the trials to queue now: promoted ones, then new ones.

        Raises:
            CheckpointError: they cannot be written.
        """
        n_free = (self._slots or self._slots_a_worker * max(1, n_workers)) - len(
            self._standings.find_unfinished()
        )
        found: list[Trial] = []
        for number in range(len(self._decisions) - 1, -1, -1):
            found += self._promote(number, n_free - len(found))
        while len(found) < n_free and len(self.awaited) < self._stage.trials:
            index = len(self.awaited)
            new = self._add(index, [self._sampler.ask(self._standings.read_seen(), index)])
            for trial in new:
                self._standings.add(trial)
            found += new
        return found

    def _promote(self, number: int, n_free: int) -> list[Trial]:
        """Promote, from one rung, the trials in the best third of those that have reached it."""
        known = self._decisions[number]
        if known.complete:
            return []
        rung, keep = self._stage.plan.rungs[number], self._stage.plan.keep[number + 1]
        reached = self._standings.find_reached(rung)
        is_last = len(self.awaited) >= self._stage.trials and self._is_quiet(number)
        n_good = min(keep, max(1, len(reached)) if is_last else len(reached) // ETA)
        waiting = {one.trial for one in self._standings.candidates(rung)}
        best = [trial for trial in (reached if is_last else reached[:n_good]) if trial in waiting]
        # Trials whose decision was lost count as well.
        n_known = len(known.trials) + len(self._standings.find_gone_on(rung, known.epochs))
        chosen = best[: max(0, min(n_good - n_known, n_free if not is_last else keep))]
        if not chosen and not is_last:
            return []
        self._decisions[number] = self._write(known, chosen, is_last)
        return self._standings.promote(self._decisions[number])

    def _is_quiet(self, number: int) -> bool:
        """Return whether no more trials will come to this rung."""
        below = self._stage.plan.rungs[: number + 1]
        earlier = all(own.complete for own in self._decisions[:number])
        return earlier and not any(self._standings.n_unfinished(epochs) for epochs in below)


def slots_a_worker(sampler: str) -> int:
    """Return how many trials at once each worker is given.

    This is one array's worth, or one trial where each suggestion counts.
    """
    return SLOTS_A_WORKER.get(sampler, 1)
