"""A loop whose trials cost nothing, end where their configuration says, and may be resumed anywhere: what they should come to is known."""

from __future__ import annotations

import math
import os
import time
from typing import Any

CHUNK = 8 << 20  # bytes that a leaking trial takes at a time


def begun() -> float:
    return 0.0


def after(value: float, hp: Any) -> float:
    """The accuracy after one more epoch: half-way to where this configuration leads, so that it depends on every epoch before."""
    goal = 0.5 + 0.4 * math.sin(7.0 * math.log10(hp["learning_rate"]) + 3.0 * hp["dropout"])
    return value + 0.5 * (goal - value)


def train(trial: Any) -> None:
    value = begun() if trial.resume is None else float(trial.resume["value"])
    for epoch in range(round(trial.epoch) + 1, math.ceil(trial.epochs) + 1):
        if epoch == 2 and "trouble" in trial.hp:
            make(str(trial.hp["trouble"]), trial)
        value = after(value, trial.hp)
        trial.report(epoch, train_loss=1.0 - value, val_acc=value, val_loss=1.0 - value, state={"value": value})


def make(trouble: str, trial: Any) -> None:
    if trouble == "raise":
        raise ValueError("planted: this trial raises")
    if trouble == "exit":
        os._exit(9)
    if trouble == "hang":
        trial.beat(limit_s=1.0)
        time.sleep(10_000)
    if trouble == "leak":
        taken = []
        while True:
            taken.append(b"x" * CHUNK)
            trial.beat()
            time.sleep(0.01)
