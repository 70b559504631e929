"""How soon a search has a good model, beside searches by other libraries.

    python benchmarks/time_to_target.py [--tasks digits mnist_part table convnet] [--seeds 1-5]
        [--methods ours random tpe+median ...] [--mnist DIR] [--quick] [--json OUT]

The clock starts with the command. Every search is one command, started cold, on the same data,
split and space:

- this program: `master launch --stage all` on a new folder, to the end of its budget;
- random search in plain PyTorch, in one process and in one process per core;
- Optuna's TPE with the median pruner and with Hyperband, one process per core over a journal file;
- Ray Tune's ASHA, one trial per core, with actors that are reused.

A peer trains for the task's time (digits 30 s, the others 60 s). Its trials have at most 20 epochs,
one thread per process, batches cut from memory, and torch's fused SGD. Methods take turns, seed by
seed. A peer's result counts when its epoch has been validated; it need not write anything. This
program's result counts when its record is written, by `ended_at`. Needs the extra "bench".

`--json OUT` keeps all runs, also after an interruption. `--read OUT` prints their tables again and
runs nothing. `--tree DIR` measures this program in another checkout. `--budget FILE` replaces what
follows [space] in its search file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is not installed

from benchmarks.target.problems import NEEDS_FILES, PROBLEMS, Problem, prepare, quick

PEER_NAMES = ("random-1", "random", "tpe+median", "tpe+hyperband", "asha")
LIBRARIES = {"tpe+median": "optuna", "tpe+hyperband": "optuna", "asha": "ray"}
QUICK_SEEDS = (1,)


def main() -> int:
    """Run what the command line asks for and print its tables."""
    options = _read_options()
    if options.read:
        _print_tables(_read_runs(options.read), options)
        return 0
    if options.mnist:
        os.environ["MNIST_PART"] = str(options.mnist.resolve())
    problems = [_adapt(PROBLEMS[name], options) for name in options.tasks]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before", flush=True)
    runs = []
    for problem in problems:
        runs += _measure(problem, options, runs)
    _print_tables(runs, options)
    return int(any(run.problem for run in runs))


def _measure(problem: Problem, options: argparse.Namespace, before: Sequence) -> list:
    """Run every method for every seed, in turn. Each seed begins with another method."""
    from benchmarks.target.runs import run_ours, run_peer

    runs: list = []
    with tempfile.TemporaryDirectory(prefix="target-") as folder:
        data = Path(folder) / "data.npz"
        prepare(problem, data)
        for turn, seed in enumerate(options.seeds):
            shift = turn % len(options.methods)
            for method in options.methods[shift:] + options.methods[:shift]:
                if method == "ours":
                    budget = options.budget.read_text() if options.budget else None
                    run = run_ours(problem, seed, budget, options.tree, options.mnist)
                else:
                    run = run_peer(problem, method, seed, data)
                runs.append(run)
                best = max((point.val_acc for point in run.points), default=0.0)
                told = f"{problem.name}, seed {seed}, {run.method}: best {best:.4f}, "
                told += f"{run.epochs:.0f} epochs, ended after {run.end_s:.1f} s"
                print(told + (f", {run.problem}" if run.problem else ""), flush=True)
                if options.json:
                    every = [run.told() for run in [*before, *runs]]
                    options.json.write_text(json.dumps(every))
    return runs


def _adapt(problem: Problem, options: argparse.Namespace) -> Problem:
    """Return the task with the peers' time limit from the command line."""
    shorter = quick(problem) if options.quick else problem
    return replace(shorter, limit_s=options.limit) if options.limit else shorter


def _print_tables(runs: Sequence, options: argparse.Namespace) -> None:
    from benchmarks.target.tables import table

    for name, problem in PROBLEMS.items():
        if own := [run for run in runs if run.task == name]:
            print("\n" + table(_adapt(problem, options), own))


def _read_runs(path: Path) -> list:
    from benchmarks.target.runs import Run

    return [Run.of(raw) for raw in json.loads(path.read_text())]


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", choices=PROBLEMS, default=["digits"], help="default: digits")
    add("--seeds", type=_seeds, default=None, help="default 1-5, with --quick 1")
    add("--methods", nargs="+", choices=("ours", *PEER_NAMES), help="default: all that are there")
    add("--mnist", type=Path, help="folder with the two t10k files of MNIST, for mnist_part")
    add("--quick", action="store_true", help="one seed, a third of the time and of the budget")
    add(
        "--limit",
        type=float,
        metavar="S",
        help="seconds that each peer gets, instead of the task's",
    )
    add("--json", type=Path, metavar="OUT", help="keep all runs in this file")
    add("--read", type=Path, metavar="OUT", help="print the tables of such a file")
    add("--tree", type=Path, default=Path(__file__).resolve().parents[1], help="another checkout")
    add("--budget", type=Path, metavar="FILE", help="what follows [space] in the search file")
    options = parser.parse_args()
    if options.read:
        return options
    options.tree = options.tree.resolve()
    options.seeds = options.seeds or (QUICK_SEEDS if options.quick else tuple(range(1, 6)))
    if NEEDS_FILES & set(options.tasks) and not options.mnist:
        parser.error("mnist_part needs --mnist DIR, the folder with t10k-images-idx3-ubyte.gz")
    options.methods = _available(parser, options.methods)
    return options


def _available(parser: argparse.ArgumentParser, asked: list[str] | None) -> list[str]:
    """Return the methods whose libraries are installed. Refuse requested ones that are not."""
    chosen = []
    for method in asked or ("ours", *PEER_NAMES):
        library = LIBRARIES.get(method)
        if library is None or importlib.util.find_spec(library) is not None:
            chosen.append(method)
        elif asked:
            parser.error(f"{method} needs {library}; install the extra: pip install -e '.[bench]'")
        else:
            print(f"{method} is left out: {library} is not installed (pip install -e '.[bench]')")
    return chosen


def _seeds(text: str) -> tuple[int, ...]:
    first, _, last = text.partition("-")
    return tuple(range(int(first), int(last or first) + 1))


if __name__ == "__main__":
    sys.exit(main())
