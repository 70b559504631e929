"""A Redis that does not serve: one clear error, and the same word may be said again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from common.broker.connection import open_broker
from common.broker.eviction import eviction_warning
from common.broker.sandbox import CVE, remedy_of, sandbox_warning
from common.errors import QueueError
from common.queue.trial_queue import TrialQueue, searches
from common.queue.workers import WorkerRegistry
from common.search.trial import Fence
from tests.acl import ROLES, add_user
from tests.contract.trials import DONE, SEARCH, check_consistent, heartbeat, made
from tests.redis_server import VERSIONS, RedisServer, start_redis


@pytest.fixture(params=VERSIONS)
def own(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server that the test may harm."""
    with (
        tempfile.TemporaryDirectory(prefix="cf-") as folder,
        start_redis(Path(folder), request.param) as server,
    ):
        yield server


def test_a_server_that_is_gone(own: RedisServer) -> None:
    with own.client() as client:
        queue, registry = TrialQueue(client, SEARCH), WorkerRegistry(client)
        queue.publish(made(1))
        own.stop()
        fence = Fence("coarse-0000", 1, "t")
        for word in (
            lambda: queue.register("digits"),
            lambda: queue.freeze("coarse", {}),
            lambda: queue.frozen("coarse"),
            lambda: queue.publish(made(1)),
            lambda: queue.restore(made(1)[0], 1, DONE),
            lambda: queue.claim("w", 1, "r"),
            lambda: queue.renew("w", []),
            lambda: queue.finish([(fence, DONE)]),
            lambda: queue.release([fence]),
            lambda: queue.leave("w"),
            lambda: queue.tick(True),
            lambda: queue.master_alive(),
            lambda: queue.expire(fence),
            lambda: queue.take(fence),
            lambda: queue.kill("coarse-0000", "by hand"),
            lambda: queue.retry("coarse-0000"),
            lambda: queue.running(),
            lambda: queue.counts(),
            lambda: queue.state("coarse-0000"),
            lambda: queue.read_endings(0),
            lambda: list(queue.trials()),
            lambda: queue.by_state(),
            lambda: queue.pending_total(),
            lambda: queue.lock("janitor", 1).__enter__(),
            lambda: queue.drop(),
            lambda: searches(client),
            lambda: registry.list(),
            lambda: registry.order_quit("w"),
        ):
            with pytest.raises(QueueError, match="cannot be reached; start it") as caught:
                word()
            assert str(own.socket) in str(caught.value)


def test_a_full_server_refuses_and_loses_nothing(own: RedisServer) -> None:
    with own.client() as client:
        queue = TrialQueue(client, SEARCH)
        queue.publish(made(3))
        (claim,) = queue.claim("w", 1, "r")
        client.config_set("maxmemory", "1")
        for word in (
            lambda: queue.publish(made(5)),
            lambda: queue.finish([(claim.fence, DONE)]),
            lambda: queue.freeze("coarse", {}),
        ):
            with pytest.raises(QueueError, match="out of memory; raise its maxmemory"):
                word()
        client.config_set("maxmemory", "0")
        assert queue.finish([(claim.fence, DONE)]) == ["ok"]
        assert queue.counts()["coarse"]["pending"] == 2


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_server_that_would_drop_trials_in_silence_is_told_of(
    own: RedisServer, policy: str
) -> None:
    with own.client() as admin, open_broker(own.url, own.socket.parent) as broker:
        assert eviction_warning(broker) is None
        admin.config_set("maxmemory-policy", policy)
        assert eviction_warning(broker) is None, "without a limit nothing is dropped"
        admin.config_set("maxmemory", 100_000_000)
        warning = eviction_warning(broker)
        assert (
            warning
            and policy in warning
            and "CONFIG SET maxmemory-policy noeviction" in warning
            and str(own.socket) in warning
        )
        admin.execute_command(*warning.partition("`redis-cli ")[2].partition("`")[0].split())
        assert eviction_warning(broker) is None, "its own remedy helps"


def test_a_users_rights_suffice_to_see_it_and_without_them_nothing_is_said(
    own: RedisServer, request: pytest.FixtureRequest
) -> None:
    flat = request.node.callspec.params["own"] == "6.2"
    with own.client() as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        admin.config_set("maxmemory", 100_000_000)
        for role in ROLES:
            add_user(admin, role, "secret", flat=flat)
            with open_broker(f"unix://{role}:secret@{own.socket}", own.socket.parent) as broker:
                assert eviction_warning(broker)
                admin.execute_command("ACL", "SETUSER", role, "-info")
                assert eviction_warning(broker) is None


def test_a_server_whose_scripts_can_leave_their_sandbox_is_told_of(
    own: RedisServer, request: pytest.FixtureRequest
) -> None:
    flat = request.node.callspec.params["own"] == "6.2"
    with own.client() as admin:
        said = admin.info("server")
        program, version = (
            ("Valkey", said["valkey_version"])
            if "valkey_version" in said
            else ("Redis", said["redis_version"])
        )
        remedy = remedy_of(program, version)
        assert remedy == "6.2.20" or not flat, "the oldest that is promised has no fix"
        for role in ROLES:
            add_user(admin, role, "secret", flat=flat)
            with open_broker(f"unix://{role}:secret@{own.socket}", own.socket.parent) as broker:
                warning = sandbox_warning(broker)
                if remedy is None:
                    assert warning is None
                else:
                    assert warning and "\n" not in warning
                    assert all(
                        part in warning
                        for part in (str(own.socket), version, CVE, remedy, "backported")
                    )
                admin.execute_command("ACL", "SETUSER", role, "-info")
                assert sandbox_warning(broker) is None, "whoever may not ask is told nothing"


def test_what_expires_may_be_evicted_and_no_trial_is_lost(own: RedisServer) -> None:
    """With volatile-*, a full memory evicts only what expires.

    Trials, their leases and their results stay.
    """
    with own.client() as client:
        queue = TrialQueue(client, SEARCH)
        queue.publish(made(6))
        queue.tick(True)
        (done,) = queue.claim("w", 1, "one", machine="m")
        queue.finish([(done.fence, DONE)])
        (held,) = queue.claim("w", 1, "two", machine="m")
        queue.renew("w", [heartbeat(held.fence)])
        with queue.lock("janitor", 60.0):
            expiring = [key for key in client.keys("*") if client.ttl(key) >= 0]
            assert {key.rpartition(":")[2] for key in expiring} == {
                "workers",
                "requests",
                "machines",
                "meta",
                "janitor",
            }
            client.config_set("maxmemory-policy", "volatile-ttl")
            client.config_set(
                "maxmemory", client.info("memory")["used_memory"]
            )  # now each write first drops what expires
            with pytest.raises(QueueError, match="out of memory; raise its maxmemory"):
                for number in range(100):
                    queue.publish(made(500, first=500 * number))
            assert not any(client.exists(key) for key in expiring)
            client.config_set("maxmemory", 0)
        assert queue.counts()["coarse"]["completed"] == 1 and queue.result("coarse-0000") == (
            1,
            DONE,
        )
        assert queue.renew("w", [heartbeat(held.fence)]) == {} and queue.finish(
            [(held.fence, DONE)]
        ) == ["ok"]
        check_consistent(queue)


def test_a_read_only_replica(own: RedisServer) -> None:
    with own.client() as client:
        queue = TrialQueue(client, SEARCH)
        client.replicaof("127.0.0.1", "1")
        with pytest.raises(QueueError, match="read-only replica; give the address of its primary"):
            queue.publish(made(1))


def test_a_wrong_password_is_not_repeated(own: RedisServer) -> None:
    with own.client() as client:
        client.config_set("requirepass", "right")
    for password in ("wrong-secret", None):
        with (
            own.client(password=password) as client,
            pytest.raises(QueueError, match="password") as caught,
        ):
            TrialQueue(client, SEARCH).claim("w", 1, "r")
        assert "secret" not in str(caught.value)


def test_a_server_that_forgot_the_scripts_gets_them_again(own: RedisServer) -> None:
    with own.client() as client:
        queue = TrialQueue(client, SEARCH)
        queue.publish(made(2))
        client.script_flush()
        assert len(queue.claim("w", 2, "r")) == 2
        assert queue.counts()["coarse"]["running"] == 2


def test_a_lost_answer_can_be_asked_for_again(own: RedisServer) -> None:
    """The server carries the claim out, the answer does not arrive, the repetition has it."""
    with own.client() as client, own.client(socket_timeout=0.2) as hasty:
        TrialQueue(client, SEARCH).publish(made(4))
        queue = TrialQueue(hasty, SEARCH)
        queue.claim("other", 1, "the script is known")
        client.execute_command("CLIENT", "PAUSE", "400", "WRITE")
        with pytest.raises(QueueError, match="does not answer in time"):
            queue.claim("w", 2, "one")
        client.execute_command("CLIENT", "UNPAUSE")
        claims = queue.claim("w", 2, "one")
        assert [claim.fence.attempt for claim in claims] == [1, 1]
        assert TrialQueue(client, SEARCH).counts()["coarse"]["running"] == 3


def test_redis_is_remembered_over_its_restart(own: RedisServer) -> None:
    folder = own.socket.parent
    own.stop()
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with start_redis(folder, "7", *options) as first, first.client() as client:
        queue = TrialQueue(client, SEARCH)
        queue.publish(made(3))
        claims = queue.claim("w", 2, "r")
        queue.finish([(claims[0].fence, DONE)])
    with start_redis(folder, "7", *options) as second, second.client() as client:
        queue = TrialQueue(client, SEARCH)
        assert queue.tick(True).extended
        assert queue.claim("w", 2, "r") == claims[1:]
        assert queue.finish([(claim.fence, DONE) for claim in claims]) == ["ok", "ok"]
        assert isinstance(client, redis.Redis)
