"""Work of the host for a trial: processor time besides the steps and the evaluation, by parts.

The task is digits with 5 epochs: a perceptron 64-64-64-10, batches of 64, and one structure, as in
a search of learning rate, weight decay and dropout. Claims are as wide as an array, steps are
eager, and there is one thread. The trials pass the worker's own engine and recorder, which writes
records into a folder. Only the queue is left out, which ``benchmarks/dispatch.py`` measures.

A step or an evaluation of an array costs the host the same, however many slots it has on a GPU. The
rest is paid for each trial. Copying the weights of a better epoch counts as evaluation, and files
of kept models are told apart. Processor time is counted, so that other programs disturb less.

    python benchmarks/host.py [--widths 64,256,1024] [--rounds 3] [--against PATH] [--profile WIDTH]

``--against PATH`` measures another checkout in a process beside this one, round by round in turns.
``--profile WIDTH`` prints the functions that take longest instead.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import importlib
import itertools
import json
import os
import pstats
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from common.folder.records import SearchFolder
from common.queue.answers import Verdict
from common.search.search_file import parse_search
from common.search.trial import Claim, Fence, Trial, TrialState, trial_id, trial_seed
from worker.run.recorder import Recorder
from worker.run.rungs import Waiting
from worker.tasks.digits import Digits
from worker.training.engine.engine import Engine, TrainingOptions

SEARCH_SEED, STAGE, EPOCHS = 231, "coarse", 5
LEAST_TRIALS = 256  # of a round, so that narrow arrays are measured several times
MOST_MS = 0.3  # of the host for a trial
ROOT = Path(__file__).resolve().parent.parent
# The parts that are not counted. The last is paid for each model that is kept.
OTHERS = STEPS, EVALUATION, KEPT = "steps", "evaluation", "files of kept models"
REST = "the rest of the session"
PARTS = (  # where each part begins; what is called within another part is not counted there
    ("worker.training.engine.engine", "Engine", "width", "models"),
    ("worker.training.engine.session", "Session", "_accept", "models"),
    ("worker.training.engine.array", "TrialArray", "__init__", "rows of the stack"),
    ("worker.training.engine.array", "TrialArray", "strangers", "comparison"),
    ("worker.training.engine.array", "TrialArray", "_train", "plans and settling"),
    ("worker.training.engine.array", "TrialArray", "advance", "points of curves"),
    ("worker.training.engine.array", "TrialArray", "views", "views"),
    ("worker.training.engine.array", "TrialArray", "leave", "leaving"),
    ("worker.run.recorder", "Recorder", "record", "records"),
    ("worker.training.stacked.stack", "Stack", "step", STEPS),
    ("worker.training.engine.array", "TrialArray", "_pick", STEPS),
    ("worker.training.stacked.monitor", "Monitor", "after_step", STEPS),
    ("worker.training.stacked.stack", "Stack", "keep_best", EVALUATION),
    ("worker.training.outcome.validation", "Validation", "__call__", EVALUATION),
    ("worker.run", "recorder", "keep", KEPT),
    ("worker.run", "recorder", "with_weights", KEPT),
)
SEARCH = """
name = "host"
task = "digits"
seed = 231
keep = 1
[space]
learning_rate = { log_uniform = [1e-4, 1e-2] }
[stages.coarse]
trials = 100
epochs = 5
"""


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


class Clock:
    """Processor time by part. A part that is called within another one interrupts it."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._open: list[str] = [REST]
        self._since = time.process_time()

    def note(self) -> None:
        """Add the time since the last change to the part that is open."""
        now = time.process_time()
        self.spent[self._open[-1]] += now - self._since  # type: ignore[assignment]
        self._since = now

    def time(self, own: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Return the function so that its time goes to ``part``."""

        def timed(*values: Any, **named: Any) -> Any:
            self.note()
            self._open.append(part)
            try:
                return own(*values, **named)
            finally:
                self.note()
                self._open.pop()

        return timed


class Queue:
    """A queue that accepts every result."""

    search_id = "host"

    def finish(self, results: list[Any]) -> list[Verdict]:
        """Return that each result was the first."""
        return [Verdict.OK for _ in results]

    def fail(self, results: list[Any]) -> list[Any]:
        """Refuse trials that raised, since the benchmark has none."""
        raise SystemExit(f"{len(results)} trials of the benchmark raised")


class Held:
    """Leases that nobody takes away."""

    info = SimpleNamespace(worker="host-1", device="cpu", device_model="CPU")
    trials_done = 0

    def holds(self, fence: Fence) -> bool:
        """Return that the lease is held."""
        return True

    def drop(self, trial_ids: object) -> None:
        """See ``Heartbeat``."""

    def note_written(self, trial_ids: object) -> None:
        """See ``Heartbeat``."""

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        """See ``Heartbeat``."""


class Worker:
    """One worker's engine and recorder."""

    def __init__(self, root: Path, width: int) -> None:
        folder = SearchFolder(root, f"host{width}")
        folder.stage(STAGE).make()
        self._session: Any = SimpleNamespace(
            queue=Queue(),
            folder=folder,
            search=parse_search(SEARCH),
            waiting=Waiting(),
            digest=None,
            code=None,
            in_place=lambda: True,
        )
        options = TrainingOptions(
            torch.device("cpu"), SEARCH_SEED, "digits", print, backend="eager", width=width
        )
        self._engine = Engine(Digits(), options)
        self._width, self._indices = width, itertools.count()

    def claim(self) -> list[Claim]:
        """Return the trials of the next claim."""
        return [claim(next(self._indices)) for _ in range(self._width)]

    def work(self, claims: list[Claim]) -> None:
        """Train and record the trials of one claim."""
        held: Any = Held()
        recorder = Recorder(self._session, held, print)
        self._engine.width(claims[0].trial.hyperparameters)
        for boundary in self._engine.train(claims, lambda n: [], FreeWatch()):
            if any(one.state is not TrialState.COMPLETED for one in boundary.ended):
                raise SystemExit("a trial of the benchmark did not complete")
            recorder.record(boundary.ended)


def claim(index: int) -> Claim:
    """Return a trial with randomly drawn numbers."""
    draw = random.Random(index)
    trial = Trial(
        trial_id(STAGE, index),
        STAGE,
        index,
        trial_seed(SEARCH_SEED, STAGE, index),
        EPOCHS,
        {
            "hidden": 64,
            "depth": 2,
            "optimizer": "sgd",
            "batch_size": 64,
            "momentum": 0.9,
            "learning_rate": 10 ** draw.uniform(-4, -2),
            "weight_decay": 10 ** draw.uniform(-7, -2),
            "dropout": draw.uniform(0.05, 0.5),
        },
        "{}",
    )
    return Claim(trial, Fence(trial.id, 1, "token"))


def serve() -> None:
    """Answer each width on the standard input with the milliseconds of each part for a trial.

    The first answer for a width comes after a round that is not counted: it builds the structure.
    """
    torch.set_num_threads(1)
    clock = Clock()
    for module, kind, name, part in PARTS:
        owner = getattr(importlib.import_module(module), kind)
        setattr(owner, name, clock.time(getattr(owner, name), part))
    workers: dict[int, Worker] = {}
    with tempfile.TemporaryDirectory(prefix="host-") as root:
        for line in sys.stdin:
            width = int(line)
            if width not in workers:
                workers[width] = Worker(Path(root), width)
                workers[width].work(workers[width].claim())
            claims = [workers[width].claim() for _ in range(max(1, LEAST_TRIALS // width))]
            gc.collect()
            gc.freeze()  # as the server that workers are forked from
            clock.note()
            clock.spent.clear()
            for own in claims:
                workers[width].work(own)
            clock.note()
            n = width * len(claims)
            print(json.dumps({name: 1e3 * spent / n for name, spent in clock.spent.items()}))
            sys.stdout.flush()


class Tree:
    """A checkout, in a process of its own."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-P", str(Path(__file__).resolve()), "--serve"]
        self._process = subprocess.Popen(
            command,
            cwd=path,
            env={**os.environ, "PYTHONPATH": str(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, width: int) -> dict[str, float]:
        """Return the milliseconds of each part for a trial.

        Raises:
            SystemExit: its process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(width, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self._process.args!r} has ended; see above")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(trees: Mapping[str, Tree], width: int, rounds: int) -> float:
    """Print the parts for one width. Return the milliseconds of the host in this tree."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for number in range(rounds):
        for name in sorted(trees, reverse=bool(number % 2)):
            found[name].append(trees[name].measure(width))
    parts = [*dict.fromkeys(part for *_, part in PARTS), REST]
    of_host = [part for part in parts if part not in OTHERS]
    rows = {
        name: {part: median(one.get(part, 0.0) for one in ones) for part in parts}
        | {"the host": median(sum(one.get(part, 0.0) for part in of_host) for one in ones)}
        for name, ones in found.items()
    }
    print(f"\n{f'width {width}, ms a trial':28}" + "".join(f"{name:>14}" for name in trees))
    for part in [*of_host, "the host", *OTHERS]:
        print(f"{part:28}" + "".join(f"{rows[name][part]:14.3f}" for name in trees), flush=True)
    return rows["this tree"]["the host"]


def profile(width: int) -> None:
    """Print the functions that take most of the time of one claim."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="host-") as root:
        worker = Worker(Path(root), width)
        worker.work(worker.claim())
        profiler = cProfile.Profile()
        profiler.runcall(worker.work, worker.claim())
    statistics = pstats.Stats(profiler)
    statistics.sort_stats("tottime").print_stats(45)
    statistics.sort_stats("cumtime").print_stats(70)


def main() -> None:
    """Print the table of each width. Fail if the host takes too long for a trial."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--widths", default="64,256,1024", help="of arrays, with commas between")
    parser.add_argument("--rounds", type=int, default=3, help="rounds whose median counts")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns")
    parser.add_argument("--profile", type=int, metavar="WIDTH", help="profile one claim instead")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    if options.profile is not None:
        profile(options.profile)
        return
    if options.against is not None and not (options.against / "worker" / "training").is_dir():
        raise SystemExit(f"--against {options.against}: is no checkout of this program; name one")
    trees = {"this tree": Tree(ROOT)}
    if options.against is not None:
        trees["the other"] = Tree(options.against.resolve())
    print(
        f"digits perceptron 64-64-64-10, {EPOCHS} epochs, batches of 64, one thread, medians of "
        f"{options.rounds} rounds, torch {torch.__version__}"
    )
    short = []
    for width in map(int, options.widths.split(",")):
        took_ms = compare(trees, width, options.rounds)
        if took_ms > MOST_MS:
            short.append(
                f"width {width}: the host works {took_ms:.2f} ms for a trial, at most "
                f"{MOST_MS:g} are allowed"
            )
    for tree in trees.values():
        tree.close()
    if short:
        raise SystemExit("\n".join(short))


if __name__ == "__main__":
    main()
