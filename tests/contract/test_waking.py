"""Bells: a waiting worker or master is woken by each command that leaves something to do.

A command that changes nothing wakes nobody. No command fails for lack of a bell.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import redis

from common.queue.bells import ENDED, WORK, Bell
from common.queue.trial_queue import TrialQueue
from common.search.trial import Claim, Fence
from tests.contract.trials import DONE, SEARCH, at_rung, made, reap, until
from tests.redis_server import RedisServer

LONGER = [at_rung(trial, 1) for trial in made(1)]
AT_ONCE_S = 0.001


@pytest.fixture
def bell(client: redis.Redis) -> Bell:
    """One that has been listened to."""
    bell = Bell(client, WORK)
    bell.wait()
    return bell


def calls(client: Any, command: str) -> int:
    return int(client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def test_a_ring_wakes_who_waits(client: redis.Redis, bell: Bell) -> None:
    ringer = Thread(target=Bell(client, WORK).ring)
    ringer.start()
    until(lambda: bell.wait(1.0), "the ring to be heard")
    ringer.join()


def test_the_first_wait_returns_at_once_since_a_ring_may_have_been_missed(
    client: redis.Redis,
) -> None:
    assert Bell(client, WORK).wait(60.0)


def test_a_ring_between_looking_and_waiting_is_heard_and_once(
    client: redis.Redis, bell: Bell
) -> None:
    for _ in range(5):
        Bell(client, WORK).ring()
    assert bell.wait(AT_ONCE_S)
    assert not bell.wait(AT_ONCE_S)
    assert client.xlen(WORK) == 1


def test_all_that_wait_are_woken(client: redis.Redis, bell: Bell) -> None:
    others = [Bell(client, WORK) for _ in range(3)]
    for other in others:
        other.wait()
    bell.ring()
    assert all(waiting.wait(AT_ONCE_S) for waiting in (*others, bell))


def test_waiting_asks_for_nothing(client: redis.Redis, bell: Bell) -> None:
    before = calls(client, "xread")
    assert not bell.wait(0.3)
    assert calls(client, "xread") - before <= 2


def test_a_bell_is_heard_where_redis_was_emptied_and_its_clock_is_behind(
    client: redis.Redis, bell: Bell
) -> None:
    client.xadd(WORK, {"rung": "1"}, id="99999999999999-0")
    assert bell.wait(AT_ONCE_S)
    client.flushall()
    Bell(client, WORK).ring()
    assert bell.wait(AT_ONCE_S)
    assert not bell.wait(AT_ONCE_S)


def test_a_wait_ends_well_before_its_client_takes_the_server_for_dead(server: RedisServer) -> None:
    with server.client(socket_timeout=4.0) as client:
        bell = Bell(client, WORK)
        bell.wait()
        begun = time.monotonic()
        assert not bell.wait(60.0)
        assert time.monotonic() - begun < 4.0


# --- which words ring which ---


class Scene:
    """A queue in the middle: one trial waits, one is done, one runs, one was killed."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.queue = TrialQueue(client, SEARCH)
        self.queue.tick(master=True)
        for worker, machine in (("w", "A"), ("v", "B")):
            self.queue.claim(worker, 0, "begin", machine=machine)
        self.queue.publish(made(4, group=lambda i: f"{i}"))
        self.done, self.held, killed = (self.claim(f"{n}") for n in range(3))
        self.queue.finish([(self.done.fence, DONE)])
        self.killed = killed.trial.id
        self.queue.kill(self.killed, "by hand")

    def claim(self, request: str) -> Claim:
        (claim,) = self.queue.claim("w", 1, request, machine="A")
        return claim

    def expire(self, max_lost: int) -> object:
        self.client.zadd(self.queue.keys["leases"], {self.held.trial.id: 1})
        return reap(self.queue, self.held.fence, max_lost)

    def lose_alone(self) -> object:
        self.queue.take(self.held.fence, "stuck")
        self.queue.kill("coarse-0003", "in the way")
        self.held = self.claim("alone")
        return self.expire(1)


@pytest.fixture
def scene(client: redis.Redis) -> Scene:
    return Scene(client)


Word = Callable[[Scene], object]
WORK_WORDS: dict[str, Word] = {
    "publish": lambda s: s.queue.publish(made(9)),
    "promote": lambda s: s.queue.promote([at_rung(s.done.trial, 1)]),
    "release": lambda s: s.queue.release([s.held.fence]),
    "retry": lambda s: s.queue.retry(s.killed),
    "pass on": lambda s: s.queue.fail([(s.held.fence, "boom")]),
    "take": lambda s: s.queue.take(s.held.fence),
    "expire": lambda s: s.expire(3),
}
ENDED_WORDS: dict[str, Word] = {
    "finish": lambda s: s.queue.finish([(s.held.fence, DONE)]),
    "release": WORK_WORDS["release"],
    "kill": lambda s: s.queue.kill(s.held.trial.id, "by hand"),
    "lost too often": lambda s: s.lose_alone(),
}
QUIET_WORDS: dict[str, Word] = {
    "nothing new": lambda s: s.queue.publish(made(4)),
    "what runs is promoted": lambda s: s.queue.promote([at_rung(s.held.trial, 1)]),
    "a stale finish": lambda s: s.queue.finish([(Fence(s.done.trial.id, 1, "another"), DONE)]),
    "nothing to retry": lambda s: s.queue.retry(s.done.trial.id),
    "nothing to kill": lambda s: s.queue.kill(s.done.trial.id, "by hand"),
    "a heartbeat": lambda s: s.queue.renew("w", []),
    "a tick": lambda s: s.queue.tick(master=True),
}


@pytest.mark.parametrize("name", WORK_WORDS)
def test_what_leaves_trials_waiting_rings_for_work(
    client: redis.Redis, scene: Scene, name: str
) -> None:
    heard = listening(client, WORK)
    WORK_WORDS[name](scene)
    assert heard.wait(AT_ONCE_S)


@pytest.mark.parametrize("name", ENDED_WORDS)
def test_what_ends_trials_or_gives_them_back_rings_for_masters(
    client: redis.Redis, scene: Scene, name: str
) -> None:
    heard = listening(client, ENDED)
    ENDED_WORDS[name](scene)
    assert heard.wait(AT_ONCE_S)


@pytest.mark.parametrize("name", QUIET_WORDS)
def test_what_changes_nothing_rings_nothing(client: redis.Redis, scene: Scene, name: str) -> None:
    heard = [listening(client, key) for key in (WORK, ENDED)]
    QUIET_WORDS[name](scene)
    assert not any(bell.wait(AT_ONCE_S) for bell in heard)


def listening(client: redis.Redis, key: str) -> Bell:
    bell = Bell(client, key)
    bell.wait()
    return bell


def test_a_batch_rings_once(client: redis.Redis, queue: TrialQueue) -> None:
    queue.publish(made(100))
    claims = queue.claim("w", 100, "r")
    before = calls(client, "xadd")
    queue.finish([(claim.fence, DONE) for claim in claims])
    queue.promote([at_rung(claim.trial, 1) for claim in claims])
    assert calls(client, "xadd") - before == 2


# --- where it cannot ring ---


def test_no_word_fails_where_somebody_else_has_the_keys(
    client: redis.Redis, queue: TrialQueue
) -> None:
    for key in (WORK, ENDED):
        client.set(key, "mine")
    goes_its_way(queue)


def test_no_word_fails_where_this_user_may_neither_ring_nor_listen(
    client: redis.Redis, server: RedisServer
) -> None:
    client.execute_command(
        "ACL", "SETUSER", "deaf", "on", ">deaf", "~*", "+@all", "-xadd", "-xread"
    )
    with server.client(username="deaf", password="deaf") as deaf:
        queue = TrialQueue(deaf, SEARCH)
        goes_its_way(queue)
        refused = len(client.acl_log())
        assert not queue.bells.work.wait(AT_ONCE_S)
        assert len(client.acl_log()) == refused  # it does not ask again and again


def goes_its_way(queue: TrialQueue) -> None:
    assert queue.publish(made(1)) == 1
    (claim,) = queue.claim("w", 1, "r")
    assert queue.finish([(claim.fence, DONE)]) == ["ok"]
    assert queue.promote(LONGER) == []
    assert not queue.bells.work.wait(AT_ONCE_S) and not queue.bells.ended.wait(AT_ONCE_S)


def test_who_waits_while_redis_is_away_is_told_nothing_and_does_not_spin(tmp_path: Path) -> None:
    with redis.Redis(unix_socket_path=str(tmp_path / "nobody"), socket_timeout=1.0) as client:
        bell = Bell(client, WORK)
        bell.ring()
        begun, waits = time.monotonic(), 0
        while time.monotonic() - begun < 0.5:
            assert not bell.wait(1.0)
            waits += 1
        assert waits <= 8
