"""Digits on two machines, of which one takes far longer for a step."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from worker.tasks.digits import Digits

STEP_S = 0.2 if os.environ["MACHINE"] == "slow" else 0.0


class Paced(nn.Module):
    """Passes its input through. It looks at a number, so it trains alone and uncompiled."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum().item() != 0:
            time.sleep(STEP_S)
        out: torch.Tensor = self.inner(x)
        return out


class Task(Digits):
    """Digits, as above."""

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        return Paced(super().model(hp))
