"""Lost, stuck and slow trials, with real workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.commands import DEADLINE_S, Place, wait_for
from tests.integration.test_faults import ended_once, taken

pytestmark = pytest.mark.faults

TASKS = Path(__file__).parent / "tasks"
HANG_S = 500.0  # only there to stop a hang: it takes a minute and a half
MARKED = {"task": "trouble.py:Task", "space": "marker = { uniform = [0.0, 1.0] }\n", "hidden": "16"}


def test_a_stuck_worker_loses_its_trials_and_exits(here: Place) -> None:
    shutil.copy(TASKS / "trouble.py", here.path)
    here.write_search(**MARKED, trials=6, epochs=20, lease_s=2, stragglers="stuck_s = 3")
    once = str(here.path / "once")
    master = here.start(
        "master",
        "launch",
        "--stage",
        "coarse",
        "--workers",
        "1",
        log="m.log",
        TROUBLE="hang",
        TROUBLE_BOUND="0",
        TROUBLE_ONLY=once,
    )
    assert master.wait(DEADLINE_S) == 0, here.output("m.log")
    attempts = ended_once(here, 6)
    said = here.output("m.log")
    assert "taken away, back to the queue" in said  # heartbeats came, nothing moved
    assert max(attempts.values()) == 2 and {r["state"] for r in here.rank()} <= {
        "completed",
        "exploded",
    }
    log = next((here.root / "digits" / "logs").glob("worker-*.log")).read_text()
    assert "stuck" in log and "exiting to free the device" in log


ANOTHER_BOOT = """
import os
import common.broker.embedded_folder
common.broker.embedded_folder.boot_id = lambda: os.environ["MACHINE"]
"""
SLOW_FSYNC = """
import os, time
sync = os.fsync
def fsync(descriptor):
    time.sleep(0.3)
    sync(descriptor)
os.fsync = fsync
"""
SPIRAL = """
name = "spiral"
task = "spiral"
seed = 1
keep = 160
[space]
learning_rate = { log_uniform = [1e-3, 1e-1] }
hidden = 64
batch_size = 50
[stages.coarse]
trials = 160
epochs = 600
"""


def test_a_slow_machine_hands_its_trials_to_one_that_has_nothing_to_do(
    here: Place, open_server: str
) -> None:
    here.redis_url = open_server
    shutil.copy(TASKS / "two_machines.py", here.path)
    (here.path / "sitecustomize.py").write_text(ANOTHER_BOOT)
    here.write_search(task="two_machines.py:Task", trials=6, epochs=150, hidden="16", high=0.01)
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "0", log="m.log")
    for machine in ("slow", "quick"):
        here.start(
            "worker", "start", log=f"{machine}.log", MACHINE=machine, PYTHONPATH=str(here.path)
        )
        wait_for(
            lambda log=f"{machine}.log": "runs the code" in here.output(log), "it to have begun"
        )
    assert master.wait(DEADLINE_S) == 0, here.output("m.log")
    attempts, said = ended_once(here, 6), here.output("m.log")
    assert (
        "slow on" in said
        and "it hands its trials to another machine" in said
        and "KILLED" not in said
    )
    assert "gave 1 of 1 trials to workers with nothing to do" in here.output("slow.log")
    assert max(attempts.values()) >= 2, "it went on elsewhere"
    assert {r["state"] for r in here.rank()} == {"completed"} and len(
        {r["worker"] for r in here.rank()}
    ) == 1


@pytest.mark.timeout(HANG_S + 100)
def test_on_a_busy_host_with_a_slow_disk_every_first_attempt_counts(
    here: Place, open_server: str
) -> None:
    here.redis_url = open_server
    (here.path / "search.toml").write_text(SPIRAL)
    (here.path / "sitecustomize.py").write_text(SLOW_FSYNC)
    with burning(os.cpu_count() or 1):
        for number in range(2):
            here.start(
                "worker",
                "start",
                "--array-width",
                "16",
                log=f"w{number}.log",
                PYTHONPATH=str(here.path),
            )
        master = here.start("master", "launch", "--stage", "coarse", "--workers", "0", log="m.log")
        assert master.wait(HANG_S) == 0, here.output("m.log")
    assert taken(here, ended_once(here, 160)) == 0, "".join(here.logs())
    assert not {r["state"] for r in here.records("spiral")} & {"killed", "failed"}
    for log in ("m.log", "w0.log", "w1.log"):
        assert "slow on" not in here.output(log) and "changes nothing" not in here.output(log), (
            here.output(log)
        )


@contextmanager
def burning(n: int) -> Iterator[None]:
    """While processes that do nothing else keep so many cores busy."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
