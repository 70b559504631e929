"""Choosing the target of a fault.

Targets are unfinished trials, live processes, and workers that hold trials.
"""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from tests.chaos.schedule import Made

if TYPE_CHECKING:
    from tests.chaos.arena import Arena
    from tests.chaos.crew import Slot

LOOK_S = 0.1


class MissedError(Exception):
    """All trials have ended: nothing was left to be hit."""


def require_running(arena: Arena) -> None:
    """Raises MissedError: every trial has ended, at each of its rungs."""
    if arena.ended() >= arena.calm.n_ends:
        raise MissedError


def while_it_runs(
    fault: Callable[[Arena, random.Random], Made], arena: Arena, draw: random.Random
) -> Made:
    """The fault; False, so that it does not count, where it came too late."""
    try:
        require_running(arena)
        return (yield from fault(arena, draw))
    except MissedError:
        return False


def worker(arena: Arena, draw: random.Random) -> Generator[float, None, Slot]:
    """Choose a live worker that no other fault has reserved, one that holds trials if possible."""
    order = draw.sample(arena.crew.workers, len(arena.crew.workers))
    while True:
        require_running(arena)
        living = [
            slot
            for slot in order
            if not slot.reserved and slot.pid is not None and arena.nursery.alive(slot.pid)
        ]
        if living:
            busy = holders(arena)
            return next((slot for slot in living if slot.pid in busy), living[0])
        yield LOOK_S


def sent(arena: Arena, slot: Slot, number: signal.Signals) -> Generator[float, None, int]:
    """Sends a signal to what runs there as soon as something does; its process id."""
    while (pid := arena.crew.signal(slot, number)) is None:
        require_running(arena)
        yield LOOK_S
    return pid


def hit_worker(
    arena: Arena, draw: random.Random, number: signal.Signals
) -> Generator[float, None, int]:
    """Sends a signal to a worker that holds trials, if any does; its process id."""
    slot = yield from worker(arena, draw)
    return (yield from sent(arena, slot, number))


def holders(arena: Arena) -> set[int]:
    """Return the processes that hold trials, from their own notes.

    The holder is the last process that claimed a trial without a record.
    """
    latest: dict[str, tuple[int, int]] = {}
    for line in arena.ledger.read_text().splitlines():
        note = json.loads(line)
        if note["event"] == "claim":
            latest[note["trial"]] = (note["attempt"], note["pid"])
    return {
        pid for trial, (attempt, pid) in latest.items() if not arena.record(trial, attempt).exists()
    }
