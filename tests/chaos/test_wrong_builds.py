"""Builds that are wrong on purpose fail the chaos harness, each for its own mistake.

The right build passes under the same faults. The faults hit the weak spot, so that each test takes
seconds. The witnesses are those of every episode, and nothing more.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.arena import Arena, Work
from tests.chaos.nursery import Nursery
from tests.chaos.schedule import Kind, Made
from tests.chaos.servers import Server, served
from tests.chaos.tally import TALLY
from tests.chaos.wrong_builds import WRONG
from tests.integration.test_stragglers import burning

pytestmark = pytest.mark.timeout(120)
SHORT = Work(epochs=40, slots=5)
NEW = 12  # trials of its first stage
LEASE_S = 1.0
PACE_S = 0.1  # an epoch
OUTAGES = 4
BUSY_LEASE_S = 5.0  # heartbeats come late where all cores are busy
SYNC_S = 1.5  # of a slow disk: a record takes several
SLOW_FOR_S = 15.0
SLOW_PACE_S = 2.5  # an epoch: a trial then takes far longer than a late worker needs to come back
PATIENCE_S = 20.0
LOOK_S = 0.05
RIGHT = "right"
MARKS, SECONDS = "marks", "seconds"


def a_late_word(arena: Arena, draw: random.Random) -> Made:
    """A worker stops with its record half written until another trains the same trial.

    It then goes on and reports the trial as finished.
    """
    end = time.monotonic() + PATIENCE_S
    while not _claimed_twice(arena) and time.monotonic() < end:
        if arena.ended() >= NEW - 3:  # one stands still, the others train one each
            arena.set_pace(SLOW_PACE_S)  # what was lost comes last: now it lasts
        yield LOOK_S
    arena.crew.go_on(arena.crew.workers[0].pid)
    yield SLOW_PACE_S
    arena.set_pace(PACE_S)
    return _claimed_twice(arena)


def _claimed_twice(arena: Arena) -> bool:
    tokens: dict[str, set[str]] = {}
    for line in arena.ledger.read_text().splitlines():
        note = json.loads(line)
        if note["event"] == "claim":
            tokens.setdefault(note["trial"], set()).add(note["token"])
    return any(len(found) > 1 for found in tokens.values())


def a_death_after_finish(arena: Arena, draw: random.Random) -> Made:
    """A worker dies the moment Redis has taken its finish."""
    marks = arena.path / MARKS
    end = time.monotonic() + PATIENCE_S
    while not marks.exists() and time.monotonic() < end:
        yield LOOK_S
    return marks.exists()


def a_death_of_the_master(arena: Arena, draw: random.Random) -> Made:
    """The master dies the moment Redis has heard from it who is promoted."""
    return (yield from a_death_after_finish(arena, draw))


def an_outage(arena: Arena, draw: random.Random) -> Made:
    """Redis and all workers stop for longer than a lease; the master is served first afterwards.

    Whether it is, is up to the system where the cores are busy. So it is tried several times.
    """
    assert arena.server
    arena.set_pace(SLOW_PACE_S)
    for _ in range(OUTAGES):
        while _held(arena) < len(arena.crew.workers) and not arena.crew.ended:
            yield LOOK_S
        pids = [arena.crew.signal(slot, signal.SIGSTOP) for slot in arena.crew.workers]
        arena.server.signal(signal.SIGSTOP)
        yield 1.6 * LEASE_S
        arena.server.signal(signal.SIGCONT)
        before, end = _tick(arena), time.monotonic() + 0.4 * LEASE_S
        while _tick(arena) == before and time.monotonic() < end:
            yield 0.01
        yield 0.1 * LEASE_S  # for what the master does after its tick
        for pid in pids:
            arena.crew.go_on(pid)
        yield LEASE_S
        if _claimed_twice(arena):
            break
    arena.set_pace(PACE_S)
    return not arena.crew.ended


def a_slow_disk(arena: Arena, draw: random.Random) -> Made:
    """One worker's disk is slow, on a host whose cores are all busy.

    Its writes take long, and it has all the time that it needs.
    """
    seconds = arena.path / SECONDS
    with burning(os.cpu_count() or 1):
        seconds.write_text(f"{SYNC_S}")
        end = time.monotonic() + SLOW_FOR_S
        while time.monotonic() < end:
            yield LOOK_S
        seconds.unlink()
    return (arena.path / MARKS).exists()


def _held(arena: Arena) -> int:
    """How many trials are under lease."""
    with arena.client() as client:
        return sum(int(client.zcard(key)) for key in client.scan_iter("*:leases"))


def _tick(arena: Arena) -> str | None:
    with arena.client() as client:
        return next((str(client.hget(key, "tick")) for key in client.scan_iter("*:meta")), None)


@dataclass(frozen=True)
class Scenario:
    """Faults aimed at one weak spot.

    ``at`` is the step at which the first worker stands still or dies, and ``promotion`` the step of
    the first master. ``slow`` says whether that worker's disk is slow from the fault on.
    """

    fault: Callable[[Arena, random.Random], Made]
    at: tuple[str, str] | None = None
    promotion: str | None = None
    slow: bool = False
    lease_s: float = LEASE_S


LATE_WORD = Scenario(a_late_word, ("record_temporary", "stop"))
DEATH = Scenario(a_death_after_finish, ("after_finish", "kill"))
OUTAGE = Scenario(an_outage)
PROMOTION = Scenario(a_death_of_the_master, promotion="told")
SLOW = Scenario(a_slow_disk, slow=True, lease_s=BUSY_LEASE_S)
STALE_FENCE = r"attempt 1 was told that it counts after attempt 2 was handed out"
SCENARIOS = {  # and what has to be found
    "fences not compared": (LATE_WORD, STALE_FENCE),
    "fences checked at renew only": (LATE_WORD, STALE_FENCE),
    "attempt numbers used again": (LATE_WORD, r"attempt 1 was handed out twice"),
    "finish said before the record is written": (
        DEATH,
        r"its worker wrote no record|it counts while it had no record",
    ),
    "reaping right after an outage": (
        OUTAGE,
        r"attempt 1 was taken from process \d+, which lived and was not silent",
    ),
    "promotion told before it is decided": (
        PROMOTION,
        r"was handed out before a file said that it is promoted",
    ),
    "trials taken for being slow": (
        SLOW,
        r"attempt \d+ was taken from its worker by the master, which nothing called for",
    ),
}


def findings(
    nursery: Nursery, path: Path, server: Server, build: str, scenario: Scenario
) -> list[str]:
    """What the witnesses say of a build after these faults."""
    arena = Arena(
        nursery,
        path,
        1,
        server,
        SHORT,
        3,
        scenario.lease_s,
        plan={} if build == RIGHT else {"wrong": build},
        fixed_pace_s=PACE_S,
    )
    if scenario.at is not None:
        step, do = scenario.at
        arena.crew.workers[0].next_plan = {
            "at": {"step": step, "nth": 1, "do": do, "marks": str(path / MARKS)}
        }
    if scenario.promotion is not None:
        arena.crew.master.next_plan = {
            "promotion": {"when": scenario.promotion, "marks": str(path / MARKS)}
        }
    if scenario.slow:
        arena.crew.workers[0].plan |= {
            "disk": {"seconds": str(path / SECONDS), "marks": str(path / MARKS)}
        }
    with contextlib.closing(arena):
        made = arena.run([Kind("aimed", partial(scenario.fault, arena), "redis")], 1, 0.2).made
        account = arena.verdict(arena.calm.ranking())
    assert made["aimed"] == 1, "the fault did not hit"
    return account.findings


@pytest.mark.parametrize(
    "scenario",
    [LATE_WORD, DEATH, OUTAGE, PROMOTION, SLOW],
    ids=["late word", "death after finish", "outage", "promotion", "slow disk"],
)
def test_the_right_build_passes(nursery: Nursery, path: Path, scenario: Scenario) -> None:
    with served(path / "redis") as server:
        assert findings(nursery, path, server, RIGHT, scenario) == []


@pytest.mark.parametrize("build", SCENARIOS)
def test_the_harness_sees_wrong_builds(nursery: Nursery, path: Path, build: str) -> None:
    with served(path / "redis") as server:
        scenario, expected = SCENARIOS[build]
        found = findings(nursery, path, server, build, scenario)
    matching = [finding for finding in found if re.search(expected, finding)]
    assert matching, f"nothing like {expected!r} was found of a build with {build}, but {found}"
    TALLY.seen[build] = matching[0]


def test_every_wrong_build_has_its_faults() -> None:
    assert WRONG.keys() == SCENARIOS.keys()
