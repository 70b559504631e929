"""A search whose workers are actors of a real Ray, from the launch to the count of what is left.

The tests depend on their order: one search goes on while one thing after the other happens to its
actors, and in the end every trial counts once.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.broker.connection import open_broker
from common.queue.workers import WorkerRegistry
from common.search.trial import TrialState
from tests.integration.clusters import ClusterSearch, reachable_place, write_search
from tests.integration.commands import Place, wait_for
from tests.ray.cluster import Cluster

pytestmark = pytest.mark.timeout(900)
TRIALS, WORKERS = 24, 2
ON_RAY = ("--launcher", "ray", "--workers")


class Search(ClusterSearch):
    """A search that is launched on Ray."""

    def __init__(self, here: Place, ray: Cluster, name: str) -> None:
        super().__init__(here, name, ray.environment)
        self.ray = ray

    def wait_for_training(self, but: int = 0) -> dict[str, int]:
        """Wait until all workers train, of which none has a certain process."""

        def all_train() -> dict[str, int]:
            found = self.training()
            return found if len(found) == WORKERS and but not in found.values() else {}

        found: dict[str, int] = self.wait(all_train, f"{WORKERS} workers that train")
        return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    path = tmp_path_factory.mktemp("searches")
    with reachable_place(path) as opened:
        for name in ("actors", "large"):
            write_search(path, name, TRIALS, TRIALS - 4)
        yield opened


@pytest.fixture(scope="module")
def search(here: Place, ray_cluster: Cluster) -> Search:
    return Search(here, ray_cluster, "actors")


def parent(pid: int) -> int:
    """Return the parent of a process: for a worker, that of its actor."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_launch_starts_an_actor_for_each_worker(search: Search) -> None:
    search.start(*ON_RAY, str(WORKERS))
    search.wait_for_word("2 jobs submitted to Ray: actors-1-1, actors-1-2")
    assert set(search.wait_for_training()) == {"actors-1-1", "actors-1-2"}
    said = search.run("master", "workers")
    assert "search 'actors' has 2 running and 0 queued jobs in Ray, with logs in " in said


def test_a_launch_that_is_killed_leaves_its_actors_and_the_next_finds_them(search: Search) -> None:
    before = search.training()
    assert search.last is not None
    os.killpg(search.last.pid, signal.SIGKILL)
    search.last.wait()
    search.start(*ON_RAY, str(WORKERS))
    search.wait_for_word("2 jobs of this search found in Ray")
    assert before.items() <= search.wait_for_training().items()


def test_an_actor_that_is_killed_takes_its_worker_along_and_comes_back(search: Search) -> None:
    worker = search.wait_for_training()["actors-1-1"]
    os.kill(parent(worker), signal.SIGKILL)
    search.wait(lambda: not is_there(worker), "the end of the worker")
    search.wait_for_word("Ray job actors-1-1 lost its process, and got another on .*; it begins")
    assert search.wait_for_training(but=worker)["actors-1-1"] != worker


def test_a_worker_that_is_killed_is_told_and_replaced(search: Search) -> None:
    worker = search.wait_for_training()["actors-1-2"]
    os.kill(worker, signal.SIGKILL)
    search.wait_for_word(r"Ray job actors-1-2 on \S+ was killed \(SIGKILL\), perhaps because")
    search.wait_for_word("1 job submitted to Ray: actors-2-1")
    assert set(search.wait_for_training(but=worker)) == {"actors-1-1", "actors-2-1"}


def test_an_actor_whose_node_dies_goes_on_where_there_is_room(search: Search) -> None:
    before = search.wait_for_training()
    search.ray.stop_node("beside")
    (job,) = search.wait(
        lambda: {job for job, pid in before.items() if not is_there(pid)}, "the end of a worker"
    )
    search.ray.start_beside()
    assert search.wait_for_training(but=before[job]).keys() == before.keys()
    search.wait_for_word(f"Ray job {job} lost its process, and got another on .*; it begins")


def test_the_search_ends_with_nothing_lost_and_nothing_counted_twice(search: Search) -> None:
    (search.here.path / "wait").unlink()
    assert search.last is not None
    assert search.last.wait() == 0, search.here.output(search.log)
    records, endings, counts = search.count()
    assert len(records) == len(endings) == TRIALS
    assert set(records.values()) == set(endings.values()) == {1}
    assert counts == {TrialState.COMPLETED: TRIALS}


def test_actors_that_a_launch_leaves_are_cancelled_with_the_stage(search: Search) -> None:
    with open_broker(None, search.here.root) as broker:
        left = [info.pid for info in WorkerRegistry(broker.client).list() if info.state == "idle"]
    said = search.run("master", "kill", "--search", "actors", "--stage", "coarse", "--yes")
    assert re.fullmatch(r"stage coarse: killed 0 trials; cancelled 2 jobs\n", said)
    wait_for(lambda: not any(map(is_there, left)), "the end of the workers")


def test_jobs_that_no_node_can_have_are_told_with_the_remedy(
    here: Place, ray_cluster: Cluster
) -> None:
    search = Search(here, ray_cluster, "large")
    launch = search.start(*ON_RAY, "1", "--job-option", "num_gpus=8")
    search.wait_for_word("no node of the cluster has num_cpus=1 and num_gpus=8")
    launch.send_signal(signal.SIGTERM)
    launch.wait()
    said = search.run("master", "kill", "--search", "large", "--stage", "coarse", "--yes")
    assert "cancelled 1 job" in said
