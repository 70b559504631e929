"""Numbers that move: pace, time left, cost, and who trains what, in the dashboard and in status."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.folder.chosen import choose
from common.options import Shared
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.search.trial import Claim, Progress, TrialState, WorkerInfo
from master.commands.redis_commands import status
from master.stages.prepare import Launched
from master.stages.sampling import configurations
from master.stages.source import StageSource
from tests.redis_server import RedisServer, start_redis
from tests.unit.master.test_serve import dashboard, launched, records


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="cf-") as folder, start_redis(Path(folder)) as running:
        yield running


def publish(search: Launched, queue: TrialQueue, n: int) -> None:
    stage = search.search.stage("coarse")
    queue.publish(configurations(search.search, stage, StageSource(search.search.space), range(n)))


def ended(search: Launched, n: int, each_s: float = 2.0) -> None:
    """Trials that a worker trained one after the other until now, as arrays of two."""
    now = time.time()
    for number, record in enumerate(records(search, 0, n)):
        until = now - (n - 1 - number) // 2 * each_s
        times = {"claimed_at": until - each_s, "began_at": until - each_s, "trained_until": until}
        own = {"seconds": each_s, "device": "cpu", "ended_at": until, "array_width": 2, **times}
        search.folder.stage("coarse").write_records([record.model_copy(update=own)])
        os.utime(search.folder.stage("coarse").record_path(record.trial, 1), (until, until))


def test_pace_time_left_and_cost_are_those_of_the_status(
    tmp_path: Path, server: RedisServer
) -> None:
    search = launched(tmp_path)
    ended(search, 20)
    page = dashboard(tmp_path, server.url)
    with server.client() as client:
        queue = TrialQueue(client, search.id)
        publish(search, queue, 30)
        claims = queue.claim("w-1", 2, "r1")
        queue.renew("w-1", [Progress(one.fence, 1, epoch=0.5, array_width=2) for one in claims])
        registry = WorkerRegistry(client)
        registry.announce(WorkerInfo("w-1", "h", 1, "cpu", "EPYC", "training", backend="eager: ?"))
        registry.announce(WorkerInfo("w-2", "h", 2, "cpu", "EPYC"))
        registry.announce(WorkerInfo("w-3", "h", 3, "cpu", "EPYC", search="another"))
        page.watch.tick()
        overview = page.get("/api/searches/digits")
        stage = overview["stages"][0]
        # Two trials at once in two seconds; less where this test has to wait.
        assert 0 < overview["estimate"]["pace"] < 1.4
        assert stage["left_words"].startswith("about ") and stage["pace_words"]
        assert overview["to_come"]["left_words"], "of the stages that are not launched"
        assert stage["cost"]["device_s"] >= 20, "the claimed trials add a moment"
        assert "device-" in overview["cost"]["words"]
        trial = page.get("/api/searches/digits/trials/coarse-0003")
        assert trial["cost"]["device_s"] == pytest.approx(1.0, abs=0.2), "half of two seconds"
        assert [(one["worker"], one["does"]) for one in overview["at_work"]] == [
            ("w-1", "trains"),
            ("w-2", "idle"),
        ]
        first = overview["at_work"][0]
        assert (first["trials"], first["stages"], first["widths"], first["backend"]) == (
            2, {"coarse": 2}, [2], "eager",
        )  # fmt: skip
        _status_has_them_too(tmp_path, server)
        queue.drop()
        for name in ("w-1", "w-2", "w-3"):
            registry.leave(name)
    page.watch.close()


def _status_has_them_too(root: Path, server: RedisServer) -> None:
    chosen = choose(root, None, "digits", print)
    told = status(Shared(redis=server.url, checkpoints=root), chosen, as_json=False)
    assert "to go, about " in told and "cost so far: " in told
    found = json.loads(status(Shared(redis=server.url, checkpoints=root), chosen, as_json=True))
    assert 0 < found["pace"] < 1.4 and found["left_s"] > 0 and found["device_s"]["coarse"] >= 20


def test_a_search_that_rests_has_no_pace(tmp_path: Path) -> None:
    search = launched(tmp_path)
    search.folder.stage("coarse").write_records(records(search, 0, 20))
    page = dashboard(tmp_path)
    page.watch.tick()
    told = page.get("/api/searches/digits")
    assert told["estimate"]["pace"] is None and told["at_work"] == []
    assert told["cost"]["words"] == "", "these records do not say when they trained"
    page.watch.close()


@pytest.mark.parametrize("waits", [False, True])
def test_a_trial_whose_record_is_there_is_not_shown_as_waiting_or_running(
    tmp_path: Path, server: RedisServer, waits: bool
) -> None:
    """Redis hears of the end after the record is there, or has lost what it heard."""
    search = launched(tmp_path)
    page = dashboard(tmp_path, server.url)
    with server.client() as client:
        queue = TrialQueue(client, search.id)
        publish(search, queue, 3)
        claims: list[Claim] = [] if waits else list(queue.claim("w-1", 1, "r1"))
        search.folder.stage("coarse").write_records(records(search, 0, 1))
        page.watch.tick()
        name = claims[0].trial.id if claims else "coarse-0000"
        assert queue.state(name) is (TrialState.PENDING if waits else TrialState.RUNNING)
        detail = page.get("/api/searches/digits/trials/coarse-0000")
        assert (detail["state"], detail["running"]) == ("completed", None)
        assert [row["state"] for row in detail["attempts"]] == ["completed"]
        queue.drop()
    page.watch.close()


def test_a_killed_trial_that_was_sent_back_waits(tmp_path: Path, server: RedisServer) -> None:
    search = launched(tmp_path)
    page = dashboard(tmp_path, server.url)
    with server.client() as client:
        queue = TrialQueue(client, search.id)
        publish(search, queue, 1)
        killed = records(search, 0, 1)[0].model_copy(update={"state": TrialState.KILLED})
        search.folder.stage("coarse").write_records([killed])
        page.watch.tick()
        detail = page.get("/api/searches/digits/trials/coarse-0000")
        assert (detail["state"], [row["state"] for row in detail["attempts"]]) == (
            "pending",
            ["killed"],
        )
        queue.drop()
    page.watch.close()


def test_a_folder_with_another_name_than_its_search_is_told(tmp_path: Path) -> None:
    launched(tmp_path)
    (tmp_path / "digits").rename(tmp_path / "other")
    page = dashboard(tmp_path)
    page.watch.tick()
    assert page.get("/api/searches/other")["search"] == "other"
    (warning,) = page.get("/api/health")["warnings"]
    assert "name = 'digits' is not its folder's name; rename one of the two" in warning
    page.watch.close()
