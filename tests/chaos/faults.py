"""Faults, one generator each: it yields how long to wait before it goes on, and returns once it has been made and is over.

What it returns: False where it could not be made. Every choice comes from the generator that it is handed, so that the seed repeats it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.chaos.patches import STEPS
from tests.chaos.schedule import Kind, Made

if TYPE_CHECKING:
    from tests.chaos.arena import Arena
    from tests.chaos.crew import Slot

BEYOND = 1.6  # leases: long enough that whoever stands still has lost his
PATIENCE_S = 10.0  # for a process to come to a certain step
LOOK_S = 0.1
TAIL = (0.02, 0.25)  # of the append-only file: from about its last second to its last quarter
CLOCKS_S = (-86400.0, -5.0, 30.0, 7200.0, 40 * 86400.0)
REDIS, MASTER, DISK = "redis", "master", "disk"


def kinds(arena: Arena, *names: str) -> list[Kind]:
    """The kinds of these names, to happen to ``arena``."""
    return [Kind(name, partial(ALL[name][0], arena), ALL[name][1]) for name in names]


# -- processes ---------------------------------------------------------------------------------------------------------


def kill_worker(arena: Arena, draw: random.Random) -> Made:
    yield from _sent(arena, draw.choice(arena.crew.workers), signal.SIGKILL)


def stop_worker(arena: Arena, draw: random.Random) -> Made:
    pid = yield from _sent(arena, draw.choice(arena.crew.workers), signal.SIGSTOP)
    yield BEYOND * arena.lease_s
    arena.crew.go_on(pid)


def end_worker(arena: Arena, draw: random.Random) -> Made:
    yield from _sent(arena, draw.choice(arena.crew.workers), signal.SIGTERM)


def slow_worker(arena: Arena, draw: random.Random) -> Made:
    """For two leases a worker runs a twentieth of the time, as beside a neighbour that takes all."""
    slot = draw.choice(arena.crew.workers)
    end = time.monotonic() + 2 * arena.lease_s
    while time.monotonic() < end:
        pid = yield from _sent(arena, slot, signal.SIGSTOP)
        yield 0.19
        arena.crew.go_on(pid)
        yield 0.01


def kill_master(arena: Arena, draw: random.Random) -> Made:
    yield from _sent(arena, arena.crew.master, signal.SIGKILL)
    yield draw.uniform(0, 1)


def stop_master(arena: Arena, draw: random.Random) -> Made:
    pid = yield from _sent(arena, arena.crew.master, signal.SIGSTOP)
    yield BEYOND * arena.lease_s
    arena.crew.go_on(pid)


def _sent(arena: Arena, slot: Slot, number: signal.Signals) -> Any:
    while (pid := arena.crew.signal(slot, number)) is None:
        yield LOOK_S
    return pid


# -- Redis -------------------------------------------------------------------------------------------------------------


def kill_redis(arena: Arena, draw: random.Random) -> Made:
    assert arena.server
    arena.server.kill()
    yield draw.uniform(0.05, 1.5)
    arena.server.start()
    yield 1.0


def stop_redis(arena: Arena, draw: random.Random) -> Made:
    """An outage longer than a lease: nobody is to lose a trial by it."""
    assert arena.server
    arena.server.signal(signal.SIGSTOP)
    yield BEYOND * arena.lease_s
    arena.server.signal(signal.SIGCONT)
    yield 1.0


def cut_tail(arena: Arena, draw: random.Random) -> Made:
    assert arena.server
    arena.server.kill()
    arena.server.cut(draw.uniform(*TAIL))
    arena.forgotten()
    arena.server.start()
    yield 2.0


def empty_redis(arena: Arena, draw: random.Random) -> Made:
    """Redis with all its data is lost; ``master recover`` rebuilds it from the folder."""
    assert arena.server
    arena.server.kill()
    arena.server.empty()
    arena.forgotten()
    arena.server.start()
    arena.server.wait()
    recovering = arena.begin_command("recover")
    while not recovering.over:
        yield LOOK_S
    arena.require(recovering.code == 0, f"master recover ended with {recovering.code}: {recovering.said[-500:]}")
    yield 2.0


def kill_embedded(arena: Arena, draw: random.Random) -> Made:
    yield from _embedded(arena, signal.SIGKILL)
    yield 2.0


def stop_embedded(arena: Arena, draw: random.Random) -> Made:
    pid = yield from _embedded(arena, signal.SIGSTOP)
    yield BEYOND * arena.lease_s
    os.kill(pid, signal.SIGCONT)
    yield 1.0


def _embedded(arena: Arena, number: signal.Signals) -> Any:
    while (pid := arena.embedded_pid()) is None:
        yield LOOK_S
    os.kill(pid, number)
    return pid


def lose_answer(script: str, arena: Arena, draw: random.Random) -> Made:
    """Redis runs a script, and the connection breaks before its answer."""
    assert arena.proxy
    lost = arena.proxy.lose(script)
    end = time.monotonic() + PATIENCE_S
    while not lost.happened:
        if time.monotonic() > end:
            arena.proxy.forget(lost)
            return False
        yield LOOK_S
    return True


# -- a worker at a step of writing -------------------------------------------------------------------------------------


def at_step(step: str, do: str, arena: Arena, draw: random.Random) -> Made:
    """A worker that kills or stops itself at a step; it takes the place of one that leaves."""
    slot, marks = draw.choice(arena.crew.workers), arena.new_file("marks")
    while slot.reserved:
        yield LOOK_S
    slot.reserved = True
    for nth in (draw.randint(1, 2), 1):  # a second try, where the step was not reached in time
        slot.next_plan = {"at": {"step": step, "nth": nth, "do": do, "marks": str(marks)}}
        yield from _sent(arena, slot, signal.SIGTERM)
        end = time.monotonic() + PATIENCE_S
        while not marks.exists() and time.monotonic() < end:
            yield LOOK_S
        if marks.exists():
            break
    if do == "stop" and marks.exists():
        yield BEYOND * arena.lease_s
        arena.crew.go_on(slot.pid)
    slot.reserved = False
    return marks.exists()


# -- disks, networks, clocks -------------------------------------------------------------------------------------------


def fill_disk(which: str, arena: Arena, draw: random.Random) -> Made:
    disk = arena.disks[which]
    disk.fill()
    yield draw.uniform(0.3, 2.5)
    disk.free()
    yield 1.0


def cut_off_worker(arena: Arena, draw: random.Random) -> Made:
    """The link goes down for longer than a lease, then up."""
    network = draw.choice(arena.networks)
    network.down()
    yield BEYOND * arena.lease_s
    network.up()
    yield 2.0


def move_clock(arena: Arena, draw: random.Random) -> Made:
    """The next process in a place has another time of day."""
    slot = draw.choice(arena.crew.slots)
    slot.next_plan = {"clock_s": draw.choice(CLOCKS_S)}
    before = slot.started
    yield from _sent(arena, slot, signal.SIGKILL)
    while slot.started == before:
        yield LOOK_S
    yield 1.0


ALL: dict[str, tuple[Callable[..., Made], str]] = {
    "worker killed": (kill_worker, ""),
    "worker stopped past its lease": (stop_worker, ""),
    "worker told to leave": (end_worker, ""),
    "worker slowed down": (slow_worker, ""),
    "master killed": (kill_master, MASTER),
    "master stopped past a lease": (stop_master, MASTER),
    "Redis killed": (kill_redis, REDIS),
    "Redis stopped past a lease": (stop_redis, REDIS),
    "Redis's last writes lost": (cut_tail, REDIS),
    "Redis emptied, recovered": (empty_redis, REDIS),
    "embedded Redis killed": (kill_embedded, REDIS),
    "embedded Redis stopped past a lease": (stop_embedded, REDIS),
    **{f"answer lost: {script}": (partial(lose_answer, script), script) for script in ("claim", "finish", "renew", "tick", "announce")},
    **{f"worker killed at {step}": (partial(at_step, step, "kill"), "") for step in STEPS},
    **{f"worker stopped at {step}": (partial(at_step, step, "stop"), "") for step in ("after_claim", "record_temporary", "before_finish")},
    "disk full under the folder": (partial(fill_disk, "folder"), DISK),
    "disk full under Redis": (partial(fill_disk, "redis"), DISK),
    "worker cut off the network": (cut_off_worker, "network"),
    "clock moved": (move_clock, MASTER),
}
OF_PROCESSES = ("worker killed", "worker stopped past", "worker slowed", "worker told", "master")
PROCESSES = tuple(name for name in ALL if name.startswith(OF_PROCESSES) and " at " not in name)
STEPWISE = tuple(name for name in ALL if " at " in name)
ANSWERS = tuple(name for name in ALL if name.startswith("answer lost"))
