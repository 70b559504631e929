"""Arrays of trials against plain PyTorch, one trial at a time: digits, 5 epochs, 256 configurations, validation each epoch included.

Both see the same batches and the same configurations (learning rates that do not explode, so that both do all the work). Plain is
``nn.Module`` with ``torch.optim`` (``fused=True``); arrays are the worker's engine with automatic width, measured anew each time.
On n cores, n processes with one thread each share the configurations, for both. Rounds are interleaved; medians are printed.

    python benchmarks/arrays.py [--quick]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
from torch import nn

from common.space import Scalar
from common.trial import Claim, Fence, Trial, TrialState, trial_id, trial_seed
from worker.tasks.base import Data, Part
from worker.tasks.digits import Digits
from worker.training.batches import Batches
from worker.training.engine import Engine, Job
from worker.training.preprocess import fit

SEARCH_SEED = 231
REQUIRED = 3.0  # times plain on one core, without a compiler
CPU = torch.device("cpu")


class Loaded(Digits):
    """Digits, read and normalised once: neither side is timed for it."""

    preprocess = "none"

    def __init__(self) -> None:
        data = super().data()
        fitted = fit("normalise", data.train.inputs)
        train, val = (Part(fitted.apply(part.inputs), part.targets) for part in (data.train, data.val))
        self._data = Data(train, val, None, data.n_classes)

    def data(self) -> Data:
        """The same tensors each time."""
        return self._data


class FreeWatch:
    """Nobody listens."""

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        """See ``Watch``."""

    def lost(self) -> tuple[str, ...]:
        """See ``Watch``."""
        return ()

    def stopping(self) -> bool:
        """See ``Watch``."""
        return False


def jobs_for(n: int, epochs: int, optimizer: str, batch_size: int) -> list[Job]:
    draw = random.Random(SEARCH_SEED)
    top = -2.0 if optimizer == "adam" else -1.5  # log10 of the highest rate: none explodes
    return [_job(i, epochs, _configuration(draw, top, optimizer, batch_size)) for i in range(n)]


def _configuration(draw: random.Random, top: float, optimizer: str, batch_size: int) -> dict[str, Scalar]:
    fixed: dict[str, Scalar] = {"hidden": 64, "depth": 2, "optimizer": optimizer, "batch_size": batch_size, "momentum": 0.9}
    rates = {"learning_rate": 10 ** draw.uniform(-4, top), "weight_decay": 10 ** draw.uniform(-7, -2), "dropout": draw.uniform(0.05, 0.5)}
    return {**fixed, **rates, "nesterov": optimizer == "sgd"}


def _job(index: int, epochs: int, hp: dict[str, Scalar]) -> Job:
    trial = Trial(trial_id("bench", index), "bench", index, trial_seed(SEARCH_SEED, "bench", index), epochs, hp, "{}")
    return Job(Claim(trial, Fence(trial.id, 1, "token")))


def train_arrays(jobs: Sequence[Job], task: Loaded) -> list[float]:
    engine = Engine(task, CPU, search_seed=SEARCH_SEED, task_name="digits", log=print)
    ended = [outcome for boundary in engine.train(jobs, lambda n: [], FreeWatch()) for outcome in boundary.ended]
    if {outcome.state for outcome in ended} != {TrialState.COMPLETED}:
        raise SystemExit("a trial of the benchmark did not complete: both sides must do the same work")
    return [outcome.val_acc or 0.0 for outcome in ended]


def train_plain(jobs: Sequence[Job], task: Loaded) -> list[float]:
    return [_one_plain(job, task) for job in jobs]


def _one_plain(job: Job, task: Loaded) -> float:
    trial, data = job.claim.trial, task.data()
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
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": hp["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if hp["optimizer"] == "adam":
        return torch.optim.Adam(groups, lr=hp["learning_rate"], fused=True)
    return torch.optim.SGD(groups, lr=hp["learning_rate"], momentum=hp["momentum"], nesterov=bool(hp["nesterov"]), fused=True)


WAYS: dict[str, Callable[[Sequence[Job], Loaded], list[float]]] = {"plain": train_plain, "arrays": train_arrays}


def serve(pipe: Connection, core: int) -> None:
    """A process on one core: receives (way, jobs), answers with the validation accuracies."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    task = Loaded()
    for way, jobs in iter(pipe.recv, None):
        pipe.send(WAYS[way](jobs, task))


class Processes:
    """One process a core."""

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

    def seconds(self, way: str, jobs: Sequence[Job]) -> tuple[float, float]:
        """Wall time for all jobs, and their mean validation accuracy."""
        n = len(self._pipes)
        started = time.perf_counter()
        for i, pipe in enumerate(self._pipes):
            pipe.send((way, jobs[i::n]))
        accuracies = [accuracy for pipe in self._pipes for accuracy in pipe.recv()]
        return time.perf_counter() - started, sum(accuracies) / len(accuracies)

    def close(self) -> None:
        """Ends the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join()


def compare(n_cores: int, jobs: Sequence[Job], rounds: int) -> float:
    """Prints a row for each way; returns how many times as fast arrays are."""
    processes = Processes(sorted(os.sched_getaffinity(0))[:n_cores])
    for way in WAYS:
        processes.seconds(way, jobs[: 32 * n_cores])  # warm-up
    passed: dict[str, list[float]] = {way: [] for way in WAYS}
    accuracy: dict[str, float] = {}
    for _ in range(rounds):
        for way in WAYS:
            seconds, accuracy[way] = processes.seconds(way, jobs)
            passed[way].append(seconds)
    processes.close()
    medians = {way: median(times) for way, times in passed.items()}
    for way, seconds in medians.items():
        spread = f"{min(passed[way]):.2f} to {max(passed[way]):.2f}"
        print(f"{n_cores:>5} {way:>8} {seconds:>9.2f} {spread:>16} {len(jobs) / seconds:>9.1f} {accuracy[way]:>9.4f}", flush=True)
    ratio = median(p / a for p, a in zip(passed["plain"], passed["arrays"], strict=True))
    print(f"{n_cores:>5} arrays are {ratio:.2f} times as fast as plain (median of {rounds} rounds)\n", flush=True)
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="64 configurations, 3 rounds, SGD only")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    n, rounds = (64, 3) if options.quick else (256, 5)
    ratios = []
    for optimizer in ["sgd"] if options.quick else ["sgd", "adam"]:
        jobs = jobs_for(n, 5, optimizer, options.batch_size)
        print(f"digits, {n} configurations, 5 epochs, batches of {options.batch_size}, {optimizer}, torch {torch.__version__}")
        print(f"{'cores':>5} {'way':>8} {'seconds':>9} {'from, to':>16} {'trials/s':>9} {'val_acc':>9}")
        ratios += [compare(n_cores, jobs, rounds) for n_cores in (1, 2) if n_cores <= len(os.sched_getaffinity(0))]
    if min(ratios[0::2]) < REQUIRED:
        raise SystemExit(f"arrays are only {min(ratios[0::2]):.2f} times as fast as plain on one core; {REQUIRED:g} is required")


if __name__ == "__main__":
    main()
