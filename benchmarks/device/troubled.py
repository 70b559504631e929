"""Digits on a device that a trial troubles. The environment names the trouble and the trial.

`benchmarks/gpu.py` copies this file beside its search file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worker.tasks.digits import Digits

TROUBLE, GUILTY = os.environ["TROUBLE"], float(os.environ["TROUBLE_MARKER"])
ONCE = Path(os.environ["TROUBLE_ONCE"])  # whoever makes this file is in trouble, and nobody else
CALM = 30  # training steps after the guilty model was built
CYCLES = 10**12  # of a kernel that does not end in minutes

steps = 0
armed = False


def trouble(x: Tensor) -> None:
    """Do to the device what the environment says."""
    if TROUBLE == "assert":
        if x.device.type == "cpu":
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        far = torch.full((1,), 10**6, device=x.device)
        nn.functional.embedding(far, torch.zeros(10, 2, device=x.device))
        torch.cuda.synchronize()
    elif TROUBLE == "stuck" and not ONCE.exists():
        ONCE.touch()
        if x.device.type == "cpu":
            time.sleep(3600)
        torch.cuda._sleep(CYCLES)
        torch.cuda.synchronize()


class Troubling(nn.Module):
    """Passes its input through, and makes trouble while it trains."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Call the model."""
        global steps
        steps += armed and self.training
        if steps > CALM:
            trouble(x)
        return self.inner(x)


class Task(Digits):
    """Digits, as above."""

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        """Return the model of a configuration."""
        global armed
        armed = armed or hp["marker"] == GUILTY
        return Troubling(super().model({k: v for k, v in hp.items() if k != "marker"}))
