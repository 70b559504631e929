"""A task that calls exit during a check fails that check.

The exit does not end the command, least of all with a success.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from common.folder.chosen import Chosen
from common.folder.records import SearchFolder
from common.search.search_file import default_text, parse_search
from worker.checks.report import Status
from worker.checks.run import Run

TASK = """
import sys
from worker.tasks.digits import Digits

class Task(Digits):
    def loss(self, outputs, targets, hp):
        {first}
        return ((outputs - 1) ** 2).mean()

    def metric(outputs, targets):
        {second}

    metrics = {{"val_f1": metric}}
"""


@pytest.mark.parametrize(
    ("first", "second"), [("sys.exit(0)", "return 1.0"), ("pass", "sys.exit(0)")]
)
def test_an_exit_is_a_finding(tmp_path: Path, first: str, second: str) -> None:
    (tmp_path / "mine.py").write_text(TASK.format(first=first, second=second))
    search = parse_search(default_text().replace('task = "digits"', 'task = "mine.py:Task"'))
    report = Run(
        Chosen(search, "", tmp_path, SearchFolder(tmp_path / "root", search.name)), tmp_path
    ).report()
    assert not report.passed
    assert any(f.status is Status.FAILED and "called exit(0)" in f.found for f in report.findings)
