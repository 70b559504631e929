"""Redis as users have it: watched by Sentinel, as a Cluster, and with a limit on its memory."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from common.broker.connection import open_broker
from common.broker.eviction import eviction_warning
from common.broker.urls import parse
from common.errors import ConfigError, QueueError
from common.queue.answers import Verdict
from common.queue.trial_queue import TrialQueue, searches
from common.queue.wire import curves_out
from common.queue.workers import WorkerRegistry
from common.redact import redact
from common.search.trial import Progress, Result, Trial, TrialState, WorkerInfo, trial_id
from tests.integration.commands import Place, wait_for
from tests.integration.servers import a_cluster, a_sentinel, free_port, running

SEARCH = "0123456789abcdef"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    with a_cluster(tmp_path) as nodes:
        yield nodes.url


def trials(n: int) -> list[Trial]:
    return [
        Trial(trial_id("coarse", i), "coarse", i, i, 1.0, {"learning_rate": 0.1}, "{}")
        for i in range(n)
    ]


def test_a_search_runs_on_a_cluster(cluster: str, tmp_path: Path) -> None:
    place = Place(tmp_path, cluster)
    place.write_search(trials=6)
    launched = place.run("master", "launch", "--stage", "coarse", "--workers", "1")
    assert launched.returncode == 0, launched.stderr
    status = json.loads(place.run("master", "status", "--json").stdout)
    assert status["stages"]["coarse"]["completed"] == 6
    assert place.run("master", "workers").returncode == 0


def test_every_word_is_understood_by_a_cluster(cluster: str, tmp_path: Path) -> None:
    """A Cluster's client alone refuses keyless commands in pipelines and keys of several slots."""
    with open_broker(cluster, tmp_path) as broker:
        assert eviction_warning(broker) is None
        queue, registry, (trial, *_) = (
            TrialQueue(broker.client, SEARCH),
            WorkerRegistry(broker.client),
            trials(5),
        )
        queue.register("digits")
        assert searches(broker.client) == [(SEARCH, "digits")]
        assert not queue.master_alive() and queue.freeze("coarse", {"seed": 1}) == queue.frozen(
            "coarse"
        )
        queue.refreeze("coarse", "task_digest", "0")
        queue.restore(trial, 1, Result(TrialState.COMPLETED))
        assert queue.publish(trials(5)) == 4
        first, second, third, fourth = queue.claim("worker", 4, "request", machine="m")
        queue.tick(master=True)
        assert (
            queue.master_alive()
            and queue.live_workers() == {"worker"}
            and queue.count_unfinished() == len(queue.running()) == 4
        )
        curves = {first.trial.id: curves_out({"epoch": [1.0], "val_acc": [0.5]})}
        assert queue.renew("worker", [Progress(first.fence, 1)], curves) == {} and queue.curves(
            first.trial.id
        )
        queue.finish([(first.fence, Result(TrialState.COMPLETED))])
        queue.fail([(second.fence, "raised")])
        queue.release([second.fence])
        assert (
            queue.take(third.fence)
            and queue.kill(fourth.trial.id, "by hand")
            and queue.retry(fourth.trial.id)
        )
        assert queue.expire(third.fence) is None
        with queue.lock("janitor", 10.0) as held:
            assert held
        assert (
            queue.pending_total() == 3
            and len(queue.by_state(TrialState.COMPLETED)) == len(queue.read_endings(0)) == 2
        )
        assert len(list(queue.trials())) == len(queue.trials_of([t.id for t in trials(5)])) == 5
        assert (
            queue.result(trial.id)
            and queue.attempt(trial.id) == 1
            and queue.state(trial.id) is TrialState.COMPLETED
        )
        assert queue.promote([first.trial.promote(2.0)]) == [] and queue.endings_of([trial.id])
        queue.bells.work.wait()
        TrialQueue(broker.client, SEARCH).bells.work.ring()
        assert queue.bells.work.wait() and not queue.bells.work.wait(0.01)
        registry.announce(WorkerInfo("worker", "host", 1, "cpu"))
        registry.order_quit("worker")
        registry.mark_slow("worker")
        assert [worker.state for worker in registry.list()] == ["slow"]
        assert "quit" in registry.announce(WorkerInfo("worker", "host", 1, "cpu"))
        registry.leave("worker")
        queue.leave("worker")
        queue.drop()
        assert registry.list() == [] and not queue.counts() and searches(broker.client) == []


def test_a_node_of_the_url_may_be_down(cluster: str, tmp_path: Path) -> None:
    with open_broker(
        cluster.replace("cluster://", f"cluster://127.0.0.1:{free_port()},"), tmp_path
    ) as broker:
        queue = TrialQueue(broker.client, SEARCH)
        queue.publish(trials(3))
        assert "the Redis Cluster at 127.0.0.1" in queue.where
        assert len(queue.claim("worker", 3, "request")) == 3


def test_sentinel_leads_to_the_new_primary(tmp_path: Path) -> None:
    with a_sentinel(tmp_path) as watched, open_broker(watched.url, tmp_path) as broker:
        queue = TrialQueue(broker.client, SEARCH)
        queue.publish(trials(4))
        queue.tick(master=True)
        claims = queue.claim("worker", 4, "first")
        with redis.Redis(port=watched.replica_port) as copy:
            wait_for(lambda: copy.exists(queue.keys["leases"]), "the replica to follow")
        os.kill(watched.primary.pid, signal.SIGKILL)
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
    with (
        running(tmp_path / "small", port) as _,
        open_broker(f"redis://127.0.0.1:{port}/0", tmp_path) as broker,
    ):
        queue = TrialQueue(broker.client, SEARCH)
        queue.publish(trials(50))
        queue.tick(master=True)
        claims = queue.claim("worker", 10, "first")
        broker.client.config_set("maxmemory", 1)
        with pytest.raises(QueueError, match="out of memory; raise its maxmemory"):
            queue.publish(
                [
                    *trials(50),
                    Trial("coarse-0050", "coarse", 50, 50, 1.0, {"learning_rate": 0.1}, "{}"),
                ]
            )
        with pytest.raises(QueueError, match="maxmemory"):
            queue.finish([(claim.fence, Result(TrialState.COMPLETED)) for claim in claims])
        broker.client.config_set("maxmemory", 0)
        assert (
            queue.finish([(claim.fence, Result(TrialState.COMPLETED)) for claim in claims])
            == [Verdict.OK] * 10
        )
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
    url = (
        "rediss+sentinel://worker:secret@one:1,two:2/search/0?sentinel_password=hidden&"
        "ssl_ca_certs=/ca.pem"
    )
    assert "secret" not in redact(url) and "hidden" not in redact(url)
    address = parse(url)
    assert (address.hosts, address.service) == ((("one", 1), ("two", 2)), "search")
    assert address.login == (("password", "hidden"),)
    assert address.options["password"] == "secret"


def test_sentinels_that_are_away_are_told(tmp_path: Path) -> None:
    with (
        pytest.raises(QueueError, match="cannot be reached"),
        open_broker(f"redis+sentinel://127.0.0.1:{free_port()}/search", tmp_path),
    ):
        pass
