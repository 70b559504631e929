"""One peer's whole search, as a program.

    python -m benchmarks.target.peer METHOD --data FILE --problem JSON --seed N --out FOLDER
        --ends-at UNIX_TIME

Each of its processes writes one line per epoch into the folder. A library that only one peer needs
is imported by that peer alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.target import plain

EPOCHS = 20  # maximum of one trial
REDUCTION = 3  # of Hyperband and ASHA: one in this many is promoted; the papers use 3 or 4
FIRST_RUNG = 1  # epochs


def main() -> None:
    """Run the method that the command line names."""
    parser = argparse.ArgumentParser(description="One peer's search; see the module.")
    parser.add_argument("method", choices=sorted(METHODS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--problem", required=True, help="space and fixed values, as JSON")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ends-at", type=float, required=True, help="Unix time")
    options = parser.parse_args()
    METHODS[options.method](options)
    os._exit(0)  # the measurement is over, so the libraries' threads need not be waited for


def process_count() -> int:
    """Return the number of processes: one for each core."""
    return len(os.sched_getaffinity(0))


class Stop(Exception):
    """The time is over."""


class Session:
    """The data, the log and the clock of one process."""

    def __init__(self, options: argparse.Namespace, parts: plain.Parts) -> None:
        told = json.loads(options.problem)
        self.space, self._fixed = told["space"], told["fixed"]
        self._ends_at = options.ends_at
        self._parts = parts
        self._log = plain.Log(options.out / f"process-{os.getpid()}.jsonl")
        self.trials = 0  # trials of this process so far

    def train(self, values: dict, judge: Callable[[int, float], bool]) -> float:
        """Train a configuration. Return its best validation accuracy.

        Args:
            values: The sampled hyperparameters.
            judge: Called with epoch and validation accuracy. True ends the trial.

        Raises:
            Stop: the time is over.
        """

        def note(epoch: int, val: tuple[float, float], test: Callable[[], float]) -> bool:
            if time.time() >= self._ends_at:
                raise Stop
            self._log.note(self.trials, epoch, val, test)
            return judge(epoch, val[0])

        self.trials += 1
        return plain.train({**self._fixed, **values}, self._parts, EPOCHS, note)


def fork(job: Callable[[int], None], n: int) -> None:
    """Run ``job`` in ``n`` processes until the time is over.

    They share what was imported and loaded before.
    """

    def run(number: int) -> None:
        try:
            job(number)
        except Stop:
            os._exit(0)  # at once: the measurement is over

    context = get_context("fork")
    processes = [context.Process(target=run, args=(number,)) for number in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def search_randomly(options: argparse.Namespace, n: int) -> None:
    """Run random search: full trainings, one after the other in each of ``n`` processes."""
    parts = plain.load(options.data)

    def search(number: int) -> None:
        session, seed = Session(options, parts), options.seed * 1000 + number
        torch.manual_seed(seed)
        rng = random.Random(seed)
        while True:
            session.train(plain.draw(session.space, rng), lambda epoch, value: False)

    fork(search, n)


def search_with_optuna(options: argparse.Namespace, pruner: str) -> None:
    """Run Optuna's TPE with a pruner: one process per core over a journal file."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = str(options.out / "journal.log")
    pruners = {
        "median": lambda: optuna.pruners.MedianPruner(),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(
            min_resource=FIRST_RUNG, max_resource=EPOCHS, reduction_factor=REDUCTION
        ),
    }
    parts = plain.load(options.data)
    optuna.create_study(
        study_name="s", storage=JournalStorage(JournalFileBackend(path)), direction="maximize"
    )

    def search(number: int) -> None:
        session, seed = Session(options, parts), options.seed * 1000 + number
        torch.manual_seed(seed)
        study = optuna.load_study(
            study_name="s",
            storage=JournalStorage(JournalFileBackend(path)),
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=pruners[pruner](),
        )

        def objective(trial: optuna.Trial) -> float:
            def judge(epoch: int, value: float) -> bool:
                trial.report(value, epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned
                return False

            return session.train(suggest(trial, session.space), judge)

        study.optimize(objective)

    fork(search, process_count())


def suggest(trial, space: dict) -> dict:
    """Return Optuna's configuration of a trial."""
    values = {}
    for name, (kind, *ends) in space.items():
        if kind == "choice":
            values[name] = trial.suggest_categorical(name, ends[0])
        else:
            values[name] = trial.suggest_float(name, *ends, log=kind == "log_uniform")
    return values


def search_with_ray(options: argparse.Namespace) -> None:
    """Run Ray Tune's ASHA over random configurations: one trial per core, actors are reused."""
    os.environ |= {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_TRAIN_V2_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1"}
    try:
        import ray
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.basic_variant import BasicVariantGenerator
    except ImportError as error:
        sys.exit(
            f'ray cannot be imported ({error}): pip install "ray[tune]", or leave out --methods '
            "asha"
        )
    ray.init(
        num_cpus=process_count(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    told = json.loads(options.problem)
    scales = {"uniform": tune.uniform, "log_uniform": tune.loguniform, "choice": tune.choice}
    space = {name: scales[kind](*ends) for name, (kind, *ends) in told["space"].items()}
    scheduler = ASHAScheduler(
        time_attr="training_iteration",
        max_t=EPOCHS,
        grace_period=FIRST_RUNG,
        reduction_factor=REDUCTION,
    )
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_ray_trial, options=options), {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="val_acc",
            mode="max",
            scheduler=scheduler,
            search_alg=BasicVariantGenerator(
                random_state=options.seed, max_concurrent=process_count()
            ),
            num_samples=-1,
            time_budget_s=max(options.ends_at - time.time(), 1.0),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(options.out / "ray"), verbose=0),
    )
    tuner.fit()
    ray.shutdown()


_SESSIONS: dict[int, Session] = {}  # by process id: a reused actor keeps its data


def _ray_trial(config: dict, options: argparse.Namespace) -> None:
    from ray import tune

    session = _SESSIONS.get(os.getpid())
    if session is None:
        session = _SESSIONS[os.getpid()] = Session(options, plain.load(options.data))
        torch.manual_seed(options.seed * 1_000_000 + os.getpid())

    def judge(epoch: int, value: float) -> bool:
        tune.report({"val_acc": value})
        return False

    with suppress(Stop):
        session.train(config, judge)


METHODS: dict[str, Callable[[argparse.Namespace], None]] = {
    "random-1": lambda options: search_randomly(options, 1),
    "random": lambda options: search_randomly(options, process_count()),
    "tpe+median": lambda options: search_with_optuna(options, "median"),
    "tpe+hyperband": lambda options: search_with_optuna(options, "hyperband"),
    "asha": search_with_ray,
}

if __name__ == "__main__":
    main()
