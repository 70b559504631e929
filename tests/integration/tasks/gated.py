"""A loop whose third trial waits half-way until the test lets it go on.

The first trials cost nothing.
"""

from __future__ import annotations

import math
import os
import time
from itertools import count
from pathlib import Path
from typing import Any

GATE = Path(os.environ["GATE"])
PATIENCE_S = 300.0  # only there to stop a hang
FREE = 2  # trials
begun = count()


def train(trial: Any) -> None:
    number = next(begun)
    for epoch in range(round(trial.epoch) + 1, math.ceil(trial.epochs) + 1):
        value = 0.9 - 1.0 / (epoch + 1) - trial.hp["dropout"] / 10
        trial.report(
            epoch,
            train_loss=1.0 - value,
            val_acc=value,
            val_loss=1.0 - value,
            state={"value": value},
        )
        deadline = time.monotonic() + PATIENCE_S
        while number >= FREE and not GATE.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
