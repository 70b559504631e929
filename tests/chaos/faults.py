"""Faults, one generator each: it yields how long to wait until it goes on, and returns once all is mended that it can mend."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.arena import Arena

BEYOND = 1.6  # leases: long enough that whoever stands still has lost his


def kill_worker(arena: Arena, draw: random.Random) -> Iterator[float]:
    while arena.crew.signal(draw.choice(arena.crew.workers), signal.SIGKILL) is None:
        yield 0.1


def stop_worker(arena: Arena, draw: random.Random) -> Iterator[float]:
    """Stops one past its lease, and has it go on."""
    while (pid := arena.crew.signal(draw.choice(arena.crew.workers), signal.SIGSTOP)) is None:
        yield 0.1
    yield BEYOND * arena.lease_s
    arena.crew.go_on(pid)
