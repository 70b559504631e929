"""Denormal numbers, with which a CPU computes at a tenth of its speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

GRAIN = 1 << 15  # the least count of numbers that torch gives to one thread


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush denormals to 0: weights that decay towards zero would slow every step tenfold.

    Use it only while steps are computed. On a thread that flushes, Python reads 1e-310 as 0, and so
    would a task's own code.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def start_threads() -> None:
    """Start the threads that steps share, so that they flush denormals too.

    A thread inherits the setting of the thread that starts it.
    """
    with flush_denormals():
        torch.zeros(GRAIN * torch.get_num_threads()).add_(1.0)
