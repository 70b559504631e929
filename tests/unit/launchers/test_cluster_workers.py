"""Jobs of a search from their submission to their end, with commands that stand in for Slurm's."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.folder.records import SearchFolder
from master.launchers import slurm
from master.launchers.cluster import POLL_S, Bounds, ClusterError, ClusterWorkers, Demand
from master.launchers.endings import MAX_QUICK_DEATHS
from master.launchers.noted import MOST_ENDED, Noted, Notes
from master.launchers.slurm import Script, Slurm
from master.run.jobs import cancel_jobs, describe_jobs

# Each job is a line "ID|STATE|REASON|NODE" of a file. The files `refuse` and `away` have what
# sbatch and squeue say instead of their work.
COMMANDS = {
    "sbatch": """
        if [ -e refuse ]; then cat refuse >&2; exit 1; fi
        n=$(($(cat submitted 2>/dev/null || echo 16) + 1)); echo $n >submitted
        env >environment-$n; umask >umask-$n
        for task in $(seq ${2#--array=1-}); do echo "${n}_$task|PENDING|Priority|" >>jobs; done
        echo $n""",
    "squeue": """
        if [ -e away ]; then cat away >&2; exit 1; fi
        cat jobs""",
    "scancel": """
        for id; do sed -i "s/^$id|[A-Z]*/$id|CANCELLED/" jobs; done""",
    "scontrol": """
        echo "JobId=1 $(cat exit 2>/dev/null || echo ExitCode=1:0) RunTime=00:00:07" """,
}
PLENTY = Demand(200, 0)


class Fake:
    """The commands, the jobs that they know, and the workers of a launch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []
        self.now = 0.0
        self.demand = PLENTY
        self.locked = False
        self.root = path / "checkpoints"
        self.notes = Notes(self.root / "digits", "slurm")
        (path / "jobs").touch()

    def workers(self, bounds: str = "2", **script: object) -> ClusterWorkers:
        given: dict[str, object] = {
            "job_name": "coarsefine-digits",
            "logs": self.notes.folder,
            "folder": self.path,
            "programs": Path("/opt/venv/bin"),
            "command": ["worker", "start"],
        }
        launcher = Slurm(
            self.notes,
            Script(**{**given, **script}),  # type: ignore[arg-type]
            {"REDIS_URL": "redis://:hush@head/0"},
        )
        return ClusterWorkers(
            launcher,
            Bounds.parse(bounds, "slurm"),
            self.notes,
            lambda: self.demand,
            self._lock,
            self.said.append,
            lambda: self.now,
        )

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        yield not self.locked

    def jobs(self) -> dict[str, str]:
        lines = (self.path / "jobs").read_text().splitlines()
        return {line.split("|")[0]: line.split("|")[1] for line in lines}

    def turn(self, id: str, line: str) -> None:
        """Let a job have another state, reason and node; an empty line makes Slurm forget it."""
        lines = (self.path / "jobs").read_text().splitlines()
        changed = [f"{id}|{line}" if one.startswith(f"{id}|") else one for one in lines]
        text = "".join(f"{one}\n" for one in changed if one != f"{id}|")
        (self.path / "jobs").write_text(text)

    def pass_time(self, workers: ClusterWorkers, blameless: bool = False) -> None:
        self.now += POLL_S
        workers.poll(blameless=blameless)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in COMMANDS.items():
        program = programs / name
        program.write_text(f"#!/bin/bash\ncd {tmp_path}\n{body}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return Fake(tmp_path)


def test_a_start_submits_an_array_and_notes_its_jobs(fake: Fake) -> None:
    workers = fake.workers().start()
    assert fake.jobs() == {"17_1": "PENDING", "17_2": "PENDING"}
    assert list(fake.notes.read()) == ["17_1", "17_2"]
    assert fake.said == ["2 jobs submitted to Slurm: 17_1, 17_2"]
    assert not workers.gone and workers.absence == "2 jobs in the queue of Slurm"


def test_no_password_is_in_the_script_or_the_environment_of_the_jobs(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hush@head/0")
    secrets = fake.notes.folder / "environment"
    fake.workers(secrets=secrets).start()
    told = [*fake.path.glob("environment-*"), fake.notes.folder / "worker.sh"]
    assert len(told) == 2 and not [file for file in told if "hush" in file.read_text()]
    assert secrets.read_text() == "export REDIS_URL=redis://:hush@head/0\n"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600


def test_logs_are_for_their_owner_alone(fake: Fake) -> None:
    fake.workers().start()
    assert (fake.path / "umask-17").read_text() == "0077\n"
    assert stat.S_IMODE(fake.notes.folder.stat().st_mode) == 0o700


def test_a_second_launch_finds_the_jobs_of_the_first(fake: Fake) -> None:
    fake.workers("2").start().leave()
    fake.said.clear()
    fake.workers("3").start()
    assert fake.said == [
        "2 jobs of this search found in Slurm",
        "1 job submitted to Slurm: 18_1",
    ]


def test_jobs_are_added_while_trials_wait_and_not_for_idle_workers(fake: Fake) -> None:
    fake.demand = Demand(1, 0)
    workers = fake.workers("4").start()
    fake.turn("17_1", "RUNNING|None|n1")
    fake.demand = Demand(2, 30, busy=frozenset({"17_1"}))
    fake.pass_time(workers)
    assert list(fake.jobs()) == ["17_1", "18_1", "18_2"]
    fake.demand = Demand(1, 30, busy=frozenset({"17_1"}), idle=frozenset({"18_1", "18_2"}))
    fake.pass_time(workers)
    assert list(fake.jobs()) == ["17_1", "18_1", "18_2"]


def test_slurm_is_asked_every_few_seconds_only(fake: Fake) -> None:
    workers = fake.workers().start()
    fake.turn("17_1", "TIMEOUT|TimeLimit|n1")
    workers.poll()
    assert len(fake.jobs()) == 2
    fake.pass_time(workers)
    assert len(fake.jobs()) == 3


def test_another_master_that_submits_is_left_to_do_it(fake: Fake) -> None:
    fake.locked = True
    fake.workers().start()
    assert fake.jobs() == {}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("TIMEOUT|TimeLimit|n1", "on n1 reached its time limit"),
        ("NODE_FAIL|None|n1", "on n1 lost its node"),
        ("PREEMPTED|None|n1", "on n1 was preempted"),
        ("OUT_OF_MEMORY|OutOfMemory|n1", "on n1 was killed because it used more memory"),
        ("FAILED|NonZeroExitCode|n1", "on n1 ended with exit status 1; its log is "),
    ],
)
def test_a_job_that_is_lost_is_told_once_and_replaced(fake: Fake, line: str, told: str) -> None:
    workers = fake.workers().start()
    fake.turn("17_1", line)
    for _ in range(3):
        fake.pass_time(workers)
    assert [text for text in fake.said if text.startswith(f"Slurm job 17_1 {told}")]
    assert sum("17_1 on" in text for text in fake.said) == 1
    assert list(fake.jobs()) == ["17_1", "17_2", "18_1"]
    assert workers.how_ended(0, "17_1").startswith(f"its last worker's job, 17_1, {told[:12]}")
    assert workers.how_ended(0, "17_2") == ""


def test_jobs_that_end_alike_are_told_together(fake: Fake) -> None:
    workers = fake.workers("3").start()
    for task in (1, 2, 3):
        fake.turn(f"17_{task}", "NODE_FAIL|None|n1")
    fake.pass_time(workers)
    told = [text for text in fake.said if "lost its node" in text]
    assert len(told) == 1 and told[0].startswith("Slurm job 17_1 (likewise 17_2, 17_3) on n1 lost")


def test_a_job_that_slurm_requeues_is_told_and_not_replaced(fake: Fake) -> None:
    workers = fake.workers().start()
    fake.turn("17_1", "RUNNING|None|n1")
    fake.pass_time(workers)
    fake.turn("17_1", "PENDING|BeginTime|")
    fake.pass_time(workers)
    assert fake.said[-1] == "Slurm job 17_1 was put back into the queue"
    assert list(fake.jobs()) == ["17_1", "17_2"]


def test_a_cancelled_job_is_not_replaced_and_a_second_launch_submits_another(fake: Fake) -> None:
    workers = fake.workers().start()
    for task in (1, 2):
        fake.turn(f"17_{task}", "CANCELLED|None|n1")
    fake.pass_time(workers)
    fake.pass_time(workers)
    assert len(fake.jobs()) == 2
    assert workers.absence == "its jobs were cancelled; launch again for new ones"
    fake.workers().start()
    assert len(fake.jobs()) == 4


def test_a_job_that_slurm_has_forgotten_has_ended(fake: Fake) -> None:
    workers = fake.workers().start()
    fake.turn("17_1", "")
    fake.pass_time(workers)
    assert list(fake.jobs()) == ["17_2", "18_1"] and "17_1" not in fake.notes.read()


def test_jobs_that_fail_in_a_row_are_given_up_with_the_end_of_a_log(fake: Fake) -> None:
    workers = fake.workers("1").start()
    for number in range(17, 17 + MAX_QUICK_DEATHS):
        assert not workers.given_up
        (fake.notes.folder / f"{number}_1.log").write_text("ModuleNotFoundError: coarsefine\n")
        fake.turn(f"{number}_1", "FAILED|NonZeroExitCode|n1")
        fake.pass_time(workers)
    assert workers.given_up and len(fake.jobs()) == MAX_QUICK_DEATHS
    assert fake.said[-1] == (
        "5 jobs have failed in a row; submitting no more. The log of 21_1 ends with\n"
        "    ModuleNotFoundError: coarsefine"
    )


def test_jobs_whose_workers_trained_do_not_count_where_trials_end_well(fake: Fake) -> None:
    workers = fake.workers("1").start()
    for number in range(17, 18 + MAX_QUICK_DEATHS):
        fake.turn(f"{number}_1", "RUNNING|None|n1")
        fake.demand = Demand(9, 1, busy=frozenset({f"{number}_1"}))
        fake.pass_time(workers)
        fake.turn(f"{number}_1", "OUT_OF_MEMORY|OutOfMemory|n1")
        fake.demand = PLENTY
        fake.pass_time(workers, blameless=True)
    assert not workers.given_up


def test_a_refused_job_is_an_error_with_the_words_of_sbatch(fake: Fake) -> None:
    (fake.path / "refuse").write_text("sbatch: error: invalid partition specified: gpu\n")
    with pytest.raises(ClusterError, match="refused the job: sbatch: error: invalid partition"):
        fake.workers().start()


def test_slurm_may_be_away_for_a_while(fake: Fake) -> None:
    workers = fake.workers().start()
    (fake.path / "away").write_text("squeue: error: Unable to contact slurm controller\n")
    fake.pass_time(workers)
    fake.pass_time(workers)
    told = "squeue refused the question: squeue: error: Unable to contact slurm controller"
    assert fake.said[1:] == [f"{told}; trying again"] and workers.absence == told
    (fake.path / "away").unlink()
    fake.pass_time(workers)
    assert workers.absence == "2 jobs in the queue of Slurm"


def test_a_second_start_is_no_error_where_slurm_is_away(fake: Fake) -> None:
    workers = fake.workers().start()
    (fake.path / "away").write_text("squeue: error: Unable to contact slurm controller\n")
    fake.now += POLL_S
    workers.start()
    assert fake.said[-1].endswith("; trying again")


def test_missing_commands_are_named_with_the_remedy(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.check({})
    monkeypatch.setenv("PATH", str(fake.path))
    with pytest.raises(ConfigError, match=r"no sbatch on the PATH.*login node"):
        slurm.check({})
    with pytest.raises(ConfigError, match="no sbatch on the PATH"):
        fake.workers().start()


def test_a_launch_that_ends_cancels_only_what_has_not_begun_and_only_if_no_trial_is_left(
    fake: Fake,
) -> None:
    workers = fake.workers().start()
    fake.turn("17_1", "RUNNING|None|n1")
    fake.pass_time(workers)
    workers.leave()
    assert set(fake.jobs().values()) == {"RUNNING", "PENDING"}
    fake.demand = Demand(0, 0)
    workers.leave()
    assert fake.jobs() == {"17_1": "RUNNING", "17_2": "CANCELLED"}


def test_a_kill_of_the_stage_cancels_the_noted_jobs_and_no_others(fake: Fake) -> None:
    fake.workers().start()
    with (fake.path / "jobs").open("a") as file:
        file.write("99|RUNNING|None|n2\n")
    assert cancel_jobs(SearchFolder(fake.root, "digits")) == 2
    assert fake.jobs() == {"17_1": "CANCELLED", "17_2": "CANCELLED", "99": "RUNNING"}
    assert cancel_jobs(SearchFolder(fake.root, "digits")) == 0


def test_jobs_are_described_for_everybody_who_asks(fake: Fake) -> None:
    workers = fake.workers("3").start()
    fake.turn("17_1", "RUNNING|None|n1")
    fake.turn("17_2", "PENDING|PartitionTimeLimit|")
    fake.turn("17_3", "OUT_OF_MEMORY|OutOfMemory|n2")
    fake.demand = Demand(0, 0)
    fake.pass_time(workers)
    fake.turn("17_3", "")  # Slurm forgets it some minutes later
    first, *lines = describe_jobs(fake.root)
    assert first == (
        "search 'digits' has 1 running and 1 queued jobs in Slurm, with logs in "
        f"{fake.notes.folder}"
    )
    assert [line.split(":")[0].split("because")[0] for line in lines] == [
        "job 17_2 waits (PartitionTimeLimit)",
        "job 17_3 on n2 was killed ",
    ]


def test_notes_keep_the_last_jobs_that_ended_with_something_to_say(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "digits", "slurm")
    for number in range(1, MOST_ENDED + 4):
        notes.update({f"{number}_1": Noted(phase="ended", words="lost its node")})
    notes.update({"9999_1": Noted(phase="running"), "9999_2": Noted(phase="ended")})
    assert list(notes.read()) == [
        *(f"{number}_1" for number in range(4, MOST_ENDED + 4)),
        "9999_1",
    ]
