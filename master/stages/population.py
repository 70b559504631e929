"""Population-based training: the worst trials go on from the weights of the best.

All trials of the population train side by side. At each rung the worst fifth of them end, and as
many new trials take their places. Each new trial starts from the saved state of one of the best
fifth, with its numeric hyperparameters changed a little. All others go on as they are.

Source: Jaderberg et al., "Population Based Training of Neural Networks", 2017 (arXiv:1711.09846),
section 4.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from common.errors import CheckpointError
from common.folder import durable
from common.folder.exclusive import NO_LINKS
from common.folder.record import ROUNDING_EPOCHS
from common.folder.records import SearchFolder
from common.search.search_file import Search
from common.search.space import Space
from common.search.stage import Stage
from common.search.trial import Trial
from common.search.values import Hyperparameters
from master.stages.asking import Ask
from master.stages.ladder import Climb, Write
from master.stages.promotions import Decision
from master.stages.sampling import unit
from master.stages.standings import Standings
from master.strategy.drawing import Drawn, draw
from master.strategy.freezing import freeze
from master.strategy.promotion import choose

REPLACED = 0.2  # share of the population, at each rung: the paper's "truncation selection"
FACTORS = (0.8, 1.2)  # each numeric hyperparameter of an heir is multiplied by one of the two


class Population(Climb):
    """Population of trials. It decides which go on, which end, and which take the free places.

    The decisions do not depend on the order in which trials end.
    """

    def __init__(
        self,
        search: Search,
        stage: Stage,
        space: Space,
        standings: Standings,
        decisions: Sequence[Decision],
        write: Write,
        add: Ask,
        leave: Callable[[Trial, str], None],
    ) -> None:
        """Make a population from what the folder knows.

        Args:
            search: gives the seed and the space.
            stage: has a rung for each generation.
            space: the ranges that the stage samples.
            standings: standings of its trials.
            decisions: the decisions on its rungs that were made so far.
            write: makes the next part of a decision durable.
            add: makes new configurations durable, numbered from its first argument, and returns
                their trials.
            leave: leaves a copy of a trial's saved state to its heir, before the trial goes on and
                overwrites it.
        """
        self._search = search
        super().__init__(stage, standings, decisions, write)
        self._space = space
        self._add = add
        self._leave = leave

    @property
    def awaited(self) -> list[str]:
        """Ids of the trials of this generation."""
        return self._standings.at(self.epochs)

    @property
    def is_over(self) -> bool:
        """Whether the last generation has ended."""
        return (
            bool(self.awaited)
            and self.rung == len(self._decisions)
            and not self._standings.find_unfinished()
        )

    def advance(self, n_workers: int = 1) -> list[Trial]:
        """Return the trials to queue now.

        Raises:
            CheckpointError: the decision or the new trials cannot be written.
        """
        own = self._standings.of_stage(self._stage.name)
        if not own:
            frozen = freeze(self._search.space, self._space, ())
            numbers = range(self._stage.trials)
            first = [
                draw(
                    self._search.space,
                    frozen,
                    self._search.seed,
                    self._stage.name,
                    n,
                    self._search.strategy,
                )
                for n in numbers
            ]
            return self._take_in(self._add(0, first))
        if self.rung == len(self._decisions) or self._standings.n_unfinished(self.epochs):
            return []
        return self._next_generation(own)

    def _next_generation(self, own: Sequence[Trial]) -> list[Trial]:
        number = self.rung
        rung, following = self._stage.plan.rungs[number], self._stage.plan.rungs[number + 1]
        ranked = choose(self._standings.candidates(rung), self._stage.trials)
        if not ranked:  # nobody is left to go on
            self._decisions[number] = self._write(self._decisions[number], [], True)
            return []
        n_replaced = max(1, round(REPLACED * self._stage.trials))
        survivors = ranked[: max(1, min(len(ranked), self._stage.trials - n_replaced))]
        heirs = [
            trial
            for trial in own
            if not trial.passed
            and trial.drawn == "heir"
            and abs(trial.epochs - following) <= ROUNDING_EPOCHS
        ]
        if not heirs:
            known = {trial.id: trial for trial in own}
            parents = [
                known[trial_id] for trial_id in ranked[: max(1, min(len(ranked), n_replaced))]
            ]
            drawn = [
                self._heir(parents, number, n, following)
                for n in range(self._stage.trials - len(survivors))
            ]
            heirs = self._take_in(self._add(len(own), drawn))
        for heir in heirs:
            self._leave(heir, heir.parents[0])
        self._decisions[number] = self._write(self._decisions[number], survivors, True)
        return [*self._standings.promote(self._decisions[number]), *heirs]

    def _take_in(self, trials: list[Trial]) -> list[Trial]:
        for trial in trials:
            self._standings.add(trial)
        return trials

    def _heir(self, parents: Sequence[Trial], rung: int, n: int, epochs: float) -> Drawn:
        digest = hashlib.sha256(
            f"heir/{self._search.seed}/{self._stage.name}/{rung}/{n}".encode()
        ).digest()
        parent = parents[digest[0] * len(parents) >> 8]
        moved: Hyperparameters = {}
        fixed = self._search.space.structural
        for byte, (name, value) in zip(
            digest[1:] * 64, parent.hyperparameters.items(), strict=False
        ):
            numeric = self._space.numeric.get(name)
            # The parent's weights would not fit another structure.
            if numeric is None or name in fixed or not isinstance(value, int | float):
                moved[name] = value
            else:
                moved[name] = numeric.snap(float(value) * FACTORS[byte & 1])
        return Drawn(self._complete(parent, moved, rung, n), "heir", (parent.id,), epochs)

    def _complete(
        self, parent: Trial, moved: Hyperparameters, rung: int, n: int
    ) -> Hyperparameters:
        """Return the configuration with what exists under its conditions now, and nothing else.

        If the moves changed the structure, the parent's configuration stays as it is.
        """
        if not self._space.conditions:
            return moved
        drawn = {
            name: own.from_unit(unit(self._search.seed, f"{self._stage.name}/{rung}", n, name))
            for name, own in self._space.parameters.items()
        }
        found = self._space.prune({**drawn, **moved})
        group = self._search.space.group
        same = group(found) == group(parent.hyperparameters)
        return found if same else dict(parent.hyperparameters)


def leave_state(folder: SearchFolder, heir: Trial, parent: str) -> None:
    """Link the latest saved state of ``parent``, if any, under the name of its heir.

    Where the file system has no hard links, copy it.
    """
    states = folder.stage(parent.rsplit("-", 1)[0]).find_states(parent)
    place = folder.stage(heir.stage).resume_path(heir.id, 0)
    if states and not place.exists():
        # If the state is gone meanwhile, the heir starts anew and says so.
        with suppress(OSError, CheckpointError):
            try:
                os.link(states[0], place)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                durable.write_new({place: states[0].read_bytes()})
