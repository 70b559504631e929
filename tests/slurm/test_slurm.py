"""Searches whose workers are jobs of a real Slurm, from the launch to the count of what is left.

The tests depend on their order: two searches go on while one thing after the other happens to their
jobs, and in the end every trial counts once.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from common.search.trial import TrialState
from tests.integration.clusters import ClusterSearch, reachable_place, write_search
from tests.integration.commands import Place, wait_for
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.timeout(900)
QUICK, TRIALS, WORKERS = 200, 40, 4
LOST_WORDS = "its trials go on elsewhere from their saved states"


class Search(ClusterSearch):
    """A search that is launched on Slurm."""

    def __init__(self, here: Place, slurm: Cluster, name: str) -> None:
        super().__init__(here, name, slurm.environment)
        self.slurm = slurm

    def launch(
        self, workers: str, *options: str, log: str = "", setup: str = ""
    ) -> subprocess.Popen[str]:
        """Start a launch and return its process."""
        given = [word for option in options for word in ("--slurm-option", option)]
        given += ["--setup", setup] if setup else []
        return self.start("--launcher", "slurm", "--workers", workers, *given, log=log)

    def jobs(self) -> dict[str, tuple[str, str]]:
        return self.slurm.jobs(f"coarsefine-{self.name}")

    def wait_for_training(self, n: int, where: Callable[[str], bool] = lambda _: True) -> list[str]:
        """Wait until ``n`` jobs train at least, and return those whose id or node is suitable."""

        def suitable() -> list[str]:
            running = self.jobs()
            found = [job for job in self.training() if running.get(job, ("",))[0] == "RUNNING"]
            fit = [job for job in found if where(running[job][1])]
            return fit if len(found) >= n and fit else []

        found: list[str] = self.wait(suitable, f"{n} jobs of {self.name} that train")
        return found

    def wait_for_news(self, job: str, words: str) -> None:
        """Wait until the launch has said these words of a job. Jobs that end alike share a line."""
        self.wait_for_word(rf"Slurm job .*\b{job}\b.* {words}")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A folder with a Redis server that other hosts could reach."""
    path = tmp_path_factory.mktemp("searches")
    with reachable_place(path) as opened:
        opened.write_search(trials=QUICK)
        (path / "search.toml").rename(path / "digits.toml")
        write_search(path, "faults", TRIALS, TRIALS - 6)
        write_search(path, "limit", 3, 2)
        # A worker leaves before a limit that it knows, and this one is to reach it.
        (path / "setup.sh").write_text("unset SLURM_JOB_END_TIME\n")
        yield opened


@pytest.fixture(scope="module")
def digits(here: Place, slurm: Cluster) -> Search:
    return Search(here, slurm, "digits")


@pytest.fixture(scope="module")
def faults(here: Place, slurm: Cluster) -> Search:
    return Search(here, slurm, "faults")


@pytest.fixture(scope="module")
def limit(here: Place, slurm: Cluster) -> Search:
    return Search(here, slurm, "limit")


def test_a_search_of_200_trials_over_an_array_of_4_ends(digits: Search) -> None:
    began = time.monotonic()
    launch = digits.launch(str(WORKERS))
    records = digits.folder.stage("coarse").trials
    digits.wait(lambda: records.is_dir() and any(records.glob("*.json")), "the first record")
    print(f"first record {time.monotonic() - began:.1f} s after `master launch`")
    digits.wait(lambda: launch.poll() is not None, "the end of the launch")
    assert launch.returncode == 0, digits.here.output(digits.log)
    assert len(digits.here.records("digits")) == QUICK
    assert set(digits.jobs()) == {f"1_{task}" for task in range(1, WORKERS + 1)}


def test_jobs_that_a_launch_leaves_are_cancelled_with_the_stage(digits: Search) -> None:
    def left() -> int:
        states = [state for state, _ in digits.jobs().values()]
        return states.count("RUNNING") + states.count("COMPLETING")

    before = left()
    said = digits.run("master", "kill", "--search", "digits", "--stage", "coarse", "--yes")
    told = re.fullmatch(r"stage coarse: killed 0 trials; cancelled (\d) jobs?", said.strip())
    # Some may have ended by themselves meanwhile. Those that are left were cancelled.
    assert told and left() <= int(told[1]) <= before, said
    wait_for(lambda: not left(), "the end of the jobs")


def test_a_launch_that_is_killed_leaves_its_jobs_and_the_next_finds_them(
    faults: Search, limit: Search
) -> None:
    # It goes on beside the others: a time limit takes more than a minute. SIGURG does nothing.
    limit.launch("1", "partition=calm", "time=1", "signal=B:URG@1", setup="setup.sh")
    launch = faults.launch(str(WORKERS), log="killed.log")
    before = faults.wait_for_training(WORKERS)
    os.killpg(launch.pid, signal.SIGKILL)
    launch.wait()
    faults.launch(str(WORKERS))
    faults.wait_for_word(f"{WORKERS} jobs of this search found in Slurm")
    assert set(before) <= set(faults.jobs()) and len(faults.jobs()) == WORKERS


def test_a_requeued_job_comes_back_under_its_number(faults: Search) -> None:
    job = faults.wait_for_training(WORKERS)[0]
    faults.slurm.call("scontrol", "requeue", job)
    faults.wait_for_news(job, "was put back into the queue")
    faults.wait(lambda: faults.jobs()[job][0] == "RUNNING", f"{job} runs again")


def test_a_cancelled_job_gives_its_trials_back_and_is_not_replaced(faults: Search) -> None:
    job = faults.wait_for_training(WORKERS - 1)[-1]
    faults.slurm.call("scancel", job)
    faults.wait_for_news(job, "was cancelled, and no other takes its place")


def test_a_job_that_uses_too_much_memory_is_told_and_replaced(faults: Search) -> None:
    # A trial of the cancelled job would find the file as well.
    faults.wait(
        lambda: "COMPLETING" not in {state for state, _ in faults.jobs().values()},
        "the end of the cancelled job",
    )
    faults.wait_for_training(WORKERS - 1)
    (faults.here.path / "hungry-faults").touch()
    told = faults.wait_for_word(r"Slurm job \S+ on n\d was killed .*memory.*")
    assert "--slurm-option mem=" in told
    faults.wait_for_word("1 job submitted to Slurm: ")
    lines = faults.run("master", "workers").splitlines()
    assert any(re.match(r"job \S+ on n\d was killed .*memory", line) for line in lines)


def test_a_job_of_higher_priority_takes_a_node_and_the_job_comes_back(faults: Search) -> None:
    job = faults.wait_for_training(2, lambda node: node == "n1")[0]
    faults.slurm.call(
        *("sbatch", "--partition=urgent", "--nodelist=n1", "--exclusive", "--output=/dev/null"),
        "--wrap=sleep 1",
    )
    faults.wait_for_news(job, "was put back into the queue")


def test_jobs_of_a_node_that_goes_down_go_on_elsewhere(faults: Search) -> None:
    (job, *_) = faults.wait_for_training(1)
    node = faults.jobs()[job][1]
    faults.slurm.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    faults.wait(lambda: faults.jobs()[job] != ("RUNNING", node), f"{job} no longer runs there")
    # It may have come back by itself, since its daemon answers.
    faults.slurm.call("scontrol", "update", f"nodename={node}", "state=resume", check=False)


def test_the_time_limit_was_reached_and_told(limit: Search) -> None:
    ends = "(left before its end, as it was told to|reached its time limit)"
    limit.wait_for_word(rf"Slurm job \S+ on n3 {ends}; {LOST_WORDS}")
    limit.wait_for_training(1)  # another job has taken its place


@pytest.mark.parametrize("name", ["digits", "faults", "limit"])
def test_nothing_is_lost_and_nothing_counts_twice(here: Place, slurm: Cluster, name: str) -> None:
    (here.path / "wait").unlink(missing_ok=True)
    search = Search(here, slurm, name)

    def left() -> int:
        counts = search.count()[2]
        return counts.get(TrialState.PENDING, 0) + counts.get(TrialState.RUNNING, 0)

    wait_for(lambda: not left(), f"the end of {name}")
    records, endings, counts = search.count()
    n = {"digits": QUICK, "faults": TRIALS, "limit": 3}[name]
    assert len(records) == len(endings) == n
    assert set(records.values()) == set(endings.values()) == {1}
    assert sum(counts.values()) == n and TrialState.FAILED not in counts
