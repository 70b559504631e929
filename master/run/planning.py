"""`master plan`: a search's stages, rungs, trials, epochs and expected time, before it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from common.console import draw_columns
from common.folder.chosen import Chosen
from common.search.search_file import Search
from common.search.stage import Stage
from master.launchers.endings import how_ended
from master.launchers.gpus import auto_count
from master.report.reading import strict_json
from master.run.minutes import epochs_within, estimate_s
from master.run.progress import duration

WIDTHS = (1, 8, 32)  # array widths at which an epoch is timed; between them it is interpolated
PACE_LIMIT_S = 300.0  # seconds; the data may have to be downloaded


def describe_stage(stage: Stage) -> str:
    """Return a description such as ``39 new trials of 1 epoch, 13 to 2, 4 to 7``.

    A stage of one rung is described as ``200 trials of 1 epoch``. If configurations are repeated,
    ``, each configuration under 3 seeds`` follows.
    """
    unit = "epoch" if stage.epochs == 1 else "epochs"
    again = f", each configuration under {stage.repeats} seeds" if stage.repeats > 1 else ""
    if len(stage.plan.rungs) == 1:
        return f"{stage.trials} trials of {stage.epochs:g} {unit}{again}"
    on = ", ".join(
        f"{n} to {rung:g}"
        for rung, n in list(zip(stage.plan.rungs, stage.plan.keep, strict=True))[1:]
    )
    return f"{stage.trials} new trials of {stage.epochs:g} {unit}, {on}{again}"


def count_epochs(search: Search) -> float:
    """Return the number of epochs that all stages train together."""
    return sum(stage.plan.cost(search.strategy.resumes) for stage in search.stages)


def plan(
    chosen: Chosen, arguments: Sequence[str], as_json: bool, say: Callable[[str], None]
) -> str:
    """Return the plan as a table, or as JSON.

    Args:
        chosen: the search.
        arguments: options that name the search to `worker pace`.
        as_json: whether to return JSON, for a script.
        say: called with the reason if the time is unknown.

    Raises:
        ConfigError: the budget is in minutes, and the duration of an epoch is unknown.
    """
    paces = measure_paces(arguments, say)
    search = resolve(chosen.search, paces)
    n_workers = auto_count(search.resources)
    seconds = (
        estimate_s([stage.plan for stage in search.stages], paces, n_workers, search)
        if paces and n_workers
        else None
    )
    if as_json:
        stages = [_row(stage, search) for stage in search.stages]
        return strict_json(
            {
                "search": search.name,
                "stages": stages,
                "epochs": count_epochs(search),
                "expected_s": seconds,
                "workers": n_workers,
            }
        )
    rows = []
    for stage in search.stages:
        for number, (rung, n) in enumerate(zip(stage.plan.rungs, stage.plan.keep, strict=True)):
            before = stage.plan.rungs[number - 1] if number and search.strategy.resumes else 0
            kind = "best go on" if number else "new" if stage.searches else stage.kind
            trials = str(n) if stage.repeats == 1 else f"{n // stage.repeats} x {stage.repeats}"
            epochs = f"{before:g} to {rung:g}" if before else f"{rung:g}"
            name = "" if number else stage.name
            rows.append((name, kind, trials, epochs, f"{n * (rung - before):g}"))
    headers = ("stage", "kind", "trials", "epochs each", "paid")
    columns = dict(zip(headers, zip(*rows, strict=True), strict=True))
    table = draw_columns(columns, spare=("kind", "paid"), right=headers[2:])
    new = sum(stage.trials for stage in search.stages)
    total = f"{new} trials, {count_epochs(search):g} epochs in all"
    time = (
        f"about {duration(seconds)} with {n_workers} local workers"
        if seconds is not None
        else "expected time unknown"
    )
    return "\n".join([f"search {search.name!r}", table, f"{total}; {time}"])


def _row(stage: Stage, search: Search) -> dict[str, object]:
    return {
        "stage": stage.name,
        "kind": stage.kind,
        "rungs": list(stage.plan.rungs),
        "trials": list(stage.plan.keep),
        "repeats": stage.repeats,
        "epochs": stage.plan.cost(search.strategy.resumes),
    }


def measure_paces(arguments: Sequence[str], say: Callable[[str], None]) -> dict[int, float]:
    """Return the seconds per epoch of a whole array, by array width.

    Return an empty mapping if they cannot be measured before a trial runs.
    """
    command = [sys.executable, "-P", "-m", "worker", "pace", *arguments]
    command += [word for width in WIDTHS for word in ("--array-width", str(width))]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PACE_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        say(f"how long an epoch takes is unknown: no answer within {PACE_LIMIT_S:g} s")
        return {}
    try:
        return {int(width): float(seconds) for width, seconds in json.loads(done.stdout).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        last = done.stderr.strip().rpartition("\n")[2].removeprefix("error: ")
        how = "" if done.returncode == 1 and last else f"its process {how_ended(done.returncode)}"
        say(f"how long an epoch takes is unknown: {': '.join(filter(None, (how, last)))}")
        return {}


def resolve(search: Search, paces: Mapping[int, float]) -> Search:
    """Return the search with its stages.

    A budget in minutes is converted to the epochs that fit into it.

    Raises:
        ConfigError: the duration of an epoch is unknown.
    """
    budget = search.budget
    if budget is None or budget.minutes is None or search.plan:
        return search
    epochs = epochs_within(search, paces)
    stages = tuple(
        Stage.model_validate(table)
        for table in budget.stages(epochs, search.strategy.resumes, search.shape)
    )
    return search.model_copy(
        update={"stages": (*stages, *(own for own in search.stages if not own.rungs))}
    )
