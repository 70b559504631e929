"""Arrays of trials against plain PyTorch, one trial at a time.

The task is digits with 5 epochs (the convolutional net: 2), including validation and monitoring.
Both sides see the same batches and the same configurations. Learning rates do not explode, so that
both do all the work. "plain" is ``nn.Module`` with ``torch.optim`` (``fused=True``). "eager" and
"compiled" are the worker's engine with that backend and automatic width, after its first trials:
the width is measured and the step is compiled. The time that compiling took is printed separately,
cold (an empty cache) and warm, with the number of trials after which it has paid for itself. On n
cores, n processes with one thread each share the configurations, for all three. Rounds are
interleaved, and medians are printed.

    python benchmarks/arrays.py [--quick] [--only perceptron|convnet] [--hidden 64]
        [--batch-size 64]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from common.search.trial import Claim, Fence, Trial, TrialState, trial_id, trial_seed
from common.search.values import Scalar
from worker.tasks.base import Data, Part
from worker.tasks.digits import Digits
from worker.training.engine.engine import Engine, TrainingOptions
from worker.training.math.preprocess import fit
from worker.training.stacked.batches import Batches

SEARCH_SEED = 231
HIDDEN = 64  # units of a layer
# Required speed of compiled arrays of such layers relative to plain, by number of cores.
REQUIRED = {1: 6.0, 2: 5.0}
REQUIRED_CONVNET = 1.0  # relative to plain, at every width
WIDTHS: dict[str, int | None] = {"width 1": 1, "width 8": 8, "width 64": 64, "auto": None}
CPU = torch.device("cpu")


class Loaded(Digits):
    """Digits, read and normalised once, so that neither side is timed for it."""

    preprocess = "none"

    def __init__(self) -> None:
        data = super().data()
        fitted = fit("normalise", data.train.inputs)
        train, val = (
            Part(fitted.apply(part.inputs), part.targets) for part in (data.train, data.val)
        )
        self._data = Data(train, val, None, data.n_classes)

    def data(self) -> Data:
        """Return the same tensors each time."""
        return self._data


class FreeWatch:
    """A watch that does nothing."""

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        """See ``Watch``."""

    def lost(self) -> tuple[str, ...]:
        """See ``Watch``."""
        return ()

    def stopping(self) -> bool:
        """See ``Watch``."""
        return False


def jobs_for(n: int, epochs: int, optimizer: str, batch_size: int) -> list[Claim]:
    """Return jobs with randomly drawn configurations."""
    draw = random.Random(SEARCH_SEED)
    # log10 of the highest learning rate, at which no trial explodes: less for smaller batches
    top = (-2.0 if optimizer == "adam" else -1.5) + math.log10(min(1.0, batch_size / 64))
    return [_job(i, epochs, _configuration(draw, top, optimizer, batch_size)) for i in range(n)]


def _configuration(
    draw: random.Random, top: float, optimizer: str, batch_size: int
) -> dict[str, Scalar]:
    fixed: dict[str, Scalar] = {
        "hidden": HIDDEN,
        "depth": 2,
        "optimizer": optimizer,
        "batch_size": batch_size,
        "momentum": 0.9,
    }
    rates = {
        "learning_rate": 10 ** draw.uniform(-4, top),
        "weight_decay": 10 ** draw.uniform(-7, -2),
        "dropout": draw.uniform(0.05, 0.5),
    }
    return {**fixed, **rates, "nesterov": optimizer == "sgd"}


def _job(index: int, epochs: int, hp: dict[str, Scalar]) -> Claim:
    trial = Trial(
        trial_id("bench", index),
        "bench",
        index,
        trial_seed(SEARCH_SEED, "bench", index),
        epochs,
        hp,
        "{}",
    )
    return Claim(trial, Fence(trial.id, 1, "token"))


class Arrays:
    """The worker's engine, which keeps what it has measured and compiled between rounds."""

    def __init__(self, task: Loaded, backend: str, width: int | None = None) -> None:
        self._engine = Engine(
            task,
            TrainingOptions(
                CPU, SEARCH_SEED, "digits", lambda line: None, backend=backend, width=width
            ),
        )

    def __call__(self, jobs: Sequence[Claim]) -> list[float]:
        """Train the jobs and return their validation accuracies."""
        ended = [
            outcome
            for boundary in self._engine.train(jobs, lambda n: [], FreeWatch())
            for outcome in boundary.ended
        ]
        if {outcome.state for outcome in ended} != {TrialState.COMPLETED}:
            raise SystemExit(
                "a trial of the benchmark did not complete: both sides must do the same work"
            )
        return [outcome.val_acc or 0.0 for outcome in ended]

    @property
    def told(self) -> str:
        """How its steps are computed."""
        return self._engine.backend

    @property
    def prepared_s(self) -> float:
        """The seconds that compiling has taken."""
        return self._engine.builder.backends.prepared_s


def train_plain(jobs: Sequence[Claim], task: Loaded) -> list[float]:
    """Train one trial after another."""
    return [_one_plain(job, task) for job in jobs]


def _one_plain(job: Claim, task: Loaded) -> float:
    trial, data = job.trial, task.data()
    torch.manual_seed(trial.seed)
    model = task.model(trial.hyperparameters)
    optimizer = _plain_optimizer(model, trial.hyperparameters)
    cross_entropy = nn.CrossEntropyLoss()
    batches = Batches(len(data.train), int(trial.hyperparameters["batch_size"]), SEARCH_SEED, CPU)
    best = 0.0
    for epoch in range(int(trial.epochs)):
        model.train()
        for rows in batches.rows(epoch * batches.per_epoch, batches.per_epoch):
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(model(data.train.inputs[rows]), data.train.targets[rows]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            logits = model(data.val.inputs)
            cross_entropy(logits, data.val.targets).item()
            best = max(best, (logits.argmax(-1) == data.val.targets).double().mean().item())
    return best


def _plain_optimizer(model: nn.Module, hp: Mapping[str, Any]) -> torch.optim.Optimizer:
    groups = [
        {
            "params": [p for p in model.parameters() if p.ndim > 1],
            "weight_decay": hp["weight_decay"],
        },
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if hp["optimizer"] == "adam":
        return torch.optim.Adam(groups, lr=hp["learning_rate"], fused=True)
    return torch.optim.SGD(
        groups,
        lr=hp["learning_rate"],
        momentum=hp["momentum"],
        nesterov=bool(hp["nesterov"]),
        fused=True,
    )


def serve(pipe: Connection, core: int) -> None:
    """Serve on one core.

    Receives (way, width, jobs) until None. Answers with the validation accuracies, how the engine
    computes its steps, and the seconds that compiling has taken.
    """
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    task = Loaded()
    engines: dict[tuple[str, int | None], Arrays] = {}
    for way, width, jobs in iter(pipe.recv, None):
        if way == "plain":
            pipe.send((train_plain(jobs, task), "", 0.0))
            continue
        engine = engines.setdefault((way, width), Arrays(task, way, width))
        pipe.send((engine(jobs), engine.told, engine.prepared_s))


class Run(NamedTuple):
    """The result of training some jobs."""

    seconds: float  # wall time for all jobs
    accuracy: float  # mean of the validation accuracies
    told: str  # how the first process computed its steps
    prepared_s: float  # seconds that compiling has taken so far, in the slowest process


class Processes:
    """Worker processes, one per core."""

    def __init__(self, cores: Sequence[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = []
        self._processes = []
        for core in cores:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, core), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, way: str, jobs: Sequence[Claim], width: int | None = None) -> Run:
        """Train all jobs, divided among the processes."""
        n = len(self._pipes)
        started = time.perf_counter()
        for i, pipe in enumerate(self._pipes):
            pipe.send((way, width, jobs[i::n]))
        answers = [pipe.recv() for pipe in self._pipes]
        seconds = time.perf_counter() - started
        accuracies = [accuracy for found, _, _ in answers for accuracy in found]
        return Run(
            seconds,
            sum(accuracies) / len(accuracies),
            answers[0][1],
            max(prepared_s for _, _, prepared_s in answers),
        )

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join()


def compare(n_cores: int, jobs: Sequence[Claim], rounds: int) -> float:
    """Print a row for each way. Return the speed of compiled arrays relative to plain."""
    processes = Processes(sorted(os.sched_getaffinity(0))[:n_cores])
    processes.run("plain", jobs[: 16 * n_cores])
    for way in ("eager", "compiled"):
        last = processes.run(way, jobs)  # measures the width and compiles the step
    passed: dict[str, list[Run]] = {way: [] for way in ("plain", "eager", "compiled")}
    for _ in range(rounds):
        for way, runs in passed.items():
            runs.append(processes.run(way, jobs))
    processes.close()
    for way, runs in passed.items():
        row(f"{n_cores}", way, runs, len(jobs))
    ratios = {
        way: median(
            p.seconds / a.seconds for p, a in zip(passed["plain"], passed[way], strict=True)
        )
        for way in passed
    }
    saved_s = (
        (median(r.seconds for r in passed["eager"]) - median(r.seconds for r in passed["compiled"]))
        / len(jobs)
        * n_cores
    )
    even = (
        f"after {last.prepared_s / saved_s:,.0f} such trials a process" if saved_s > 0 else "never"
    )
    print(
        f"{n_cores:>5} eager arrays are {ratios['eager']:.2f}, compiled ones "
        f"{ratios['compiled']:.2f} times as fast as plain"
    )
    print(
        f"{'':>5} {last.told}; preparing took {last.prepared_s:.1f} s, repaid {even}\n", flush=True
    )
    return ratios["compiled"]


def row(first: str, way: str, runs: Sequence[Run], n_jobs: int) -> None:
    """Print one line of the table."""
    times = [run.seconds for run in runs]
    spread = f"{min(times):.2f} to {max(times):.2f}"
    print(
        f"{first:>5} {way:>9} {median(times):>9.2f} {spread:>16} {n_jobs / median(times):>9.1f} "
        f"{runs[-1].accuracy:>9.4f}",
        flush=True,
    )


def head(title: str, first: str) -> None:
    """Print the head of a table."""
    print(f"{title}, torch {torch.__version__}")
    print(f"{first:>5} {'way':>9} {'seconds':>9} {'from, to':>16} {'trials/s':>9} {'val_acc':>9}")


def perceptrons(
    n: int, rounds: int, batch_size: int, hidden: int, optimizers: Sequence[str]
) -> list[str]:
    """Compare perceptrons. Return one message for each requirement that is missed."""
    short = []
    for optimizer in optimizers:
        jobs = [replaced(job, {"hidden": hidden}) for job in jobs_for(n, 5, optimizer, batch_size)]
        head(
            f"digits perceptron 64-{hidden}-{hidden}-10, {n} configurations, 5 epochs, batches of "
            f"{batch_size}, {optimizer}",
            "cores",
        )
        for n_cores in (1, 2):
            if n_cores > len(os.sched_getaffinity(0)):
                continue
            ratio = compare(n_cores, jobs, rounds)
            if hidden == HIDDEN and ratio < REQUIRED[n_cores]:
                short.append(
                    f"{optimizer} on {n_cores} cores: {ratio:.2f} times plain, "
                    f"{REQUIRED[n_cores]:g} are required"
                )
    return short


def convnets(n: int, rounds: int) -> list[str]:
    """Compare convolutional nets. Return one message for each requirement that is missed.

    No width may be slower than the plain loop.
    """
    jobs = [
        replaced(job, {"model": "convnet", "filters": 16, "blocks": 2})
        for job in jobs_for(n, 2, "sgd", 64)
    ]
    head(f"digits convolutional net, {n} configurations, 2 epochs, batches of 64, sgd", "")
    processes = Processes(sorted(os.sched_getaffinity(0))[:1])
    passed: dict[str, list[Run]] = {name: [] for name in ("plain", *WIDTHS)}
    for number in range(rounds + 1):  # the first round measures widths
        for name, runs in passed.items():
            run = processes.run("plain" if name == "plain" else "auto", jobs, WIDTHS.get(name))
            runs += [run] if number else []
    processes.close()
    short = []
    for name, runs in passed.items():
        row("", name, runs, n)
        ratio = median(p.seconds / a.seconds for p, a in zip(passed["plain"], runs, strict=True))
        if name != "plain":
            print(f"{'':>15} {ratio:.2f} times as fast as plain; {runs[-1].told}", flush=True)
        if ratio < REQUIRED_CONVNET:
            short.append(
                f"convolutional net, {name}: {ratio:.2f} times plain, {REQUIRED_CONVNET:g} is "
                "required"
            )
    return short


def replaced(job: Claim, values: Mapping[str, Scalar]) -> Claim:
    """Return the same trial with other hyperparameters."""
    trial = job.trial
    return replace(job, trial=replace(trial, hyperparameters={**trial.hyperparameters, **values}))


def main() -> None:
    """Print all tables. Fail if a requirement is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer configurations and rounds, SGD only"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--hidden", type=int, default=HIDDEN, help=f"units of the perceptron (default {HIDDEN})"
    )
    parser.add_argument("--only", choices=("perceptron", "convnet"))
    options = parser.parse_args()
    n, rounds = (128, 3) if options.quick else (256, 5)
    short: list[str] = []
    with tempfile.TemporaryDirectory() as cache:
        # The first compilation is a cold one, whatever has run here before.
        os.environ["XDG_CACHE_HOME"] = cache
        if options.only != "convnet":
            optimizers = ["sgd"] if options.quick else ["sgd", "adam"]
            short += perceptrons(n, rounds, options.batch_size, options.hidden, optimizers)
        if options.only != "perceptron":
            short += convnets(n // 8, rounds)
    if short:
        raise SystemExit("\n".join(short))


if __name__ == "__main__":
    main()
