"""The report that a launch has drawn beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.folder.records import SearchFolder
from master.launchers.background import draw_reports_in_background
from tests.integration.commands import wait_for
from tests.unit.master.test_report import made


def test_the_report_is_drawn_by_a_process_that_nobody_waits_for(tmp_path: Path) -> None:
    chosen = made(tmp_path)
    log = draw_reports_in_background(chosen.folder, ["coarse"])
    assert log == chosen.folder.path / "logs" / "report.log"
    wait_for(lambda: "wrote" in log.read_text(), "the report is told")
    assert "<h2>Ranking</h2>" in (chosen.folder.stage("coarse").path / "report.html").read_text()


def test_why_there_is_none_is_in_the_logs(tmp_path: Path) -> None:
    chosen = made(tmp_path)
    log = draw_reports_in_background(chosen.folder, ["fine"])
    assert log is not None
    wait_for(lambda: "error: " in log.read_text(), "the reason is told")
    assert "Traceback" not in log.read_text()


def test_what_cannot_be_started_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SearchFolder(tmp_path, "digits")
    monkeypatch.setattr("master.launchers.background.sys.executable", os.devnull)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert draw_reports_in_background(folder, ["coarse"]) is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "logs").write_text("in the way")
    assert draw_reports_in_background(SearchFolder(tmp_path, "other"), ["coarse"]) is None
