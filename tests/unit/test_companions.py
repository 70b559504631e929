"""What the companions for other libraries share, without these libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coarsefine.companions.reporter import Reporter
from worker.own import OwnTrial
from worker.own.messages import Report
from worker.own.saved import thaw


def trial_of(reports: list[Report], epoch: float = 0, resume: Any = None) -> OwnTrial:
    given = {"id": "coarse-0000", "hp": {}, "max_epochs": 9.0, "seed": 1, "device": "cpu"}
    return OwnTrial(
        **given,
        epochs=3.0,
        epoch=epoch,
        resume=resume,
        hand_over=reports.append,
        alive=lambda limit_s: None,
    )


def reporter(trial: OwnTrial | None, **names: str) -> Reporter:
    return Reporter(trial, "library.bin", names, lambda name: None if name == "time" else name)


def test_logs_are_reported_by_names_of_metrics() -> None:
    reports: list[Report] = []
    own = reporter(trial_of(reports), val_acc="valid/Accuracy")
    logs = {"valid/Accuracy": np.float32(0.5), "val_acc": 0.1, "Val/F1": 1, "time": 3, "epoch": 1}
    own.report(1, logs | {"name": "x", "matrix": np.zeros((2, 2))}, lambda path: path.touch())
    assert reports[0].values == {"val_acc": 0.5, "val_f1": 1.0}


def test_a_loop_s_state_has_the_file_s_bytes_and_the_file_is_gone() -> None:
    reports: list[Report] = []
    own = reporter(trial_of(reports))
    own.report(2, {"val_acc": 0.5}, lambda path: path.write_bytes(b"weights"))
    state = thaw(reports[0].state.unpacked())
    assert state == {"library.bin": b"weights"} and list(own.folder.iterdir()) == []
    assert own.resume is None and own.epoch == 0
    then = reporter(trial_of([], epoch=2.0, resume=state))
    assert then.epoch == 2 and then.resume is not None
    assert then.resume.name == "library.bin" and then.resume.read_bytes() == b"weights"
    assert not then.is_over(2) and then.is_over(3)


def test_a_program_is_told_by_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = tmp_path / "control" / "reports.jsonl"
    reports.parent.mkdir()
    saved = tmp_path / "library.bin"
    for name, value in (("REPORTS", reports), ("RESUME", saved), ("EPOCH", 2), ("EPOCHS", 3)):
        monkeypatch.setenv(f"COARSEFINE_{name}", str(value))
    own = reporter(None)
    assert (own.epoch, own.resume, own.is_over(2), own.is_over(3)) == (2, saved, False, True)
    for _ in range(100):
        own.beat()
    own.report(3, {"val_acc": 0.5}, lambda path: path.write_bytes(b"weights"))
    beat, report = map(json.loads, reports.read_text().splitlines())
    assert beat == {"limit_s": None} and (report["epoch"], report["val_acc"]) == (3.0, 0.5)
    assert Path(report["checkpoint"]).read_bytes() == b"weights"
    assert Path(report["checkpoint"]).name == "library.bin"
    monkeypatch.setenv("COARSEFINE_RESUME", "")
    assert own.resume is None


def test_outside_of_a_search_reports_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COARSEFINE_REPORTS", raising=False)
    own = reporter(None)
    own.beat()
    own.report(1, {"val_acc": 0.5}, lambda path: path.touch())
    assert json.loads(capsys.readouterr().out)["val_acc"] == 0.5
    assert own.resume is None and own.epoch == 0 and not own.is_over(1000)


def test_what_they_share_needs_only_the_standard_library() -> None:
    code = (
        "import sys, coarsefine.companions.reporter; "
        "print(*{'numpy', 'torch', 'common', 'worker', 'master'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr
