"""A loop of the user's own whose space has lists, steps, distributions and conditions."""

from __future__ import annotations

import math
from typing import Any


def train(trial: Any) -> None:
    """Best by sgd with a momentum of 0.9 and two layers, as wide as its latency allows.

    It refuses a configuration that is not one of its space. A list that it changes is its own.
    """
    hp = trial.hp
    by_sgd = hp["optimizer"] == "sgd"
    if by_sgd != ("momentum" in hp) or by_sgd == ("beta2" in hp):
        raise ValueError(f"not a configuration of this space: {dict(hp)}")
    layers = hp["layers"]
    depth = 2 if isinstance(layers, dict) else len(layers)
    if isinstance(layers, list):
        layers.append(0)
    momentum = hp.get("momentum", 0.0)
    wrong = 3 * abs(momentum - 0.9) + 2 * abs(depth - 2)
    loss = wrong + abs(math.log10(hp["rate"]) + 2) + hp["noise"]
    for epoch in range(int(trial.epoch) + 1, int(trial.epochs) + 1):
        latency = 50.0 if hp["width"] > 160 else 5.0  # wide models are better, and too slow
        loss_now = loss + 1 / epoch - hp["width"] / 100
        trial.report(epoch, val_loss=loss_now, latency_ms=latency, state={"epoch": epoch})
