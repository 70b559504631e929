"""SMAC3's random forest (``smac``), through its ask-and-tell interface.

Source: Lindauer et al., "SMAC3: A Versatile Bayesian Optimization Package", JMLR 23 (2022).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.search.search_file import Search
from common.search.space import Space
from common.search.values import Value
from master.samplers.coding import Interval, Options, code
from master.samplers.protocol import INSTALL, with_fixed
from master.strategy.drawing import Drawn
from master.strategy.freezing import Seen

MOST_TRIALS = 1_000_000  # SMAC needs a limit in advance; the budget ends the search


class SmacSampler:
    """Sampler that makes an optimiser in memory at each call, so that a restart changes nothing.

    The optimiser is made from all trials so far.
    """

    def __init__(self, search: Search, space: Space) -> None:
        """Make a sampler.

        Args:
            search: gives the seed.
            space: the ranges to sample.

        Raises:
            ConfigError: SMAC3 is not installed.
        """
        try:
            import ConfigSpace
            import smac
        except ImportError:
            raise ConfigError(
                'sampler = "smac": needs SMAC3, which is not installed; pip install smac (its '
                f'forest is compiled with swig), or take sampler = "tpe" ({INSTALL})'
            ) from None
        self._smac: Any = smac
        self._seed = search.seed % 2**31
        self._space = space
        self._coded = {name: code(own) for name, own in space.sampled.items()}
        self._configuration_space = ConfigSpace.ConfigurationSpace(seed=self._seed)
        self._configuration_space.add(
            [self._parameter(ConfigSpace, name, own) for name, own in self._coded.items()]
        )

    def ask(self, seen: Sequence[Seen], index: int) -> Drawn:
        """Return the configuration of trial ``index``; see ``Sampler.ask``."""
        with tempfile.TemporaryDirectory() as folder:
            optimiser = self._optimiser(Path(folder), index)
            worst = max(
                (
                    -one.measured[-1][1]
                    for one in seen
                    if one.measured and math.isfinite(one.measured[-1][1])
                ),
                default=1.0,
            )
            for one in seen:
                self._tell(optimiser, one, worst)
            suggested = dict(optimiser.ask().config)
        values = {name: self._coded[name].decode(value) for name, value in suggested.items()}
        return Drawn(with_fixed(self._space, values), "suggested")

    def _optimiser(self, folder: Path, index: int) -> Any:
        scenario = self._smac.Scenario(
            self._configuration_space,
            deterministic=True,
            n_trials=MOST_TRIALS,
            seed=(self._seed + index) % 2**31,
            output_directory=folder,
        )
        facade = self._smac.HyperparameterOptimizationFacade
        return facade(scenario, lambda config, seed=0: 0.0, overwrite=True, logging_level=False)

    def _tell(self, optimiser: Any, one: Seen, worst: float) -> None:
        from ConfigSpace import Configuration
        from smac.runhistory.dataclasses import TrialInfo, TrialValue

        if not one.measured:
            return
        goodness = one.measured[-1][1]
        values = {
            # SMAC's forest needs a value of each: where there is none, the middle stands for it.
            name: self._told(
                own,
                one.hyperparameters.get(name, self._space.sampled[name].from_unit(0.5)),
            )
            for name, own in self._coded.items()
        }
        cost = -goodness if math.isfinite(goodness) else worst
        optimiser.tell(
            TrialInfo(Configuration(self._configuration_space, values=values), seed=0),
            TrialValue(cost=cost),
        )

    def _parameter(self, library: Any, name: str, own: Options | Interval) -> Any:
        if isinstance(own, Options):
            return library.CategoricalHyperparameter(
                name, [str(n) for n in range(len(own.options))]
            )
        if own.integer:
            return library.UniformIntegerHyperparameter(
                name, int(own.low), int(own.high), log=own.log
            )
        return library.UniformFloatHyperparameter(name, own.low, own.high, log=own.log)

    def _told(self, own: Options | Interval, value: Value) -> Any:
        found = own.encode(value)
        return str(found) if isinstance(own, Options) else found
