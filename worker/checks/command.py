"""`worker check`: which search, where its task lies, and what is printed where."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch
from rich.console import Console

from common.select import Chosen
from worker.checks.report import Report
from worker.checks.run import Run

FAILED = 1
PLAIN_WIDTH = 120  # columns of a table that is not drawn on a terminal


def check(chosen: Chosen, data_dir: Path, as_json: bool, table: bool) -> int:
    """Runs the checks and prints the report; returns the exit code: 1 where one failed.

    Args:
        chosen: the search.
        data_dir: where built-in tasks have their files.
        as_json: strict JSON on stdout; the table, if any, then goes to stderr.
        table: whether to draw it.
    """
    torch.set_flush_denormal(True)  # before any thread starts: denormal weights slow a step tenfold
    torch.set_num_threads(1)  # tiny tensors: threads would wait for one another (measured: 6 times slower on busy cores)
    spec, folder = task_of(chosen)
    with contextlib.redirect_stdout(sys.stderr):  # what the task prints is no JSON
        report = Run(chosen.search, spec, folder, data_dir).report()
    if table:
        _draw(report, sys.stderr if as_json else sys.stdout)
    if as_json:
        print(report.json())
    return 0 if report.passed else FAILED


def task_of(chosen: Chosen) -> tuple[str, Path]:
    """The task as ``load_task`` takes it: the user's own file, or the copy in the search's folder where that alone is there."""
    search, own = chosen.search, chosen.search.task_file
    if own is not None and not (chosen.base / own).exists() and (chosen.folder.path / Path(own).name).exists():
        return search.task_in_folder, chosen.folder.path
    return search.task, chosen.base


def _draw(report: Report, file: object) -> None:
    console = Console(file=file, width=None if getattr(file, "isatty", lambda: False)() else PLAIN_WIDTH)  # type: ignore[arg-type]
    console.print(report.table())
    for line in [*report.notes, report.summary()]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
