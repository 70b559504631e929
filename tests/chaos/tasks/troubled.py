"""The loop of curves.py, with failing trials.

Some raise, end their process, hang, or leak memory until they are killed.
"""

from __future__ import annotations

import os
import time
from typing import Any

from tests.chaos.tasks import curves

CHUNK_BYTES = 8 << 20
RAISING = range(7, 100, 9)
TROUBLE = {
    **dict.fromkeys(RAISING, "raise"),
    23: "exit",
    35: "hang",
    49: "leak",
    75: "leak",
    87: "hang",
    101: "exit",
}  # by trial number
STAGE = "coarse"  # where they are


def train(trial: Any) -> None:
    stage, _, number = trial.id.rpartition("-")
    trouble = TROUBLE.get(int(number)) if stage == STAGE else None
    if trouble is not None:
        make(trouble, trial)
    curves.train(trial)


def failing(trial: Any) -> bool:
    """Whether a trial is one of these."""
    return trial.stage == STAGE and trial.index in TROUBLE


def make(trouble: str, trial: Any) -> None:
    if trouble == "raise":
        raise ValueError("planted: this trial raises")
    if trouble == "exit":
        os._exit(9)
    if trouble == "hang":
        trial.beat(limit_s=1.0)
        time.sleep(10_000)
    if trouble == "leak":
        leak(trial)


def leak(trial: Any) -> None:
    """Takes memory until somebody puts an end to it."""
    taken = []
    while True:
        taken.append(b"x" * CHUNK_BYTES)
        trial.beat()
        time.sleep(0.01)
