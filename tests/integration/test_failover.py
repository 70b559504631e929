"""A search by real processes while its Redis changes.

The cases are a node of a Cluster, the primary that Sentinel watches, and a full memory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from common.broker.connection import open_broker
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from tests.contract.trials import check_consistent
from tests.integration.commands import DEADLINE_S, Place, place, wait_for
from tests.integration.servers import NODE, a_cluster, a_sentinel, free_port, running
from tests.integration.test_faults import ended_once

N = 8
NAMES = [f"coarse-{number:04d}" for number in range(N)]
AWAY, BACK = "trying again until Redis is back", "Redis is back; going on"
MASTER, WORKER = "master.log", "worker.log"
LOGS = (MASTER, WORKER)
TASK = Path(__file__).parent / "tasks" / "gated.py"


@dataclass
class Going:
    """A search with one master and one worker.

    Two trials have ended, one waits half-way for ``go_on``, and the others are in the queue.
    """

    here: Place
    master: subprocess.Popen[str]
    queue: TrialQueue
    gate: Path

    def go_on(self) -> None:
        self.gate.touch()

    def trains_on(self) -> None:
        """The trial in its middle comes to its end while nobody can tell Redis of it."""
        before = len(self.here.records())
        self.go_on()
        wait_for(lambda: len(self.here.records()) > before, "the trial to be trained to its end")
        assert self.master.poll() is None

    def ends_once(self) -> dict[str, int]:
        """Wait for the end; return the attempt with which each trial has ended.

        By both witnesses each trial has ended once.
        """
        here, queue = self.here, self.queue
        assert self.master.wait(DEADLINE_S) == 0, here.output(MASTER)
        assert sorted(trial for _, trial, _, _ in queue.read_endings(0)) == NAMES
        check_consistent(queue)
        tried = [(record["trial"], record["attempt"]) for record in here.records()]
        assert len(set(tried)) == len(tried) and sorted({trial for trial, _ in tried}) == NAMES
        return ended_once(here, N)

    def said(self, words: str) -> list[int]:
        """Count how often the master and the worker have printed a text.

        The worker idles until it is stopped.
        """
        for log in LOGS:
            assert "Traceback" not in self.here.output(log), self.here.output(log)
        return [self.here.output(log).count(words) for log in LOGS]


def begun(stack: ExitStack, here: Place, lease_s: float = 30.0) -> Going:
    """Launches a search, and returns when a trial is known to be in its middle."""
    shutil.copy(TASK, here.path)
    here.write_search(task=f"{TASK.name}:train", trials=N, epochs=3, lease_s=lease_s)
    gate = here.path / "gate"
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "0", log=MASTER)
    here.start("worker", "start", log=WORKER, GATE=str(gate))
    search = wait_for(SearchFolder(here.root, "digits").search, "the search's folder")
    broker = stack.enter_context(open_broker(here.redis_url, here.root))
    queue = TrialQueue(broker.client, search.id)
    wait_for(
        lambda: len(here.records()) == 2 and [trial for trial in queue.running() if trial.progress],
        "a trial in its middle",
    )
    return Going(here, master, queue, gate)


@pytest.mark.faults
def test_the_node_of_a_cluster_that_has_the_search_is_killed_and_comes_back(tmp_path: Path) -> None:
    with (
        a_cluster(tmp_path / "nodes") as nodes,
        place(tmp_path, nodes.url) as here,
        ExitStack() as stack,
    ):
        search = begun(stack, here)
        port = nodes.port_of(search.queue.keys["states"])
        os.kill(nodes.nodes[port].pid, signal.SIGKILL)
        wait_for(lambda: search.said(AWAY) == [1, 1], "master and worker to say so")
        search.trains_on()
        stack.enter_context(running(nodes.folder / str(port), port, *NODE))
        wait_for(lambda: search.said(BACK) == [1, 1], "master and worker to go on")
        assert set(search.ends_once().values()) == {1}, "an outage costs no trial its attempt"
        assert search.said(AWAY) == search.said(BACK) == [1, 1], "told once"


@pytest.mark.faults
def test_the_primary_is_killed_and_sentinel_promotes_its_replica(tmp_path: Path) -> None:
    with (
        a_sentinel(tmp_path) as watched,
        place(tmp_path, watched.url) as here,
        ExitStack() as stack,
    ):
        search = begun(stack, here, lease_s=5.0)
        with redis.Redis(port=watched.replica_port, decode_responses=True) as replica:
            wait_for(
                lambda: replica.zcard(search.queue.keys["leases"]) == 1, "the replica to follow"
            )
            os.kill(watched.primary.pid, signal.SIGKILL)
            search.trains_on()
            wait_for(lambda: replica.info("replication")["role"] == "master", "the failover")
            # On a busy machine the Sentinel may name no primary for a moment: ask the new one.
            promoted = stack.enter_context(
                open_broker(f"redis://127.0.0.1:{watched.replica_port}/0", here.root)
            )
            search.queue = TrialQueue(promoted.client, search.queue.search_id)
            search.ends_once()
            assert replica.hlen(search.queue.keys["results"]) == N
        wait_for(
            lambda: search.said(AWAY) == search.said(BACK), "both to have noticed that it is back"
        )  # the worker's next beat
        assert max(search.said(AWAY)) <= 1, "told once"


@pytest.mark.faults
def test_a_full_memory_is_told_once_and_trials_train_on(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path / "small", port), redis.Redis(port=port) as admin, ExitStack() as stack:
        search = begun(stack, stack.enter_context(place(tmp_path, f"redis://127.0.0.1:{port}/0")))
        results = search.queue.keys["results"]
        admin.config_set("maxmemory", admin.info("memory")["used_memory"] // 2)
        wait_for(
            lambda: search.said("out of memory; raise its maxmemory") == [1, 1],
            "master and worker to name the remedy",
        )
        search.trains_on()
        refused = refusals(admin)
        wait_for(lambda: refusals(admin) > refused + 15, "both to have tried again and again")
        assert admin.hlen(results) == 2, "Redis takes no word of it"
        admin.config_set("maxmemory", 0)
        assert set(search.ends_once().values()) == {1}, "refusals cost no trial its attempt"
        wait_for(
            lambda: search.said(BACK) == [1, 1], "both to have noticed that it is back"
        )  # the worker's next beat
        assert search.said("out of memory") == [1, 1], "told once"


def refusals(admin: redis.Redis) -> int:
    """How many commands the server has refused for want of memory."""
    return int(admin.info("errorstats")["errorstat_OOM"]["count"])


def test_a_server_that_drops_keys_in_silence_is_told_of_by_master_and_worker(
    tmp_path: Path,
) -> None:
    port = free_port()
    limits = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with (
        running(tmp_path / "small", port, *limits),
        place(tmp_path, f"redis://127.0.0.1:{port}/0") as here,
    ):
        here.write_search(trials=2)
        launched = here.run("master", "launch", "--stage", "coarse", "--workers", "0", "--detach")
        worked = here.run("worker", "start", "--burst")
        for done in (launched, worked):
            assert (
                done.returncode == 0
                and done.stderr.count("CONFIG SET maxmemory-policy noeviction") == 1
            ), done.stderr
