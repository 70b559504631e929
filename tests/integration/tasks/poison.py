"""Digits on a device that one trial poisons: whatever its process asks from then on raises.

The trial's ``marker`` is that of the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from worker.tasks.digits import Digits

GUILTY = float(os.environ["POISON_MARKER"])
CALM = 30  # training steps after the guilty model was built, so that the array trains by then
MESSAGE = "CUDA error: device-side assert triggered"

steps = 0
armed = False


def ask() -> None:
    """Raise as a poisoned device does."""
    if steps > CALM:
        raise torch.AcceleratorError(MESSAGE)


class Asking(nn.Module):
    """Passes its input through, and asks the device."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global steps
        steps += armed and self.training
        ask()
        return self.inner(x)


class Task(Digits):
    """Digits, as above."""

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        global armed
        ask()
        armed = armed or hp["marker"] == GUILTY
        return Asking(super().model({k: v for k, v in hp.items() if k != "marker"}))
