"""Faults, each a generator.

A fault yields how long to wait before it goes on, and returns once it has been made and is over. It
returns False if it could not be made. Every choice comes from the random generator that it gets, so
that the seed repeats it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos import aim, answers
from tests.chaos.aim import LOOK_S
from tests.chaos.patches import STEPS, SWEEP_S
from tests.chaos.schedule import Kind, Made

if TYPE_CHECKING:
    from tests.chaos.arena import Arena
    from tests.chaos.crew import Clock

WITHIN = 0.3  # leases: short enough that whoever is cut off still holds his
BEYOND = 1.6  # leases: long enough that whoever stands still has lost his
# In leases. The master ticks every fifth of a lease, so it is heard within this time. A worker that
# is late by no more loses nothing.
WAKING = 0.35
PATIENCE_S = 10.0  # for a process to come to a certain step
TAIL = (0.02, 0.25)  # of the append-only file: from about its last second to its last quarter
AHEAD_S, BEHIND_S = (
    (7200.0, 40 * 86400.0),
    (-5.0, -86400.0),
)  # all files look an hour old, and more; time goes back
WRONG_S = SWEEP_S + 0.5  # so long a clock stays wrong: every part of the program looks at it
REDIS, MASTER, DISK = "redis", "master", "disk"
NEEDS_OF_ANSWERS = {
    "publish": MASTER,
    "register": MASTER,
    "restore": REDIS,
    "kill": "orders",
    "retry": "orders",
}


def kinds(arena: Arena, *names: str) -> list[Kind]:
    """The kinds of these names, to happen to ``arena`` while its search runs."""
    return [
        Kind(name, partial(aim.while_it_runs, ALL[name][0], arena), ALL[name][1]) for name in names
    ]


# -- processes -------------------------------------------------------------------------------------


def kill_worker(arena: Arena, draw: random.Random) -> Made:
    yield from aim.hit_worker(arena, draw, signal.SIGKILL)


def stop_worker(arena: Arena, draw: random.Random) -> Made:
    pid = yield from aim.hit_worker(arena, draw, signal.SIGSTOP)
    yield BEYOND * arena.lease_s
    arena.crew.go_on(pid)


def end_worker(arena: Arena, draw: random.Random) -> Made:
    yield from aim.hit_worker(arena, draw, signal.SIGTERM)


def slow_worker(arena: Arena, draw: random.Random) -> Made:
    """Let a worker run a twentieth of the time for two leases, as beside a greedy neighbour."""
    slot = yield from aim.worker(arena, draw)
    end = time.monotonic() + 2 * arena.lease_s
    while time.monotonic() < end:
        pid = arena.crew.signal(slot, signal.SIGSTOP)
        yield 0.19
        arena.crew.go_on(pid)
        yield 0.01


def kill_master(arena: Arena, draw: random.Random) -> Made:
    yield from aim.sent(arena, arena.crew.master, signal.SIGKILL)
    yield draw.uniform(0, 1)


def stop_master(arena: Arena, draw: random.Random) -> Made:
    pid = yield from aim.sent(arena, arena.crew.master, signal.SIGSTOP)
    yield BEYOND * arena.lease_s
    arena.crew.go_on(pid)


def kill_master_at_promotion(arena: Arena, draw: random.Random) -> Made:
    """Make the next master kill itself between writing a promotion and telling Redis."""
    marks = arena.new_file("marks")
    try:
        arena.crew.master.next_plan = {"promotion": {"when": "decided", "marks": str(marks)}}
        yield from aim.sent(arena, arena.crew.master, signal.SIGKILL)
        end = time.monotonic() + PATIENCE_S
        while not marks.exists():
            aim.require_running(arena)
            if time.monotonic() > end:
                return False
            yield LOOK_S
        return True
    finally:
        arena.crew.master.next_plan = {}


# -- files -----------------------------------------------------------------------------------------


def remove_decision(arena: Arena, draw: random.Random) -> Made:
    """A file that says who goes on is lost while the search runs."""
    return (yield from _removed(arena, draw, "promotions/*.json", arena.forget_decision))


def remove_state(arena: Arena, draw: random.Random) -> Made:
    """A state that a trial is to go on from is lost."""
    return (yield from _removed(arena, draw, "resume/*.pt", lambda path: None))


def _removed(arena: Arena, draw: random.Random, pattern: str, note: Callable[[Path], None]) -> Made:
    end = time.monotonic() + PATIENCE_S
    while not (files := sorted(path for stage in arena.stages for path in stage.glob(pattern))):
        aim.require_running(arena)
        if time.monotonic() > end:
            return False
        yield LOOK_S
    path = draw.choice(files)
    note(path)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    yield 0.5


# -- Redis -----------------------------------------------------------------------------------------


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


def suspend_computer(arena: Arena, draw: random.Random) -> Made:
    """Suspend the computer of Redis and the workers for longer than a lease.

    The master runs on another computer. It is served first when the suspended one wakes.
    """
    assert arena.server
    pids = [arena.crew.signal(slot, signal.SIGSTOP) for slot in arena.crew.workers]
    arena.server.signal(signal.SIGSTOP)
    yield BEYOND * arena.lease_s
    arena.server.signal(signal.SIGCONT)
    yield WAKING * arena.lease_s
    for pid in pids:
        arena.crew.go_on(pid)
    yield 1.0


def cut_tail(arena: Arena, draw: random.Random) -> Made:
    assert arena.server
    arena.server.kill()
    arena.server.cut(draw.uniform(*TAIL))
    arena.forgotten()
    arena.server.start()
    yield 1.0


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
    arena.require(
        recovering.code == 0,
        f"master recover ended with {recovering.code}: {recovering.said[-500:]}",
    )
    yield 1.0


def kill_embedded(arena: Arena, draw: random.Random) -> Made:
    yield from _embedded(arena, signal.SIGKILL)
    yield 1.0


def stop_embedded(arena: Arena, draw: random.Random) -> Made:
    pid = yield from _embedded(arena, signal.SIGSTOP)
    yield BEYOND * arena.lease_s
    os.kill(pid, signal.SIGCONT)
    yield 1.0


def _embedded(arena: Arena, number: signal.Signals) -> Generator[float, None, int]:
    while (pid := arena.embedded_pid()) is None:
        aim.require_running(arena)
        yield LOOK_S
    os.kill(pid, number)
    return pid


# -- a worker at a step of writing -----------------------------------------------------------------


def at_step(step: str, do: str, arena: Arena, draw: random.Random) -> Made:
    """A worker that kills or stops itself at a step; it takes the place of one that leaves."""
    slot, marks = (yield from aim.worker(arena, draw)), arena.new_file("marks")
    slot.reserved = True
    try:
        slot.next_plan = {
            "at": {"step": step, "nth": draw.randint(1, 2), "do": do, "marks": str(marks)}
        }
        yield from aim.sent(arena, slot, signal.SIGTERM)
        end = time.monotonic() + PATIENCE_S
        while not marks.exists():
            aim.require_running(arena)
            if time.monotonic() > end:
                return False
            yield LOOK_S
        aim.require_running(arena)
        if do == "stop":
            yield BEYOND * arena.lease_s
        return True
    finally:
        if do == "stop":
            arena.crew.go_on(slot.pid)
        slot.next_plan, slot.reserved = {}, False


# -- disks, networks, clocks -----------------------------------------------------------------------


def fill_disk(which: str, arena: Arena, draw: random.Random) -> Made:
    disk = arena.disks[which]
    disk.fill()
    yield draw.uniform(0.3, 2.5)
    disk.free()
    yield 1.0


def cut_off_worker(for_leases: float, arena: Arena, draw: random.Random) -> Made:
    """The link goes down, then up."""
    network = draw.choice(arena.networks)
    network.down()
    yield for_leases * arena.lease_s
    network.up()
    yield 0.5


def move_workers_clock(arena: Arena, draw: random.Random) -> Made:
    slot = yield from aim.worker(arena, draw)
    yield from _moved(slot.clock, draw)


def move_masters_clock(arena: Arena, draw: random.Random) -> Made:
    yield from _moved(arena.crew.master.clock, draw)


def _moved(clock: Clock, draw: random.Random) -> Made:
    """Move the time of day of a running process ahead and back, in either order.

    The clock stays wrong.
    """
    for by_s in draw.sample((draw.choice(AHEAD_S), draw.choice(BEHIND_S)), 2):
        clock.show(by_s)
        yield WRONG_S


ALL: dict[str, tuple[Callable[..., Made], str]] = {
    "worker killed": (kill_worker, ""),
    "worker stopped past its lease": (stop_worker, ""),
    "worker told to leave": (end_worker, ""),
    "worker slowed down": (slow_worker, ""),
    "master killed": (kill_master, MASTER),
    "master stopped past a lease": (stop_master, MASTER),
    "master killed between a decision and its word": (kill_master_at_promotion, MASTER),
    "a file of promotions removed": (remove_decision, ""),
    "a resume state removed": (remove_state, ""),
    "Redis killed": (kill_redis, REDIS),
    "Redis stopped past a lease": (stop_redis, REDIS),
    "computer of Redis and the workers suspended": (suspend_computer, REDIS),
    "Redis's last writes lost": (cut_tail, REDIS),
    "Redis emptied, recovered": (empty_redis, REDIS),
    "embedded Redis killed": (kill_embedded, REDIS),
    "embedded Redis stopped past a lease": (stop_embedded, REDIS),
    **{
        f"answer lost: {script}": (fault, NEEDS_OF_ANSWERS.get(script, script))
        for script, fault in answers.ALL.items()
    },
    **{f"worker killed at {step}": (partial(at_step, step, "kill"), "") for step in STEPS},
    **{
        f"worker stopped at {step}": (partial(at_step, step, "stop"), "")
        for step in ("after_claim", "record_temporary", "before_finish")
    },
    "disk full under the folder": (partial(fill_disk, "folder"), DISK),
    "disk full under Redis": (partial(fill_disk, "redis"), DISK),
    "worker cut off the network": (partial(cut_off_worker, BEYOND), "network"),
    "worker cut off for a moment": (partial(cut_off_worker, WITHIN), "network"),
    "worker's clock jumped": (move_workers_clock, ""),
    "master's clock jumped": (move_masters_clock, MASTER),
}
OF_PROCESSES = (
    "worker killed",
    "worker stopped past",
    "worker slowed",
    "worker told",
    "master killed",
    "master stopped",
)
PROMOTIONS = (
    "master killed between a decision and its word",
    "a file of promotions removed",
    "a resume state removed",
)
PROCESSES = tuple(
    name
    for name in ALL
    if name.startswith(OF_PROCESSES) and " at " not in name and name not in PROMOTIONS
)
STEPWISE = tuple(name for name in ALL if " at " in name)
TO_TASKS = (
    "answer lost: fail",
    "answer lost: take",
    "answer lost: kill",
    "answer lost: retry",
)  # while tasks raise and hang
ANSWERS = tuple(name for name in ALL if name.startswith("answer lost") and name not in TO_TASKS)
