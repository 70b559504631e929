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
    onlooker = looking(tmp_path)
    onlooker.look()
    assert onlooker.unrecorded == [] and [note.event for note in onlooker.notes] == ["finish"]
    with ledger.open("a") as file:
        file.write(
            finished(2, ok=False) + finished(3, ok=True) + finished(4, ok=True)[:20]
        )  # the rest of a line is still to come
    onlooker.look()
    assert onlooker.unrecorded == ["coarse-0000 try=3"]


def test_a_longer_budget_that_no_file_has_decided(tmp_path: Path) -> None:
    decided = tmp_path / "coarse-0000-epochs=3"
    decided.touch()
    (tmp_path / "ledger").write_text(claimed(1, 0, 1.0) + claimed(2, 1, 3.0))
    onlooker = looking(tmp_path)
    onlooker.look()
    assert onlooker.undecided == [] and [note.event for note in onlooker.notes] == [
        "claim",
        "claim",
    ]
    with (tmp_path / "ledger").open("a") as file:
        file.write(claimed(3, 2, 9.0))
    onlooker.look()
    decided.with_name("coarse-0000-epochs=9").touch()  # too late: it was handed out before
    onlooker.look()
    assert onlooker.undecided == ["coarse-0000 try=3"]


def looking(path: Path) -> Onlooker:
    def decided(trial: str, epochs: float) -> bool:
        return (path / f"{trial}-epochs={epochs:g}").exists()

    return Onlooker(
        Looked(
            path / "ledger",
            lambda trial, attempt: path / f"{trial}-try={attempt}",
            decided,
            list,
            list,
            lambda: None,
        ),
        LEASE_S,
    )


def finished(attempt: int, ok: bool) -> str:
    return (
        json.dumps(
            {
                "event": "finish",
                "pid": 1,
                "trial": "coarse-0000",
                "attempt": attempt,
                "token": "a",
                "rung": 0,
                "ok": ok,
            }
        )
        + "\n"
    )


def claimed(attempt: int, rung: int, epochs: float) -> str:
    said = {
        "event": "claim",
        "pid": 1,
        "trial": "coarse-0000",
        "attempt": attempt,
        "token": "a",
        "rung": rung,
        "epochs": epochs,
    }
    return json.dumps(said) + "\n"


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
    [
        (True, True, False, True),
        (True, True, True, False),
        (False, True, False, False),
        (False, False, False, True),
    ],
    ids=["stopped", "stopped while Redis is", "at work", "cut off"],
)
def test_who_is_silent(
    tmp_path: Path,
    stopped: int,
    monkeypatch: pytest.MonkeyPatch,
    standing: bool,
    linked: bool,
    outage: bool,
    silent: bool,
) -> None:
    clock = itertools.count(0.0, 0.25)
    monkeypatch.setattr("tests.chaos.onlooker.time", SimpleNamespace(monotonic=lambda: next(clock)))
    pid = stopped if standing else os.getpid()
    (tmp_path / "ledger").touch()
    onlooker = Onlooker(
        Looked(
            tmp_path / "ledger",
            lambda *_: tmp_path,
            lambda *_: True,
            lambda: [(pid, linked)],
            list,
            lambda: stopped if outage else None,
        ),
        LEASE_S,
    )
    for _ in range(8):  # a lease
        onlooker.look()
    assert any(note.event == "still" and note.pid == pid for note in onlooker.notes) == silent
    assert not any(note.event == "late" for note in onlooker.notes)
    next(clock), next(clock)
    onlooker.look()
    assert onlooker.notes[-1].event in ("late", "still") and any(
        note.event == "late" for note in onlooker.notes
    )
