"""How good the configurations are that searches select at equal cost, on tables of training runs.

    python benchmarks/quality.py --data DIR --suite lc --budgets 300,1200 --seeds 0-2
        --methods ours,random,tpe
    python benchmarks/quality.py --data DIR --suite lc --workers 8 --time 150
        --methods ours,async,random

The tables were published by others. "ours" is this program's own code, common.search.plan and
master.strategy; its options are set as in ours:clip=0.5:plain=0. Without --data only the synthetic
suites run. Regret is the distance to the best value known: points of accuracy (lc), hundredths of a
nat (ts), units of the function (synthetic). Runs that are already in --out are not repeated.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.search_tables import clocked, libraries, rivals, trials
from benchmarks.search_tables.figures import Run, read_runs, table
from benchmarks.search_tables.suites import NAMES, suite_names, tasks_of
from benchmarks.search_tables.tables import Task
from common.search.stage import Strategy
from common.search.values import Hyperparameters

Method = Callable[[Task, float, int], Hyperparameters]
OWN = "ours"
RIVALS: dict[str, Method] = {
    "random": rivals.random_search,
    "halving": rivals.one_halving,
    "bohb": rivals.bohb,
    **libraries.LIBRARIES,
}
DEFAULT_METHODS = "ours,random,halving,bohb"
# A task's seed is 1000 x the run's seed + the task's index, so that no two tasks share one.
SEEDS_APART = 1000


def main() -> int:
    options = _options()
    suites = suite_names(options.suite.split(","))
    methods = options.methods.split(",")
    wanted = _wanted(options)
    timed = options.workers is not None
    if timed != (options.time is not None):
        raise SystemExit("--workers W and --time T belong together: the simulated clock needs both")
    budgets = [f"{options.workers}x{options.time}"] if timed else options.budgets.split(",")
    kept = read_runs(options.out) if options.out else []
    for suite in suites:
        tasks = tasks_of(suite, options.data, wanted, options.r, options.noise)
        done = {run.key for run in kept}
        start = time.perf_counter()
        kept += [
            run for run in _runs(suite, tasks, methods, budgets, options) if run.key not in done
        ]
        named = {task.name: task for task in tasks}
        shown = [run for run in kept if run.suite == _label(suite, options) and run.task in named]
        print(
            f"\n{_label(suite, options)}: mean regret after {', '.join(budgets)}, {len(tasks)} "
            f"tasks, {time.perf_counter() - start:.0f} s\n"
        )
        print(table(shown, named, methods, budgets), flush=True)
    return 0


def _runs(
    suite: str,
    tasks: Sequence[Task],
    methods: Sequence[str],
    budgets: Sequence[str],
    options: argparse.Namespace,
) -> list[Run]:
    """Run what is not in --out yet. Each run is written as soon as it ends."""
    done = {run.key for run in read_runs(options.out)} if options.out else set()
    runs, used = [], dict[str, list[float]]()
    first, last = options.seeds
    for seed in range(first, last + 1):
        for place, task in enumerate(tasks):
            for method in methods:
                for budget in budgets:
                    run = Run(_label(suite, options), task.name, seed, method, budget, 0.0, 0.0)
                    if run.key in done:
                        continue
                    chosen, share = _searched(method, task, budget, SEEDS_APART * seed + place)
                    used.setdefault(method, []).append(share)
                    runs.append(Run(*run.key, *task.outcome(chosen)))  # type: ignore[arg-type]
                    if options.out:
                        with options.out.open("a") as file:
                            file.write(runs[-1].line + "\n")
    if options.workers is not None:
        shares = {method: sum(own) / len(own) for method, own in used.items()}
        print(
            "share of the workers' time used: "
            + ", ".join(f"{method} {share:.1%}" for method, share in shares.items())
        )
    return runs


def _searched(method: str, task: Task, budget: str, seed: int) -> tuple[Hyperparameters, float]:
    """Return what a method selects, and the share of the workers' time that it used."""
    name, _, given = method.partition(":")
    strategy = _strategy(method, given)
    if "x" in budget:
        if name not in clocked.CLOCKED:
            raise SystemExit(
                f"--methods {method}: the simulated clock runs {', '.join(clocked.CLOCKED)}"
            )
        slots, duration = map(int, budget.split("x"))
        beside = strategy if "overlap" in given else strategy.model_copy(update={"overlap": True})
        return clocked.CLOCKED[name](task, slots, duration, seed, beside)
    if name == OWN:
        return trials.ours(task, float(budget), seed, strategy), 1.0
    if name not in RIVALS:
        raise SystemExit(f"--methods {method}: no such method; use {', '.join((OWN, *RIVALS))}")
    return RIVALS[name](task, float(budget), seed), 1.0


def _strategy(method: str, given: str) -> Strategy:
    """Parse the options after a method's name, such as clip=0.5:plain=0.

    Raises:
        SystemExit: an option is unknown or has a bad value.
    """
    values: dict[str, object] = {}
    for pair in filter(None, given.split(":")):
        name, _, value = pair.partition("=")
        values[name] = value == "true" if value in ("true", "false") else _number(method, value)
    try:
        return Strategy.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise SystemExit(
            f"--methods {method}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None


def _number(method: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise SystemExit(
            f"--methods {method}: {value!r} is neither a number nor true or false"
        ) from None


def _label(suite: str, options: argparse.Namespace) -> str:
    """Return the suite's name in the file, with the options that change the suite."""
    noise = "" if options.noise is None else f"-noise{options.noise:g}"
    return f"{suite}{noise}{'' if options.r == 20 else f'-{options.r}'}"


def _wanted(options: argparse.Namespace) -> list[str]:
    if options.tasks_file is None:
        return [name for name in (options.tasks or "").split(",") if name]
    if options.tasks:
        raise SystemExit(
            f"--tasks {options.tasks} and --tasks-file {options.tasks_file} say the same thing "
            "twice; keep one of them"
        )
    try:
        return Path(options.tasks_file).read_text().replace(",", " ").split()
    except OSError as error:
        raise SystemExit(f"--tasks-file {options.tasks_file}: {error.strerror}") from None


def _seeds(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not first.isdigit() or not (last or first).isdigit() or int(last or first) < int(first):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of seeds; write 0-2")
    return int(first), int(last or first)


def _budgets(text: str) -> str:
    if not all(part.isdigit() and int(part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of epochs; write 300,1200")
    return text


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with lcbench/, taskset/ and best.json")
    parser.add_argument("--suite", default="synthetic", help=f"comma-separated: {', '.join(NAMES)}")
    parser.add_argument(
        "--tasks", help="comma-separated names; without it those that best.json has a best value of"
    )
    parser.add_argument("--tasks-file", help="a file with names, one a line")
    parser.add_argument(
        "--budgets", type=_budgets, default="300", help="comma-separated epochs in all"
    )
    parser.add_argument("--seeds", type=_seeds, default=(0, 0), help="A-B, both included")
    parser.add_argument(
        "--methods",
        default=DEFAULT_METHODS,
        help=f"comma-separated: {', '.join((OWN, *RIVALS))}; with --workers "
        f"{', '.join(clocked.CLOCKED)}",
    )
    parser.add_argument(
        "--noise",
        type=float,
        help="standard deviation added to each measurement, in the metric's unit",
    )
    parser.add_argument(
        "--r",
        type=int,
        default=20,
        help="epochs of the longest training; the tables know 20 and 50",
    )
    parser.add_argument("--workers", type=int, help="simulated clock: slots")
    parser.add_argument(
        "--time", type=int, help="simulated clock: epochs of one trial after another"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="file for one line a run: suite, task, seed, method, budget, value, test",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
