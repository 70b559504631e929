"""Suites of tasks, by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.search_tables.tables import Curves, LCBench, Synthetic, Task, TaskSet

N_SYNTHETIC = 8  # number of tasks in each synthetic suite
OPTIMUM = 100.0  # value of every synthetic task's optimum
LC_VARIANTS: dict[str, tuple[float, dict[str, Any]]] = {  # noise, and other arguments
    "lc": (0.0, {}),
    "lc-noise1": (1.0, {}),
    "lc-noise3": (3.0, {}),
    "lc-lrlow": (0.0, {"learning_rate": (1e-4, 1e-3)}),
    "lc-nothing5": (0.0, {"n_idle": 5}),
}
SYNTHETIC: dict[str, dict[str, Any]] = {
    "syn-2d": {"d": 2, "relevant": 2},
    "syn-12d": {"d": 12, "relevant": 6},
    "syn-sharp": {"d": 6, "relevant": 4, "sharp": 30},
    "syn-beyond": {"d": 6, "relevant": 4, "at": 1.3},
    "syn-slow": {"d": 6, "relevant": 4, "slow": 1.0},
    "syn-choices": {"d": 7, "relevant": 3, "choices": 3},
}
GROUPS = {
    "synthetic": tuple(SYNTHETIC),
    "robust": ("lc-noise1", "lc-noise3", "lc-lrlow", "lc-nothing5", *SYNTHETIC),
}
NAMES = (*LC_VARIANTS, "ts", *SYNTHETIC, *GROUPS)


def suite_names(given: Sequence[str]) -> list[str]:
    """Return the suites, with groups expanded.

    Raises:
        SystemExit: a name is unknown.
    """
    for name in given:
        if name not in NAMES:
            raise SystemExit(f"--suite {name}: no such suite; use {', '.join(NAMES)}")
    return list(dict.fromkeys(own for name in given for own in GROUPS.get(name, (name,))))


def tasks_of(
    suite: str, data: Path | None, wanted: Sequence[str], max_epochs: int, noise: float | None
) -> list[Task]:
    """Return the tasks of a suite.

    Args:
        suite: one of ``suite_names``.
        data: the folder of the tables. A synthetic suite needs none.
        wanted: names of tasks. If empty, those whose best value is known.
        max_epochs: the longest training of a trial, R.
        noise: standard deviation of the noise on each measurement. None for the suite's own.

    Raises:
        SystemExit: a table is missing, or a task name is bad.
    """
    if suite in SYNTHETIC:
        if not all(name.isdigit() for name in wanted):
            raise SystemExit(
                f"--tasks {','.join(wanted)}: a task of {suite} is a number, which it is made "
                "from; write 0,1,2"
            )
        numbers = [int(name) for name in wanted] or range(N_SYNTHETIC)
        return [
            Task(
                f"{suite}/{n}",
                Synthetic(seed=n, **SYNTHETIC[suite]),
                max_epochs,
                noise or 0.0,
                OPTIMUM,
            )
            for n in numbers
        ]
    if data is None:
        raise SystemExit(
            f"--suite {suite}: needs --data DIR, the folder with lcbench/, taskset/ and best.json"
        )
    if suite == "ts":
        make: Callable[[str], Curves] = lambda name: TaskSet(data / "taskset", name)  # noqa: E731
        return _tabled("TaskSet", data, wanted, max_epochs, noise or 0.0, make, 100.0)
    own_noise, more = LC_VARIANTS[suite]
    return _tabled(
        "LCBench",
        data,
        wanted,
        max_epochs,
        own_noise if noise is None else noise,
        lambda name: LCBench(data / "lcbench", name, **more),
        1.0,
    )


def _tabled(
    family: str,
    data: Path,
    wanted: Sequence[str],
    max_epochs: int,
    noise: float,
    make: Callable[[str], Curves],
    scale: float,
) -> list[Task]:
    known: dict[str, float] = {}
    if (data / "best.json").exists():
        for key, value in json.loads((data / "best.json").read_text()).items():
            own, task, epochs = key.split("/")
            if own == family and int(epochs) == max_epochs:
                known[task] = float(value)
    names = list(wanted) or list(known)
    if not names:
        raise SystemExit(
            f"{data}: best.json names no task of {family} at {max_epochs} epochs; name some with "
            "--tasks"
        )
    return [Task(name, make(name), max_epochs, noise, known.get(name), scale) for name in names]
