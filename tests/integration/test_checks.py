"""The checks before learning, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.commands import Place

LEAKING = """
import torch
from torch import nn
from worker.tasks.base import Data, Part


class Leaking:
    def data(self):
        x = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
        y = (x[:, 0] > 0).long()
        print("made the data")
        return Data(Part(x[:200], y[:200]), Part(x[150:], y[150:]), None, 2)

    def model(self, hp):
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
"""


def test_a_first_launch_checks_and_says_so_and_the_next_does_not(here: Place) -> None:
    here.write_search(trials=4)
    done = here.run(
        "master", "launch", "--stage", "coarse", "--workers", "0", "--detach", checks=True
    )
    assert done.returncode == 0, done.stderr
    for told in ("gradient at the start", "--skip-check", "4 new"):
        assert told in done.stderr, done.stderr
    assert not done.stdout
    noted = json.loads((here.root / "digits" / "check.json").read_text())["report"]
    assert noted["passed"] and noted["task_digest"] == "builtin:digits" and noted["seconds"] < 10
    again = here.run(
        "master", "launch", "--stage", "coarse", "--workers", "0", "--detach", checks=True
    )
    assert again.returncode == 0 and "gradient" not in again.stderr and "0 new" in again.stderr


def test_a_failed_check_stops_a_launch_before_anything_is_queued(here: Place) -> None:
    (here.path / "leaking.py").write_text(LEAKING)
    file: Path = here.write_search(name="leaky", task="leaking.py:Leaking", trials=2)
    done = here.run(
        "master", "launch", "--stage", "coarse", "--workers", "0", "--detach", checks=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (
        len(errors) == 1 and "'leaky' does not start" in errors[0] and "--skip-check" in done.stderr
    )
    assert "50.00% of val" not in done.stdout and "33.33% of val are also in train" in done.stderr
    assert not (
        here.root / "leaky"
    ).exists()  # so that the mended task can be launched under the same name

    by_hand = here.run("worker", "check", "--config", str(file), "--json")
    assert by_hand.returncode == 1 and "made the data" in by_hand.stderr  # stdout is JSON alone
    report = json.loads(by_hand.stdout)
    assert [c["check"] for c in report["checks"] if c["status"] == "failed"] == ["data: parts"]

    skipped = here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach")
    assert skipped.returncode == 0 and "2 new" in skipped.stderr
    unknown = here.run("worker", "check", "--search", "nothing")
    assert unknown.returncode == 2 and "nothing" in unknown.stderr


NOISY = """
import atexit, os, subprocess, sys
print('{"passed": true}')
os.write(1, b'{"passed": false}')
subprocess.run(["echo", "from a program"])
sys.__stdout__.write("without an end")
atexit.register(lambda: print("at the end"))
from worker.tasks.digits import Digits

class Task(Digits):
    def model(self, hp):
        {then}
        return super().model(hp)
"""
CRASHES = {
    "import ctypes; ctypes.string_at(0)": "was ended by SIGSEGV",
    "os.kill(os.getpid(), 9)": "was ended by SIGKILL",
    "os._exit(0)": "ended with exit status 0, as where the task calls os._exit,",
    "os._exit(7)": "ended with exit status 7",
}


@pytest.mark.faults
def test_whatever_a_task_writes_its_report_alone_is_on_stdout(here: Place) -> None:
    (here.path / "noisy.py").write_text(NOISY.replace("{then}", "pass"))
    file = here.write_search(task="noisy.py:Task", hidden="16")
    by_hand = here.run("worker", "check", "--config", str(file), "--json")
    assert json.loads(by_hand.stdout)["task"] == "noisy.py:Task", by_hand.stdout
    for told in (
        "from a program",
        "without an end",
        "at the end",
        '{"passed": true}',
        '{"passed": false}',
    ):
        assert told in by_hand.stderr
    done = here.run(
        "master", "launch", "--stage", "coarse", "--workers", "0", "--detach", checks=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.faults
def test_a_crash_of_the_checks_is_told_in_words_and_with_its_line(here: Place) -> None:
    here.write_search(task="noisy.py:Task", hidden="16")
    for code, told in CRASHES.items():
        (here.path / "noisy.py").write_text(NOISY.replace("{then}", code))
        done = here.run(
            "master", "launch", "--stage", "coarse", "--workers", "0", "--detach", checks=True
        )
        assert done.returncode == 1 and f"error: the checks' process {told}" in done.stderr, (
            done.stderr
        )
        assert "JSONDecodeError" not in done.stderr and "nothing was queued" in done.stderr
        assert (
            "SIGSEGV" not in told or 'noisy.py", line' in done.stderr
        )  # where native code crashed
    assert not (here.root / "digits").exists()
