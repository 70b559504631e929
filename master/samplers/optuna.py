"""Optuna's samplers: tree-structured Parzen estimators (``tpe``) and Gaussian processes (``gp``).

Their suggestions depend on the order in which trials end. Given the same results in the same order,
the same version of Optuna suggests the same.

Source: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011 (the method of
Hyperopt as well); Snoek et al., "Practical Bayesian Optimization of Machine Learning Algorithms",
NeurIPS 2012 (the method of Spearmint).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from common.errors import ConfigError
from common.search.search_file import Search
from common.search.space import Space
from master.samplers.coding import Interval, Options, code
from master.samplers.protocol import INSTALL, with_fixed
from master.strategy.drawing import Drawn
from master.strategy.freezing import Seen

# An exploded trial gets the value -WORST if no other was measured. It is finite, because a Gaussian
# process takes no infinity.
WORST = 1e9


class OptunaSampler:
    """Sampler that makes a study in memory at each call, so that a restart changes nothing.

    The study is made from all trials so far.
    """

    def __init__(self, search: Search, space: Space) -> None:
        """Make a sampler.

        Args:
            search: gives the sampler and the seed.
            space: the ranges to sample.

        Raises:
            ConfigError: Optuna is not installed.
        """
        try:
            import optuna
        except ImportError:
            raise ConfigError(
                f"sampler = {search.sampler!r}: needs Optuna, which is not installed; {INSTALL}"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        self._kind = search.sampler
        self._seed = search.seed
        self._space = space
        self._coded = {name: code(own) for name, own in space.sampled.items()}
        self._distributions = {name: self._distribution(own) for name, own in self._coded.items()}

    def ask(self, seen: Sequence[Seen], index: int) -> Drawn:
        """Return the configuration of trial ``index``; see ``Sampler.ask``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of the samplers' options are called experimental
            study = self._optuna.create_study(direction="maximize", sampler=self._sampler(index))
            for one in seen:
                self._tell(study, one)
            suggested = study.ask(self._distributions).params
        values = {name: self._coded[name].decode(value) for name, value in suggested.items()}
        return Drawn(with_fixed(self._space, values), "suggested")

    def _sampler(self, index: int) -> Any:
        """Return Optuna's sampler for one call.

        It has its own seed, which depends on nothing that a restart forgets.
        """
        seed = (self._seed * 1_000_003 + index) % 2**32
        if self._kind == "gp":
            return self._optuna.samplers.GPSampler(seed=seed)
        return self._optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            # Hyperparameters that exist together are drawn together.
            group=bool(self._space.conditions),
            constant_liar=True,
        )

    def _tell(self, study: Any, one: Seen) -> None:
        params = {
            name: own.encode(one.hyperparameters[name])
            for name, own in self._coded.items()
            if name in one.hyperparameters
        }
        state = self._optuna.trial.TrialState
        shared = {"params": params, "distributions": {n: self._distributions[n] for n in params}}
        if not one.measured:
            study.add_trial(self._optuna.trial.create_trial(state=state.RUNNING, **shared))
            return
        goodness = one.measured[-1][1]
        value = goodness if math.isfinite(goodness) else self._worst(study)
        study.add_trial(
            self._optuna.trial.create_trial(state=state.COMPLETE, value=value, **shared)
        )

    def _worst(self, study: Any) -> float:
        """Return the worst value that was measured."""
        values = [t.value for t in study.get_trials(deepcopy=False) if t.value is not None]
        return min(values, default=-WORST)

    def _distribution(self, own: Options | Interval) -> Any:
        distributions = self._optuna.distributions
        if isinstance(own, Options):
            return distributions.CategoricalDistribution(range(len(own.options)))
        if own.integer:
            return distributions.IntDistribution(int(own.low), int(own.high), log=own.log)
        return distributions.FloatDistribution(own.low, own.high, log=own.log)
