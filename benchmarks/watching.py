"""The cost of watching a search: what curves cost its training, and what a page costs its visitor.

**Curves.** Epochs of an array of 64 on digits, with and without monitoring, in turns.
Perceptron 64-64-64-10, batches of 64: 16 steps per epoch, then validation. Two engines with the
same trials take turns, epoch by epoch, in one process with one thread. Processor time is counted,
so that other processes on the machine disturb less. Below the totals is the time of each part.

**Pages.** Visits of `master serve` in Chromium, beside optuna-dashboard with the same trials: the
bytes of a first and of a third visit, and the seconds until the best trial and a figure are shown.
The two take turns, each three visits with a new profile; figures are medians.

    python benchmarks/watching.py [--quick] [--only curves|pages] [--trials 50 1000 10000]
        [--alone]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common.search.trial import Claim, Fence, Trial, trial_id, trial_seed
from common.search.values import Scalar
from worker.tasks.digits import Digits
from worker.training.engine.engine import Boundary, Engine, TrainingOptions
from worker.training.stacked.monitor import Monitor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # `benchmarks` is not installed

SEARCH_SEED = 231
CPU = torch.device("cpu")
WIDTH = 64
MOST = 0.05  # of an epoch's time
FIRST = 3  # epochs that are left out: in the first the array is built and compared
PIECES = (
    (Monitor, "after_step"),
    (Monitor, "note_losses"),
    (Monitor, "note_activation"),
    (Monitor, "points"),
)


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


def jobs(epochs: int, optimizer: str) -> list[Claim]:
    hp: dict[str, Scalar] = {
        "hidden": 64,
        "depth": 2,
        "batch_size": 64,
        "momentum": 0.0,
        "optimizer": optimizer,
    }
    return [
        job(i, epochs, {**hp, "learning_rate": 10 ** (-3 + 2 * i / WIDTH)}) for i in range(WIDTH)
    ]


def job(index: int, epochs: int, hp: dict[str, Scalar]) -> Claim:
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


def run(work: list[Claim], watching: bool) -> Iterator[Boundary]:
    engine = Engine(
        Digits(), TrainingOptions(CPU, SEARCH_SEED, "digits", print, width=WIDTH, watching=watching)
    )
    return engine.train(work, lambda n: [], FreeWatch())


def in_turns(work: list[Claim], epochs: int) -> tuple[list[float], list[float]]:
    """Return the processor seconds of each epoch, without and with monitoring."""
    runs = [run(work, watching) for watching in (False, True)]
    passed: tuple[list[float], list[float]] = ([], [])
    for epoch in range(epochs):
        for which in (0, 1) if epoch % 2 else (1, 0):
            started = time.process_time()
            next(runs[which])
            passed[which].append(time.process_time() - started)
    return passed[0][FIRST:], passed[1][FIRST:]


def pieces(work: list[Claim], epochs: int) -> dict[str, float]:
    """Return the seconds per epoch in each part of the monitoring."""
    spent: Counter[str] = Counter()
    kept = [(owner, name, getattr(owner, name)) for owner, name in PIECES]
    for owner, name, own in kept:
        setattr(owner, name, timed(own, f"{owner.__name__}.{name}", spent))
    try:
        for number, _ in enumerate(run(work, True)):
            if number < FIRST:
                spent.clear()
    finally:
        for owner, name, own in kept:
            setattr(owner, name, own)
    return {name: seconds / (epochs - FIRST) for name, seconds in spent.items()}


def timed(own: Callable[..., Any], name: str, spent: Counter[str]) -> Callable[..., Any]:
    def measured(*values: Any, **named: Any) -> Any:
        started = time.process_time()
        try:
            return own(*values, **named)
        finally:
            spent[name] += time.process_time() - started  # type: ignore[assignment]

    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="15 epochs, not 100; 1 profile, not 3")
    parser.add_argument("--only", choices=["curves", "pages"])
    parser.add_argument("--trials", type=int, nargs="+", default=[50, 1000, 10_000])
    parser.add_argument("--alone", action="store_true", help="without optuna-dashboard")
    options = parser.parse_args()
    if options.only != "curves":
        compare_pages(options.trials, 1 if options.quick else 3, options.alone)
    if options.only != "pages":
        compare_curves(15 if options.quick else 100)


def compare_pages(numbers: list[int], n_profiles: int, alone: bool) -> None:
    from benchmarks.watched.servers import Served, make_search, serve_optuna, serve_ours
    from benchmarks.watched.visits import Visit, middle, visit_three_times

    print("| trials | page | first visit | third | best trial shown, figure | second | third |")
    print("|---|---|---|---|---|---|---|")
    for n_trials in numbers:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            best = make_search(root, n_trials)
            with contextlib.ExitStack() as running:
                dashboards: list[Served] = [running.enter_context(serve_ours(root, best))]
                if not alone:
                    dashboards.append(running.enter_context(serve_optuna(root)))
                seen: dict[str, list[tuple[Visit, ...]]] = {one.name: [] for one in dashboards}
                for _ in range(n_profiles):
                    for served in dashboards:
                        seen[served.name].append(visit_three_times(served))
        for name, visits in seen.items():
            each = [middle([visit[n] for visit in visits]) for n in range(3)]
            seconds = " | ".join(f"{one.content_s:.2f} s, {one.figure_s:.2f} s" for one in each)
            print(
                f"| {n_trials:,} | {name} | {each[0].n_bytes / 1e6:.2f} MB | "
                f"{each[2].n_bytes / 1e6:.3f} MB | {seconds} |",
                flush=True,
            )
    print(f"load of this machine at the end: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


def compare_curves(epochs: int) -> None:
    torch.set_num_threads(1)
    shares = []
    print(
        f"digits, array of {WIDTH}, perceptron 64-64-64-10, batches of 64, {epochs - FIRST} "
        f"epochs, one thread, torch {torch.__version__}"
    )
    for optimizer in ("sgd", "adam"):
        work = jobs(epochs, optimizer)
        without, watching = in_turns(work, epochs)
        cost = median(b - a for a, b in zip(without, watching, strict=True))
        shares.append(cost / median(without))
        print(
            f"{optimizer}: an epoch takes {median(without) * 1e3:.1f} ms, watching "
            f"{cost * 1e3:.2f} ms more: {shares[-1]:.1%}"
        )
        for name, seconds in pieces(work, epochs).items():
            print(f"    {name:<22} {seconds * 1e3:6.2f} ms an epoch")
    if shares[0] > MOST:
        raise SystemExit(
            f"watching costs {shares[0]:.1%} of an epoch with sgd; at most {MOST:.0%} is allowed"
        )


if __name__ == "__main__":
    main()
