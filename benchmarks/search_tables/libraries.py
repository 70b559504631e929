"""Searches by other libraries, at equal epochs.

Model-based ones run one trial at a time, which is their best case. A configuration that is promoted
pays only its additional epochs.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from benchmarks.search_tables.tables import Task
from common.search.parameters import Choice
from common.search.plan import ETA
from common.search.space import Space
from common.search.values import Hyperparameters

warnings.filterwarnings("ignore", module="optuna|smac|dehb|ConfigSpace|sklearn")
REMEDIES = {
    "optuna": "pip install -e '.[bench]'",
    "smac": "pip install smac==2.4.0 in an environment of its own, with scikit-learn below 1.7 "
    "and swig for pyrfr",
    "dehb": "pip install dehb==0.1.2",
    "ConfigSpace": "pip install ConfigSpace",
    "loguru": "pip install loguru",
}


def imported(name: str) -> ModuleType:
    """Import a library that is not a dependency.

    Raises:
        SystemExit: it is missing; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = REMEDIES[name.partition(".")[0]]
        raise SystemExit(
            f"this method needs {name}, which cannot be imported ({error}); {remedy}, or leave the "
            "method out"
        ) from None


class Meter:
    """A meter that trains configurations, counts epochs, and keeps the best trained longest."""

    def __init__(self, task: Task, seed: int) -> None:
        self.spent = 0.0
        self._task, self._seed = task, seed
        self._best: tuple[float, float, Hyperparameters] | None = None

    def train(
        self, number: int, hyperparameters: Hyperparameters, epochs: float, done: float = 0.0
    ) -> float:
        """Train a numbered configuration from ``done`` to ``epochs``. Return its metric there."""
        (value,) = self._task.measure([(number, hyperparameters)], epochs, self._seed)
        self.spent += max(0.0, epochs - done)
        if self._best is None or (epochs, value) > self._best[:2]:
            self._best = epochs, value, hyperparameters
        return value

    @property
    def chosen(self) -> Hyperparameters:
        """The best configuration among those trained longest."""
        assert self._best is not None
        return self._best[2]


def optuna_full(sampler: str) -> Callable[[Task, float, int], Hyperparameters]:
    """Return a search by one of Optuna's samplers, "tpe" or "gp".

    All its trials are trained to the end.
    """

    def search(task: Task, budget: float, seed: int) -> Hyperparameters:
        optuna, meter = _optuna(), Meter(task, seed)
        samplers = optuna.samplers
        own = (
            samplers.TPESampler(seed=seed)
            if sampler == "tpe"
            else samplers.GPSampler(seed=seed, deterministic_objective=not task.noise)
        )
        study = optuna.create_study(direction="maximize", sampler=own)
        for number in range(max(1, int(budget / task.max_epochs))):
            trial = study.ask()
            study.tell(trial, meter.train(number, _suggested(trial, task.space), task.max_epochs))
        return meter.chosen

    return search


def optuna_hyperband(task: Task, budget: float, seed: int) -> Hyperparameters:
    """Return what Optuna's multivariate TPE with its Hyperband pruner selects."""
    optuna, meter = _optuna(), Meter(task, seed)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True),
        pruner=optuna.pruners.HyperbandPruner(
            min_resource=1, max_resource=task.max_epochs, reduction_factor=ETA
        ),
    )
    # Epochs at which it may prune.
    rungs = [epochs for epochs in (1, 3, 9, 27) if epochs < 0.9 * task.max_epochs] + [
        task.max_epochs
    ]
    while meter.spent < budget:
        trial = study.ask()
        hyperparameters, done, value = _suggested(trial, task.space), 0, 0.0
        for epochs in rungs:
            value = meter.train(trial.number, hyperparameters, epochs, done)
            done = epochs
            trial.report(value, epochs)
            if epochs < task.max_epochs and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, value)
    return meter.chosen


def smac(task: Task, budget: float, seed: int) -> Hyperparameters:
    """Return what SMAC3's multi-fidelity facade selects."""
    library, runhistory = imported("smac"), imported("smac.runhistory.dataclasses")
    logging.disable(logging.CRITICAL)
    facade = library.MultiFidelityFacade
    scenario = library.Scenario(
        _configspace(task.space, seed),
        deterministic=True,
        n_trials=10**6,
        min_budget=1,
        max_budget=task.max_epochs,
        seed=seed,
        output_directory=tempfile.mkdtemp(),
    )
    own = facade(
        scenario,
        lambda config, seed=0, budget=1: 0.0,
        intensifier=facade.get_intensifier(scenario, eta=ETA),
        overwrite=True,
        logging_level=False,
    )
    meter, known = Meter(task, seed), _Known()
    while meter.spent < budget:
        info = own.ask()
        value, _ = known.train(meter, task, dict(info.config), info.budget)
        own.tell(info, runhistory.TrialValue(cost=-value, time=0.0))
    return meter.chosen


def dehb(task: Task, budget: float, seed: int) -> Hyperparameters:
    """Return what DEHB selects."""
    library = imported("dehb")
    imported("loguru").logger.remove()
    own = library.DEHB(
        cs=_configspace(task.space, seed),
        min_fidelity=1,
        max_fidelity=task.max_epochs,
        eta=ETA,
        n_workers=1,
        seed=seed,
        output_path=tempfile.mkdtemp(),
        save_freq="end",
    )
    meter, known = Meter(task, seed), _Known()
    while meter.spent < budget:
        job = own.ask()
        value, epochs = known.train(meter, task, dict(job["config"]), job["fidelity"])
        own.tell(job, {"fitness": -value, "cost": epochs})
    return meter.chosen


class _Known:
    """Configurations by their values. One that is proposed again resumes where it stopped."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._done: dict[str, float] = {}

    def train(
        self, meter: Meter, task: Task, given: dict[str, Any], epochs: float
    ) -> tuple[float, float]:
        """Train to ``epochs``, rounded. Return the metric and the rounded epochs."""
        hyperparameters = {name: _plain(given[name]) for name in task.space.parameters}
        key, whole = repr(hyperparameters), float(min(task.max_epochs, max(1, round(epochs))))
        number = self._numbers.setdefault(key, len(self._numbers))
        value = meter.train(number, hyperparameters, whole, self._done.get(key, 0.0))
        self._done[key] = max(whole, self._done.get(key, 0.0))
        return value, whole


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _optuna() -> Any:
    optuna = imported("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _suggested(trial: Any, space: Space) -> Hyperparameters:
    values: Hyperparameters = {}
    for name, parameter in space.sampled.items():
        if isinstance(parameter, Choice):
            values[name] = trial.suggest_categorical(name, list(parameter.options))
        elif parameter.integer:
            values[name] = trial.suggest_int(
                name, int(parameter.low), int(parameter.high), log=parameter.log
            )
        else:
            values[name] = trial.suggest_float(
                name, parameter.low, parameter.high, log=parameter.log
            )
    return values


def _configspace(space: Space, seed: int) -> Any:
    library = imported("ConfigSpace")
    own = library.ConfigurationSpace(seed=seed)
    for name, parameter in space.sampled.items():
        if isinstance(parameter, Choice):
            own.add(library.CategoricalHyperparameter(name, list(parameter.options)))
        elif parameter.integer:
            own.add(
                library.UniformIntegerHyperparameter(
                    name, int(parameter.low), int(parameter.high), log=parameter.log
                )
            )
        else:
            own.add(
                library.UniformFloatHyperparameter(
                    name, parameter.low, parameter.high, log=parameter.log
                )
            )
    return own


LIBRARIES: dict[str, Callable[[Task, float, int], Hyperparameters]] = {
    "tpe": optuna_full("tpe"),
    "gp": optuna_full("gp"),
    "tpe+hyperband": optuna_hyperband,
    "smac": smac,
    "dehb": dehb,
}
