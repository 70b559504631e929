"""Runs as lines of a file, and as a table of mean regret with paired intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from benchmarks.search_tables.tables import Task

N_RESAMPLED = 10_000  # resamples of the bootstrap
INTERVAL = (2.5, 97.5)  # percentiles
LEAST_TASKS = 3  # with fewer tasks, an interval over tasks is meaningless


@dataclass(frozen=True)
class Run:
    """One search: the selected configuration's noise-free metrics after the longest training."""

    suite: str
    task: str
    seed: int
    method: str
    budget: str
    value: float
    test: float

    @property
    def key(self) -> tuple[object, ...]:
        """What was run, without its result."""
        return astuple(self)[:-2]

    @property
    def line(self) -> str:
        """The run's line in the file."""
        return "\t".join([*map(str, self.key), f"{self.value:.6f}", f"{self.test:.6f}"])


def read_runs(path: Path) -> list[Run]:
    """Return the runs of a file. If there is no file, return none.

    Raises:
        SystemExit: a line is not a run.
    """
    runs = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        cells = line.split("\t")
        try:
            suite, task, seed, method, budget, value, test = cells
            runs.append(Run(suite, task, int(seed), method, budget, float(value), float(test)))
        except ValueError:
            raise SystemExit(
                f"--out {path}: line {number}, {line!r}, is no run; move the file away"
            ) from None
    return runs


def table(
    runs: Sequence[Run], tasks: Mapping[str, Task], methods: Sequence[str], budgets: Sequence[str]
) -> str:
    """Return mean regret by method and budget, as Markdown.

    In brackets is the difference to the first method over the runs that both have, with a 95 %
    bootstrap interval over tasks. If a task has no known best value, the best that any method found
    is used.
    """
    best = {name: task.best for name, task in tasks.items()}
    for name in [name for name, value in best.items() if value is None]:
        best[name] = max((run.value for run in runs if run.task == name), default=math.nan)
    regrets: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for run in runs:
        known = best[run.task]
        assert known is not None
        regrets.setdefault((run.method, run.budget), {})[run.task, run.seed] = (
            known - run.value
        ) * tasks[run.task].scale
    lines = [["method", *budgets], ["---"] * (len(budgets) + 1)]
    for method in methods:
        cells = [
            _cell(
                regrets.get((method, budget), {}),
                regrets.get((methods[0], budget), {}),
                method == methods[0],
            )
            for budget in budgets
        ]
        lines.append([method, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(
    own: Mapping[tuple[str, int], float],
    reference: Mapping[tuple[str, int], float],
    is_reference: bool,
) -> str:
    if not own:
        return "-"
    told = f"{_mean(own.values()):.2f}"
    if is_reference:
        return f"{told} ({len(own)} runs)"
    differences: dict[str, list[float]] = {}
    for task, seed in own.keys() & reference.keys():
        differences.setdefault(task, []).append(own[task, seed] - reference[task, seed])
    if not differences:
        return f"{told} ({len(own)} runs)"
    by_task = np.array([_mean(differences[task]) for task in sorted(differences)])
    told = f"{told} [{by_task.mean():+.2f}"
    if len(by_task) >= LEAST_TASKS:
        generator = np.random.default_rng(0)
        means = by_task[generator.integers(len(by_task), size=(N_RESAMPLED, len(by_task)))].mean(
            axis=1
        )
        low, high = np.percentile(means, INTERVAL)
        told = f"{told}: {low:+.2f}..{high:+.2f}"
    n_paired = sum(map(len, differences.values()))
    return f"{told}]" if n_paired == len(own) == len(reference) else f"{told}; {n_paired} runs]"


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
