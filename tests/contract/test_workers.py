"""The registry of workers: who lives, who is lost, who must go."""

from __future__ import annotations

from dataclasses import replace

import redis

from common.queue.workers import WorkerRegistry
from common.search.trial import WorkerInfo
from tests.contract.trials import until
from tests.redis_server import RedisServer

ONE = WorkerInfo("w1", "host/a", 12, "cuda:0", "H 200", "training", 64, 60, 1234)


def test_a_worker_is_listed_as_it_said(client: redis.Redis) -> None:
    registry = WorkerRegistry(client)
    assert registry.list() == []
    assert registry.announce(ONE) == []
    registry.announce(replace(ONE, worker="w0", state="idle"))
    assert [replace(info, last_seen_s=0.0) for info in registry.list()] == [
        replace(ONE, worker="w0", state="idle"),
        ONE,
    ]
    assert 0 <= registry.list()[0].last_seen_s < 10
    registry.announce(replace(ONE, trials=3))
    found = registry.get("w1")
    assert found and found.trials == 3
    assert registry.get("w2") is None


def test_a_silent_worker_is_lost_and_then_forgotten(client: redis.Redis) -> None:
    registry = WorkerRegistry(client)
    registry.announce(ONE)
    registry.order_quit("w1")
    registry.mark_slow("w1")
    until(
        lambda: WorkerRegistry(client, lost_s=0.02).list()[0].state == "lost",
        "the worker has been silent for 20 ms",
    )
    assert registry.list()[0].state == "slow"
    brief = WorkerRegistry(client, forget_s=0.05)
    until(lambda: not brief.list(), "the worker has been silent for 50 ms")
    brief.announce(replace(ONE, worker="w2"))
    assert [info.worker for info in registry.list()] == ["w2"]
    assert registry.announce(ONE) == []  # its order is forgotten, too
    assert registry.list()[0].state == "training"


def test_a_worker_that_leaves_is_gone(client: redis.Redis) -> None:
    registry = WorkerRegistry(client)
    registry.announce(ONE)
    registry.leave("w1")
    assert registry.list() == []


def test_a_worker_hears_that_it_must_go(client: redis.Redis) -> None:
    registry = WorkerRegistry(client)
    registry.announce(ONE)
    registry.order_quit("w1")
    assert registry.announce(replace(ONE, worker="w2")) == []
    assert registry.announce(ONE) == registry.announce(ONE) == ["quit"]


def test_slow_takes_the_place_of_what_the_worker_says(client: redis.Redis) -> None:
    registry = WorkerRegistry(client)
    registry.announce(ONE)
    registry.mark_slow("w1")
    registry.announce(ONE)
    assert registry.list()[0].state == "slow"
    registry.mark_slow("w1", False)
    assert registry.list()[0].state == "training"


def test_a_client_that_does_not_decode_reads_the_same(
    client: redis.Redis, server: RedisServer
) -> None:
    with server.client(decode_responses=False) as raw:
        registry = WorkerRegistry(raw)
        registry.order_quit("w1")
        assert registry.announce(ONE) == ["quit"]
        registry.mark_slow("w1")
        assert registry.list()[0].state == "slow"
