"""The default strategy, asked for one configuration at a time.

Each configuration is drawn from what is known at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.search.search_file import Search
from common.search.space import Space
from master.strategy.drawing import Drawn, draw
from master.strategy.freezing import Frozen, Seen, freeze

# Share of the stage's trials that follow the Sobol sequence before any is bred, and their least
# number.
FIRST_SHARE = 0.2
LEAST_FIRST = 8
# Configurations drawn from one look at the trials, because one more trial tells little.
EVERY = 8


class BredSampler:
    """Sampler that breeds from the trials that have ended. A Sobol sequence comes first."""

    def __init__(self, search: Search, space: Space, stage: str) -> None:
        self._search = search
        self._space = space
        self._stage = stage
        n_trials = search.stage(stage).trials
        self._n_first = max(LEAST_FIRST, round(FIRST_SHARE * n_trials))
        self._start = freeze(search.space, space, ())
        self._frozen: Frozen | None = None
        self._frozen_at = 0

    def ask(self, seen: Sequence[Seen], index: int) -> Drawn:
        """Return the configuration of trial ``index``; see ``Sampler.ask``."""
        if index < self._n_first or not any(one.measured for one in seen):
            return self._draw(self._start, index)
        if self._frozen is None or index >= self._frozen_at + EVERY:
            self._frozen, self._frozen_at = freeze(self._search.space, self._space, seen), index
        return self._draw(self._frozen, index)

    def _draw(self, frozen: Frozen, index: int) -> Drawn:
        return draw(
            self._search.space, frozen, self._search.seed, self._stage, index, self._search.strategy
        )
