"""Redis as users have it: watched by Sentinel, as a Cluster, and with a limit on its memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from common.broker import open_broker
from common.errors import ConfigError, QueueError
from common.queue import TrialQueue
from common.redis_urls import parse, redact
from common.trial import Result, Trial, TrialState, trial_id
from common.verdict import Verdict
from common.workers import WorkerRegistry
from tests.integration.commands import Place, wait_for
from tests.redis_server import program

SEARCH = "0123456789abcdef"


def free_port(also: int = 0) -> int:
    """A port that is free now, as is the one ``also`` above it."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            if port + also > 65535:
                continue
            try:
                two.bind(("127.0.0.1", port + also if also else 0))
            except OSError:
                continue
            return port


@contextmanager
def running(folder: Path, port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server on loopback, killed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [program("7"), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *options]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: _answers(port), f"the server on port {port}")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    with redis.Redis(port=port) as client, contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """Three nodes that share the slots."""
    ports = [free_port(also=10_000) for _ in range(3)]
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(running(tmp_path / str(port), port, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000"))
        share = 16384 // 3 + 1
        for number, port in enumerate(ports):
            with redis.Redis(port=port) as node:
                node.execute_command("CLUSTER", "ADDSLOTSRANGE", number * share, min((number + 1) * share, 16384) - 1)
                node.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
        for port in ports:
            with redis.Redis(port=port, decode_responses=True) as node:
                wait_for(lambda node=node: "cluster_state:ok" in str(node.execute_command("CLUSTER", "INFO")), "the cluster")
        yield f"redis+cluster://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"


def trials(n: int) -> list[Trial]:
    return [Trial(trial_id("coarse", i), "coarse", i, i, 1.0, {"learning_rate": 0.1}, "{}") for i in range(n)]


def test_a_search_runs_on_a_cluster(cluster: str, tmp_path: Path) -> None:
    place = Place(tmp_path, cluster)
    place.write_search(trials=6)
    launched = place.run("master", "launch", "--stage", "coarse", "--workers", "1")
    assert launched.returncode == 0, launched.stderr
    status = json.loads(place.run("master", "status", "--json").stdout)
    assert status["stages"]["coarse"]["completed"] == 6
    assert place.run("master", "workers").returncode == 0


def test_a_node_of_the_url_may_be_down(cluster: str, tmp_path: Path) -> None:
    with open_broker(cluster.replace("cluster://", f"cluster://127.0.0.1:{free_port()},"), tmp_path) as broker:
        queue = TrialQueue(broker.client, SEARCH)
        queue.publish(trials(3))
        assert "the Redis Cluster at 127.0.0.1" in queue.where
        assert len(queue.claim("worker", 3, "request")) == 3


def test_sentinel_leads_to_the_new_primary(tmp_path: Path) -> None:
    primary, replica, watcher = free_port(), free_port(), free_port()
    settings = f"port {watcher}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor search 127.0.0.1 {primary} 1\n"
    settings += "sentinel down-after-milliseconds search 300\nsentinel failover-timeout search 2000\n"
    (tmp_path / "sentinel.conf").write_text(settings)
    with ExitStack() as stack:
        dying = stack.enter_context(running(tmp_path / "primary", primary))
        stack.enter_context(running(tmp_path / "replica", replica, "--replicaof", "127.0.0.1", str(primary)))
        command = [str(program("7")), str(tmp_path / "sentinel.conf"), "--sentinel"]
        sentinel = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stack.callback(sentinel.wait)
        stack.callback(sentinel.kill)
        wait_for(lambda: _answers(watcher), "the Sentinel")
        with redis.Redis(port=watcher, decode_responses=True) as asked:
            wait_for(lambda: len(asked.sentinel_slaves("search")) == 1, "the Sentinel to know the replica")
        with open_broker(f"redis+sentinel://127.0.0.1:{watcher}/search/0", tmp_path) as broker:
            queue = TrialQueue(broker.client, SEARCH)
            queue.publish(trials(4))
            queue.tick(master=True)
            claims = queue.claim("worker", 4, "first")
            with redis.Redis(port=replica) as copy:
                wait_for(lambda: copy.exists(queue.keys["leases"]), "the replica to follow")
            os.kill(dying.pid, signal.SIGKILL)
            results = [(claim.fence, Result(TrialState.COMPLETED)) for claim in claims]
            verdicts = wait_for(lambda: _finished(queue, results), "the new primary")
            assert set(verdicts) == {Verdict.OK}
            assert "'search', which Sentinel watches" in queue.where


def _finished(queue: TrialQueue, results: list[tuple[object, Result]]) -> list[Verdict] | None:
    try:
        return queue.finish(results)  # type: ignore[arg-type]
    except QueueError:
        return None


def test_a_full_memory_is_told_with_the_remedy_and_loses_nothing(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path / "small", port) as _, open_broker(f"redis://127.0.0.1:{port}/0", tmp_path) as broker:
        queue = TrialQueue(broker.client, SEARCH)
        queue.publish(trials(50))
        queue.tick(master=True)
        claims = queue.claim("worker", 10, "first")
        broker.client.config_set("maxmemory", 1)
        with pytest.raises(QueueError, match="out of memory; raise its maxmemory"):
            queue.publish([*trials(50), Trial("coarse-0050", "coarse", 50, 50, 1.0, {"learning_rate": 0.1}, "{}")])
        with pytest.raises(QueueError, match="maxmemory"):
            queue.finish([(claim.fence, Result(TrialState.COMPLETED)) for claim in claims])
        broker.client.config_set("maxmemory", 0)
        assert queue.finish([(claim.fence, Result(TrialState.COMPLETED)) for claim in claims]) == [Verdict.OK] * 10
        assert queue.counts()["coarse"]["pending"] == 40
        assert WorkerRegistry(broker.client).list() == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+sentinel://host:26379", "names no service"),
        ("redis+cluster://host:6379/3", "the database 0 alone"),
        ("redis+sentinel://host:x/search", "not a host and a port"),
        ("redis+magic://host/0", "not the URL of Sentinels or of a cluster"),
    ],
)
def test_a_url_that_cannot_be_is_refused_by_name(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(url)


def test_passwords_of_sentinels_are_for_nobodys_eyes() -> None:
    url = "rediss+sentinel://worker:secret@one:1,two:2/search/0?sentinel_password=hidden&ssl_ca_certs=/ca.pem"
    assert "secret" not in redact(url) and "hidden" not in redact(url)
    address = parse(url)
    assert (address.hosts, address.service) == ((("one", 1), ("two", 2)), "search")
    assert address.login == (("password", "hidden"),)
    assert address.options["password"] == "secret"


def test_sentinels_that_are_away_are_told(tmp_path: Path) -> None:
    with pytest.raises(QueueError, match="cannot be reached"), open_broker(f"redis+sentinel://127.0.0.1:{free_port()}/search", tmp_path):
        pass
