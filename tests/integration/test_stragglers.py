"""Lost, stuck and slow trials, with real workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.integration.commands import Place, wait_for
from tests.integration.test_faults import ended_once

pytestmark = pytest.mark.faults

TASKS = Path(__file__).parent / "tasks"
MARKED = {"task": "trouble.py:Task", "space": "marker = { uniform = [0.0, 1.0] }\n", "hidden": "16"}


def test_a_stuck_worker_loses_its_trials_and_exits(here: Place) -> None:
    shutil.copy(TASKS / "trouble.py", here.path)
    here.write_search(**MARKED, trials=6, epochs=20, lease_s=2, stragglers="stuck_s = 3")
    once = str(here.path / "once")
    master = here.start(
        "master", "launch", "--stage", "coarse", "--workers", "1", log="m.log", TROUBLE="hang", TROUBLE_BOUND="0", TROUBLE_ONLY=once
    )
    assert master.wait(100) == 0, here.output("m.log")
    attempts = ended_once(here, 6)
    said = here.output("m.log")
    assert "taken away, back to the queue" in said  # heartbeats came, nothing moved
    assert max(attempts.values()) == 2 and {r["state"] for r in here.rank()} <= {"completed", "exploded"}
    log = next((here.root / "digits" / "logs").glob("*.log")).read_text()
    assert "stuck" in log and "exiting to free the device" in log


def test_a_slow_worker_hands_its_trials_on(here: Place) -> None:
    shutil.copy(TASKS / "trouble.py", here.path)
    here.write_search(**MARKED, trials=16, epochs=40, high=0.01)
    environment = {"TROUBLE": "slow", "TROUBLE_BOUND": "0", "TROUBLE_ONLY": str(here.path / "once"), "TROUBLE_S": "1.5"}
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "2", log="m.log", **environment)
    wait_for(lambda: "given to another worker" in here.output("m.log"), "a slow trial to be passed on")
    slow = wait_for(lambda: [w["worker"] for w in here.status()["workers"] if w["state"] == "slow"], "the worker to be called slow")
    assert master.wait(100) == 0, here.output("m.log")
    attempts = ended_once(here, 16)
    passed_on = [r for r in here.rank() if r["attempt"] > 1]
    assert passed_on and all(r["worker"] not in slow for r in passed_on if r["state"] == "completed")
    assert max(attempts.values()) >= 2
