"""A search whose workers are actors of a real Ray, from the launch to the count of what is left.

The tests depend on their order: one search goes on while one thing after the other happens to its
actors, and in the end every trial counts once.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.slurm
from common.broker.connection import open_broker
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.search.trial import TrialState
from tests.integration.commands import Place, place, wait_for
from tests.ray.cluster import Cluster

pytestmark = pytest.mark.timeout(900)
TRIALS, WORKERS = 24, 2
LOG = "launch.log"
# Files beside the search file say when its last trials may end.
LOOP = Path(next(iter(tests.slurm.__path__))) / "loop.py"
SEARCH = """
name = "actors"
task = "loop.py:train"
metric = "val_loss"
mode = "min"
[space]
x = {{ uniform = [0.0, 1.0] }}
folder = "{folder}"
first_to_wait = {first_to_wait}
[stages.coarse]
trials = {trials}
epochs = 6
[stragglers]
lease_s = 6
"""


class Search:
    """The search, and what can be seen of it."""

    def __init__(self, here: Place, ray: Cluster) -> None:
        self.here = here
        self.ray = ray
        self.launch: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.launch = self.here.start(
            *("master", "launch", "--config", "actors.toml", "--stage", "coarse"),
            *("--launcher", "ray", "--workers", str(WORKERS)),
            log=LOG,
            **self.ray.environment,
        )

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until a condition holds, and no longer than the launch is well."""

        def holds() -> Any:
            value, launch = condition(), self.launch
            assert value or launch is None or launch.poll() is None, self.here.output(LOG)
            return value

        return wait_for(holds, f"{what}; the launch has said\n{self.here.output(LOG)}")

    def wait_for_word(self, pattern: str) -> None:
        self.wait(lambda: re.search(pattern, self.here.output(LOG)), repr(pattern))

    def run(self, *command: str) -> str:
        done = self.here.run(*command, **self.ray.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def training(self) -> dict[str, int]:
        """Return the jobs whose worker has trials, with its process."""
        with open_broker(None, self.here.root) as broker:
            found = WorkerRegistry(broker.client).list()
        return {info.job: info.pid for info in found if info.trials and info.state != "lost"}

    def wait_for_training(self, but: int = 0) -> dict[str, int]:
        """Wait until all workers train, of which none has a certain process."""

        def all_train() -> dict[str, int]:
            found = self.training()
            return found if len(found) == WORKERS and but not in found.values() else {}

        found: dict[str, int] = self.wait(all_train, f"{WORKERS} workers that train")
        return found


@pytest.fixture(scope="module")
def search(ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    path = tmp_path_factory.mktemp("searches")
    with place(path) as here:
        shutil.copy(LOOP, path)
        (path / "wait").touch()
        text = SEARCH.format(folder=path, first_to_wait=TRIALS - 4, trials=TRIALS)
        (path / "actors.toml").write_text(text)
        done = here.run("master", "redis", "start", "--host", "127.0.0.1")
        assert done.returncode == 0, done.stderr
        try:
            yield Search(here, ray_cluster)
        finally:
            here.run("master", "redis", "stop")


def parent(pid: int) -> int:
    """Return the parent of a process: for a worker, that of its actor."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_launch_starts_an_actor_for_each_worker(search: Search) -> None:
    search.start()
    search.wait_for_word("2 jobs submitted to Ray: actors-1-1, actors-1-2")
    assert set(search.wait_for_training()) == {"actors-1-1", "actors-1-2"}
    said = search.run("master", "workers")
    assert "search 'actors' has 2 running and 0 queued jobs in Ray, with logs in " in said


def test_a_launch_that_is_killed_leaves_its_actors_and_the_next_finds_them(search: Search) -> None:
    before = search.training()
    assert search.launch is not None
    os.killpg(search.launch.pid, signal.SIGKILL)
    search.launch.wait()
    search.start()
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
    assert search.launch is not None
    assert search.launch.wait() == 0, search.here.output(LOG)
    folder = SearchFolder(search.here.root, "actors")
    launched = folder.search()
    assert launched is not None and launched.id is not None
    with open_broker(None, search.here.root) as broker:
        queue = TrialQueue(broker.client, launched.id)
        endings = Counter(trial for _, trial, _, _ in queue.read_endings(0, 10_000))
        counts = {state: n for state, n in queue.counts()["coarse"].items() if n}
    records = Counter(one["trial"] for one in search.here.records("actors") if "trial" in one)
    assert len(records) == len(endings) == TRIALS
    assert set(records.values()) == set(endings.values()) == {1}
    assert counts == {TrialState.COMPLETED: TRIALS}


def test_actors_that_a_launch_leaves_are_cancelled_with_the_stage(search: Search) -> None:
    with open_broker(None, search.here.root) as broker:
        left = [info.pid for info in WorkerRegistry(broker.client).list() if info.state == "idle"]
    said = search.run("master", "kill", "--search", "actors", "--stage", "coarse", "--yes")
    assert re.fullmatch(r"stage coarse: killed 0 trials; cancelled 2 jobs\n", said)
    wait_for(lambda: not any(map(is_there, left)), "the end of the workers")
    search.launch = None


def test_jobs_that_no_node_can_have_are_told_with_the_remedy(search: Search) -> None:
    text = (search.here.path / "actors.toml").read_text().replace('"actors"', '"large"')
    (search.here.path / "large.toml").write_text(text)
    launch = search.here.start(
        *("master", "launch", "--config", "large.toml", "--stage", "coarse", "--launcher", "ray"),
        *("--workers", "1", "--job-option", "num_gpus=8"),
        log="large.log",
        **search.ray.environment,
    )
    told = "no node of the cluster has num_cpus=1 and num_gpus=8"
    wait_for(lambda: told in search.here.output("large.log"), told)
    launch.send_signal(signal.SIGTERM)
    launch.wait()
    said = search.run("master", "kill", "--search", "large", "--stage", "coarse", "--yes")
    assert "cancelled 1 job" in said
