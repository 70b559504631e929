"""Abnormal ends.

A hanging worker is ordered to leave, and a task exits or raises something that no file can hold.
"""

from __future__ import annotations

import time

import pytest

from tests.integration.commands import BUSY_S, DEADLINE_S, Place, wait_for
from tests.integration.test_faults import ended_once

pytestmark = pytest.mark.faults

HANGS = """
import time
from pathlib import Path
from worker.tasks.digits import Digits

class Task(Digits):
    def loss(self, outputs, targets, hp):
        Path({path!r}).touch()
        time.sleep(10_000)
"""
LEAVES = """
import sys
from worker.tasks.digits import Digits

class Task(Digits):
    def model(self, hp):
        return super().model({name: value for name, value in hp.items() if name != "kind"})

    def loss(self, outputs, targets, hp):
        if hp["kind"] == "exit":
            sys.exit(0)
        open(b"caf\\xe9.csv".decode("utf-8", "surrogateescape"))
"""


def test_a_worker_that_hangs_in_a_step_leaves_by_order_within_ten_seconds(here: Place) -> None:
    hung = here.path / "hung"
    (here.path / "mine.py").write_text(HANGS.format(path=str(hung)))
    here.write_search(task="mine.py:Task", trials=4, lease_s=60, stragglers="stuck_s = 600")
    assert (
        here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach").returncode
        == 0
    )
    worker = here.start("worker", "start", log="worker.log")
    wait_for(hung.exists, "a step that hangs")
    (name,) = [w["worker"] for w in here.status()["workers"]]
    assert here.run("master", "kill", "--worker", name, "--yes").returncode == 0
    began = time.monotonic()
    assert worker.wait(DEADLINE_S) == 0, here.output("worker.log")
    assert time.monotonic() - began < BUSY_S
    assert "stop requested, but the current step does not end; exiting" in here.output("worker.log")
    coarse = here.status()["stages"]["coarse"]
    assert (coarse["running"], coarse["pending"]) == (
        0,
        4,
    )  # given back at once, not after the lease of 60 s


def test_a_task_that_exits_or_names_a_file_in_bytes_fails_its_trials_and_the_worker_lives_on(
    here: Place,
) -> None:
    (here.path / "mine.py").write_text(LEAVES)
    here.write_search(
        task="mine.py:Task", trials=6, hidden="16", space='kind = { choice = ["exit", "raise"] }\n'
    )
    launched = here.run("master", "launch", "--stage", "coarse", "--workers", "1")
    assert set(ended_once(here, 6).values()) == {1}, launched.stderr
    reasons = {
        str(record["hyperparameters"]["kind"]): record["reason"] for record in here.records()
    }
    assert "called exit(0)" in reasons["exit"] and r"caf\udce9.csv" in reasons["raise"]
    (log,) = (here.root / "digits" / "logs").glob("worker-*.log")
    assert log.read_text().count("folder ") == 1  # one worker saw to all of it
