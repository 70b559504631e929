"""Faults that lose an answer.

Redis runs a script, and the connection breaks before the caller hears the result.
"""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos import aim
from tests.chaos.schedule import Made
from tests.chaos.tasks import troubled

if TYPE_CHECKING:
    from tests.chaos.arena import Arena, Command

PATIENCE_S = 10.0  # for the script to be run
AGAIN_S = 5.0  # until whatever has it run is done once more
MOST_SAID = 4  # times that a command is said
ALL_THE_TIME = ("claim", "finish", "renew", "tick", "announce")  # run whatever happens


def lose(script: str, patience_s: float, arena: Arena, draw: random.Random) -> Made:
    """The next answer to a script is lost; where the script needs an occasion, that is made."""
    assert arena.proxy
    lost, again_at = arena.proxy.lose(script), 0.0
    end = time.monotonic() + patience_s
    try:
        while not lost.happened:
            aim.require_running(arena)
            if time.monotonic() > end:
                return False
            if script in OCCASIONS and time.monotonic() >= again_at:
                again_at = time.monotonic() + AGAIN_S
                yield from OCCASIONS[script](arena, draw)
            yield aim.LOOK_S
        aim.require_running(arena)
    finally:
        arena.proxy.forget(lost)
    return True


def _master_dies(arena: Arena, draw: random.Random) -> Made:
    """The next one registers the search and publishes all trials again."""
    yield from aim.sent(arena, arena.crew.master, signal.SIGKILL)


def _worker_leaves(arena: Arena, draw: random.Random) -> Made:
    yield from aim.hit_worker(arena, draw, signal.SIGTERM)


def _worker_dies(arena: Arena, draw: random.Random) -> Made:
    yield from aim.hit_worker(arena, draw, signal.SIGKILL)


OCCASIONS: dict[str, Callable[[Arena, random.Random], Made]] = {
    "publish": _master_dies,
    "register": _master_dies,
    "release": _worker_leaves,
    "expire": _worker_dies,
}


def lose_restore(arena: Arena, draw: random.Random) -> Made:
    """Empty Redis, then lose the answer that a trial was restored from the folder."""
    assert arena.server and arena.proxy
    arena.server.kill()
    arena.server.empty()
    arena.forgotten()
    lost = arena.proxy.lose("restore")
    arena.server.start()
    arena.server.wait()
    yield from _carried_out(arena, "recover")  # it, or the master at the same time
    arena.proxy.forget(lost)
    yield from _insisted(arena, "recover")
    yield 1.0
    return lost.happened


def lose_order(which: str, arena: Arena, draw: random.Random) -> Made:
    """Kill a trial and send it back, and lose the answer to one of the two commands.

    A repeated command finds that its work is done.
    """
    assert arena.proxy
    begun = {
        line["trial"]
        for line in map(json.loads, arena.ledger.read_text().splitlines())
        if line["event"] == "claim"
    }
    waiting = [
        trial
        for trial in arena.calm.worst(troubled.STAGE)
        if trial.id not in begun | {*sent_back(arena)}
    ]
    if not waiting:
        return False
    trial = max(
        waiting, key=lambda one: one.index
    ).id  # the last to be trained; that nobody would promote it changes no decision
    losses = []
    for order, words in (
        ("kill", ("kill", "--trial", trial, "--yes")),
        ("retry", ("retry", "--state", "killed")),
    ):
        if order == which:
            lost = arena.proxy.lose(order)
            losses.append(lost)
            deaf = yield from _carried_out(arena, *words)
            arena.proxy.forget(lost)
            arena.require(
                deaf.code != 0,
                (
                    f"master {' '.join(words)}: did not hear its answer, and ended with 0: "
                    f"{deaf.said[-500:]}"
                ),
            )
        yield from _insisted(arena, *words)
    with _sent_back(arena).open("a") as file:
        file.write(f"{trial}\n")
    return all(lost.happened for lost in losses)


def sent_back(arena: Arena) -> list[str]:
    """Return the trials that were killed and sent back. Each of them rightly ends a second time."""
    file = _sent_back(arena)
    return file.read_text().split() if file.exists() else []


def _sent_back(arena: Arena) -> Path:
    return arena.path / "sent-back"


def _insisted(arena: Arena, *words: str) -> Made:
    """Repeat a command until it has heard its answer.

    Another fault may lose the answer to one of its scripts.
    """
    for _ in range(MOST_SAID):
        command = yield from _carried_out(arena, *words)
        if command.code == 0:
            return
    arena.require(
        False,
        (
            f"master {' '.join(words)}: said {MOST_SAID} times, ended with {command.code}: "
            f"{command.said[-500:]}"
        ),
    )


def _carried_out(arena: Arena, *words: str) -> Generator[float, None, Command]:
    command = arena.begin_command(*words)
    while not command.over:
        yield aim.LOOK_S
    return command


ALL: dict[str, Callable[[Arena, random.Random], Made]] = {
    **{script: partial(lose, script, PATIENCE_S) for script in (*ALL_THE_TIME, *OCCASIONS)},
    **{
        script: partial(lose, script, math.inf) for script in ("fail", "take")
    },  # run only where the task raises or hangs
    "restore": lose_restore,
    **{order: partial(lose_order, order) for order in ("kill", "retry")},
}
