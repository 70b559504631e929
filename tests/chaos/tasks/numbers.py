"""A loop whose trials cost nothing, end where their configuration says, and may be resumed anywhere: what they should come to is known."""

from __future__ import annotations

import math
from typing import Any


def begun() -> float:
    return 0.0


def after(value: float, hp: Any) -> float:
    """The accuracy after one more epoch: half-way to where this configuration leads, so that it depends on every epoch before."""
    goal = 0.5 + 0.4 * math.sin(7.0 * math.log10(hp["learning_rate"]) + 3.0 * hp["dropout"])
    return value + 0.5 * (goal - value)


def train(trial: Any) -> None:
    value = begun() if trial.resume is None else float(trial.resume["value"])
    for epoch in range(round(trial.epoch) + 1, math.ceil(trial.epochs) + 1):
        value = after(value, trial.hp)
        trial.report(epoch, train_loss=1.0 - value, val_acc=value, val_loss=1.0 - value, state={"value": value})


def ranking(trials: Any) -> list[str]:
    """The ids of these trials as they rank after a run without faults, best first."""
    best = {}
    for trial in trials:
        values = [begun()]
        for _ in range(math.ceil(trial.epochs)):
            values.append(after(values[-1], trial.hyperparameters))
        best[trial.id] = max(values[1:])
    return sorted(best, key=lambda trial_id: -best[trial_id])
