"""The onlooker of the chaos harness: what the end of a search shows no more."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.chaos.onlooker import Looked, Onlooker

LEASE_S = 2.0


def test_an_end_that_has_no_record(tmp_path: Path) -> None:
    ledger, record = tmp_path / "ledger", tmp_path / "coarse-0000-try=1"
    ledger.write_text(finished(1, ok=True))
    record.touch()
    onlooker = Onlooker(Looked(ledger, lambda trial, attempt: tmp_path / f"{trial}-try={attempt}", list, list, lambda: None), LEASE_S)
    onlooker.look()
    assert onlooker.unrecorded == [] and [note.event for note in onlooker.notes] == ["finish"]
    with ledger.open("a") as file:
        file.write(finished(2, ok=False) + finished(3, ok=True) + finished(4, ok=True)[:20])  # the rest of a line is still to come
    onlooker.look()
    assert onlooker.unrecorded == ["coarse-0000 try=3"]


def finished(attempt: int, ok: bool) -> str:
    return json.dumps({"event": "finish", "pid": 1, "trial": "coarse-0000", "attempt": attempt, "token": "a", "ok": ok}) + "\n"


@pytest.fixture
def stopped() -> Iterator[int]:
    """A process that stands still."""
    with subprocess.Popen(["sleep", "60"]) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        yield process.pid
        process.kill()


@pytest.mark.parametrize(
    ("standing", "linked", "outage", "silent"),
    [(True, True, False, True), (True, True, True, False), (False, True, False, False), (False, False, False, True)],
    ids=["stopped", "stopped while Redis is", "at work", "cut off"],
)
def test_who_is_silent(
    tmp_path: Path, stopped: int, monkeypatch: pytest.MonkeyPatch, standing: bool, linked: bool, outage: bool, silent: bool
) -> None:
    clock = itertools.count(0.0, 0.25)
    monkeypatch.setattr("tests.chaos.onlooker.time", SimpleNamespace(monotonic=lambda: next(clock)))
    pid = stopped if standing else os.getpid()
    (tmp_path / "ledger").touch()
    onlooker = Onlooker(
        Looked(tmp_path / "ledger", lambda *_: tmp_path, lambda: [(pid, linked)], list, lambda: stopped if outage else None), LEASE_S
    )
    for _ in range(8):  # a lease
        onlooker.look()
    assert any(note.event == "still" and note.pid == pid for note in onlooker.notes) == silent
    assert not any(note.event == "late" for note in onlooker.notes)
    next(clock), next(clock)
    onlooker.look()
    assert onlooker.notes[-1].event in ("late", "still") and any(note.event == "late" for note in onlooker.notes)
