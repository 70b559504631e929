"""Digits on two machines.

The bad machine cannot import the task; the good one waits until that has been tried.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from worker.tasks.digits import Digits

MEETING = Path(os.environ["MEETING"])
PATIENCE_S = 300.0  # only there to stop a hang

if os.environ["MACHINE"] == "bad":
    (MEETING / "bad").touch()
    raise ImportError("No module named 'planted'")


# Trials of the good machine that do not wait: it may claim others before those that the bad one
# gives back.
CLAIMED = 12
seen: set[float] = set()


def wait_for(name: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not (MEETING / name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)


class Task(Digits):
    """Digits as above.

    Trials after the first of both machines wait until the test has seen what it needs.
    """

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        (MEETING / "good").touch()
        wait_for("bad")
        seen.add(hp["learning_rate"])
        if len(seen) > CLAIMED:
            wait_for("told")
        return super().model(hp)
