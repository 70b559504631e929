"""The tables of the benchmark, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import mean, median, stdev

from scipy import stats

from benchmarks.target.problems import Problem
from benchmarks.target.runs import OURS, PEERS, Run

MARKS = (1 / 6, 1 / 3, 1 / 2, 1)  # shares of the peers' time at which the best models are compared
COVERED = 0.95

ByMethod = dict[str, list[Run]]


def table(problem: Problem, runs: Sequence[Run]) -> str:
    """Return the whole section about one task.

    Args:
        problem: The task.
        runs: The runs of this task, of all methods and seeds.
    """
    methods = {
        name: found
        for name in (OURS, *PEERS)
        if (found := sorted((r for r in runs if r.method == name), key=lambda run: run.seed))
    }
    aims = targets_of(problem, methods)
    marks = [problem.limit_s * share for share in MARKS]
    heads = ["", "first result", *(f"{aim:g}" for aim in aims), "end", "epochs"]
    heads += [f"best at {mark:.3g} s" for mark in marks] + [
        f"test at {mark:.3g} s" for mark in marks
    ]
    lines = [f"### {problem.name}", "", _row(heads), _row(["---"] * len(heads))]
    for name, found in methods.items():
        cells = [PEERS.get(name, name), _seconds([run.first_s for run in found])]
        cells += [_seconds([run.reached_s(aim) for run in found]) for aim in aims]
        cells += [_seconds([run.end_s for run in found]), f"{median(r.epochs for r in found):.0f}"]
        for value in (lambda point: point.val_acc, lambda point: point.test_acc):
            cells += [_shares(found, mark, value) for mark in marks]
        lines.append(_row(cells))
    seeds = max((len(found) for found in methods.values()), default=0)
    lines += [
        "",
        f"Medians over {seeds} seeds, smallest to largest in brackets; seconds since the command.",
    ]
    lines += [*_comparison(methods, aims), *_tests(methods, problem.limit_s)]
    lines += [f"{run.method}, seed {run.seed}: {run.problem}" for run in runs if run.problem]
    return "\n".join(lines) + "\n"


def targets_of(problem: Problem, methods: ByMethod) -> tuple[float, ...]:
    """Return the task's targets, or the largest of the peers' medians at the limit."""
    if problem.targets:
        return problem.targets
    reached = [
        median(_best(run, problem.limit_s) for run in found)
        for name, found in methods.items()
        if name != OURS
    ]
    return (max(reached),) if reached else ()


def _best(run: Run, seconds: float) -> float:
    point = run.best_at(seconds)
    return 0.0 if point is None else point.val_acc


def _comparison(methods: ByMethod, aims: Sequence[float]) -> Iterator[str]:
    """Yield one line per target: the time of this program beside that of the fastest peer."""
    if OURS not in methods:
        return
    for aim in aims:
        times = {
            name: median(_or_never(run.reached_s(aim)) for run in found)
            for name, found in methods.items()
        }
        ours = times.pop(OURS)
        if not times:
            return
        fastest = min(times, key=lambda name: times[name])
        known = math.isfinite(ours) and math.isfinite(times[fastest])
        ratio = f"ratio {ours / times[fastest]:.2f}" if known else "no ratio"
        told = f"- {aim:g}: {OURS} {_second(ours)}, the fastest peer ({PEERS[fastest]}) "
        yield told + f"{_second(times[fastest])}: {ratio}."


def _tests(methods: ByMethod, limit_s: float) -> Iterator[str]:
    """Yield the difference in test accuracy to each peer at equal times, paired by seed."""
    for mark in [limit_s * share for share in MARKS]:
        ours = _test_at(methods.get(OURS, []), mark)
        for name in PEERS:
            theirs = _test_at(methods.get(name, []), mark)
            gains = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
            if len(gains) < 2:
                continue
            reach = float(stats.t.ppf((1 + COVERED) / 2, len(gains) - 1))
            half = reach * stdev(gains) / len(gains) ** 0.5
            told = f"- Test accuracy at {mark:.3g} s beside {PEERS[name]}: {mean(gains):+.4f}"
            yield f"{told} (95 % {mean(gains) - half:+.4f} to {mean(gains) + half:+.4f})."


def _test_at(runs: Sequence[Run], mark: float) -> dict[int, float]:
    points = {run.seed: run.best_at(mark) for run in runs}
    return {s: p.test_acc for s, p in points.items() if p is not None and p.test_acc is not None}


def _seconds(values: Sequence[float | None]) -> str:
    """Return the median and the range of some times.

    If some are missing, return the median and the number of those that are known.
    """
    reached = [value for value in values if value is not None]
    middle = median(_or_never(value) for value in values)
    if len(reached) == len(values):
        return f"{middle:.1f} ({min(reached):.1f}-{max(reached):.1f})"
    return f"{_second(middle)} ({len(reached)} of {len(values)})"


def _shares(runs: Sequence[Run], mark: float, value: Callable) -> str:
    points = [run.best_at(mark) for run in runs]
    known = [found for point in points if point and (found := value(point)) is not None]
    if not known:
        return "-"
    count = "" if len(known) == len(runs) else f", {len(known)} of {len(runs)}"
    return f"{median(known):.4f} ({min(known):.4f}-{max(known):.4f}{count})"


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _second(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"{seconds:.1f} s"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
