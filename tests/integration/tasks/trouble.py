"""Digits, with trouble for trials whose ``marker`` is above a bound.

The environment names the kind of trouble.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worker.tasks.digits import Digits

BOUND = float(os.environ.get("TROUBLE_BOUND", "2"))
KIND = os.environ.get("TROUBLE", "")
CALM = 60  # calls: width has been measured, and a few epochs have passed
ONLY = os.environ.get(
    "TROUBLE_ONLY", ""
)  # only the process that makes this file first is in trouble


def _here() -> bool:
    if not ONLY:
        return True
    try:
        Path(ONLY).touch(exist_ok=False)
    except FileExistsError:
        return Path(ONLY).read_text() == str(os.getpid())
    Path(ONLY).write_text(str(os.getpid()))
    return True


class Troubled(nn.Module):
    """Passes its input through, and makes trouble while it trains."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if KIND == "raise":
            raise ValueError("planted: the model raised")
        if KIND == "hang" and self.calls > CALM:
            time.sleep(10_000)
        if KIND == "slow" and self.calls > CALM:
            time.sleep(float(os.environ["TROUBLE_S"]))
        return self.inner(x)


class Task(Digits):
    """Digits, as above."""

    def model(self, hp: Mapping[str, Any]) -> nn.Module:
        inner = super().model({k: v for k, v in hp.items() if k != "marker"})
        if hp["marker"] < BOUND or not _here():
            return inner
        if KIND == "exit":
            sys.stderr.write(f"planted: leaving at {hp['marker']}\n")
            os._exit(int(os.environ.get("TROUBLE_STATUS", "9")))
        if KIND == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        return Troubled(inner)
