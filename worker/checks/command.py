"""Run the checks for the command `worker check` and print the report."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TextIO

import torch

from common.console import open_console
from common.folder.chosen import Chosen
from worker.checks.report import Report
from worker.checks.run import Run
from worker.tasks.copies import remove_copies

FAILED = 1


def check(chosen: Chosen, data_dir: Path, as_json: bool, table: bool, out: TextIO) -> int:
    """Run the checks and print the report.

    Args:
        chosen: the search.
        data_dir: the folder with the files of the built-in tasks.
        as_json: whether to print strict JSON on stdout. The table then goes to stderr.
        table: whether to print the table.
        out: the stream for the output that belongs on stdout.

    Returns:
        The exit code: 1 if a check failed, else 0.
    """
    # The tensors are tiny, and threads would wait for one another (measured: 6 times slower on busy
    # cores).
    torch.set_num_threads(1)
    # Text that the task prints must not end up in the JSON.
    try:
        with contextlib.redirect_stdout(sys.stderr):
            report = Run(chosen, data_dir).report()
    finally:
        remove_copies()
    if table:
        _draw(report, sys.stderr if as_json else out)
    if as_json:
        print(report.json(), file=out)
    out.flush()
    return 0 if report.passed else FAILED


def _draw(report: Report, file: TextIO) -> None:
    console = open_console(file)
    console.print(report.table())
    for line in [*report.notes, report.summary()]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
