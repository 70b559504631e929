"""The checks before learning, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

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
    done = here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach", checks=True)
    assert done.returncode == 0, done.stderr
    for told in ("gradient at the start", "--skip-check", "4 new"):
        assert told in done.stderr, done.stderr
    assert not done.stdout
    noted = json.loads((here.root / "digits" / "check.json").read_text())["report"]
    assert noted["passed"] and noted["task_digest"] == "builtin:digits" and noted["seconds"] < 10
    again = here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach", checks=True)
    assert again.returncode == 0 and "gradient" not in again.stderr and "0 new" in again.stderr


def test_a_failed_check_stops_a_launch_before_anything_is_queued(here: Place) -> None:
    (here.path / "leaking.py").write_text(LEAKING)
    file: Path = here.write_search(name="leaky", task="leaking.py:Leaking", trials=2)
    done = here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach", checks=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "'leaky' does not start" in errors[0] and "--skip-check" in done.stderr
    assert "50.00% of val" not in done.stdout and "33.33% of val are also in train" in done.stderr
    assert not (here.root / "leaky").exists()  # so that the mended task can be launched under the same name

    by_hand = here.run("worker", "check", "--config", str(file), "--json")
    assert by_hand.returncode == 1 and "made the data" in by_hand.stderr  # stdout is JSON alone
    report = json.loads(by_hand.stdout)
    assert [c["check"] for c in report["checks"] if c["status"] == "failed"] == ["data: parts"]

    skipped = here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach")
    assert skipped.returncode == 0 and "2 new" in skipped.stderr
    unknown = here.run("worker", "check", "--search", "nothing")
    assert unknown.returncode == 2 and "nothing" in unknown.stderr
