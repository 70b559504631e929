"""The interface of a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from common.search.space import Space
from common.search.values import Hyperparameters
from master.strategy.drawing import Drawn
from master.strategy.freezing import Seen

INSTALL = "pip install 'coarsefine[samplers]'"


class Sampler(Protocol):
    """Sampler that suggests configurations. One thread calls it, in any order."""

    def ask(self, seen: Sequence[Seen], index: int) -> Drawn:
        """Return the configuration of trial ``index``.

        Args:
            seen: all trials so far, including those that still train and have nothing measured yet.
            index: the trial's number in its stage.
        """
        ...


def with_fixed(space: Space, values: Hyperparameters) -> Hyperparameters:
    """Return a whole configuration in the order of the space: sampled values and fixed ones.

    It lacks what does not exist under its conditions.
    """
    fixed = {
        name: parameter.from_unit(0.0)
        for name, parameter in space.parameters.items()
        if name not in values
    }
    return space.prune({name: values.get(name, fixed.get(name, 0.0)) for name in space.parameters})
