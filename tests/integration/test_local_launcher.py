"""Local workers as real processes: small ones that do as they are told."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import CheckpointError
from master.launchers.local import LocalWorkers
from tests.integration.commands import wait_for
from tests.integration.processes import alive

SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(['sleep', '600'])
print('child', child.pid, flush=True)
time.sleep(600)
"""


class Launch:
    """Local workers with a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.now = 0.0
        self.workers: LocalWorkers | None = None

    def start(self, code: str, n: int = 1, **environ: str) -> LocalWorkers:
        environment = {**os.environ, **environ}
        command = [sys.executable, "-c", code]
        self.workers = LocalWorkers(
            command,
            n,
            self.folder / "logs",
            self.said.append,
            clock=lambda: self.now,
            environ=environment,
        )
        return self.workers.start()

    def log(self, number: int = 1) -> str:
        path = self.folder / "logs" / f"worker-{number}.log"
        return path.read_text() if path.exists() else ""

    def wait_for_end(self, pid: int) -> None:
        """Until the process has ended and the launcher has seen it."""
        assert self.workers
        wait_for(lambda: not alive(pid), f"process {pid} has ended")
        self.workers.poll()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    launch = Launch(tmp_path)
    yield launch
    if launch.workers:
        launch.workers.stop(timeout_s=0.0)


def test_each_runs_in_a_session_of_its_own_and_writes_to_its_own_file(launch: Launch) -> None:
    workers = launch.start(SLEEPER, n=2)
    wait_for(lambda: launch.log(1) == launch.log(2) == "ready\n", "both have written")
    assert [os.getsid(pid) for pid in workers.pids] == workers.pids


def test_the_environment_reaches_them_and_the_command_line_does_not_show_it(launch: Launch) -> None:
    workers = launch.start(
        "import os, time; print(os.environ['REDIS_URL'], flush=True); time.sleep(600)",
        REDIS_URL="redis://:s3cret@here",
    )
    wait_for(lambda: "s3cret" in launch.log(), "it knows the URL")
    assert "s3cret" not in Path(f"/proc/{workers.pids[0]}/cmdline").read_text()


def test_a_killed_one_is_told_and_started_again_after_a_while(launch: Launch) -> None:
    workers = launch.start(SLEEPER, n=2)
    first, second = workers.pids
    wait_for(lambda: launch.log(1) == "ready\n", "it runs")
    launch.now = 60.0
    os.kill(first, signal.SIGKILL)
    launch.wait_for_end(first)
    assert workers.pids == [second]
    assert launch.said == [
        (
            "local worker 1 died (SIGKILL) after 60 s; starting it again in 1 s. Its output: "
            f"{launch.folder / 'logs' / 'worker-1.log'}"
        )
    ]
    launch.now = 60.9
    workers.poll()
    assert workers.pids == [second]
    launch.now = 61.0
    workers.poll()
    assert len(workers.pids) == 2
    assert first not in workers.pids
    wait_for(
        lambda: launch.log(1) == "ready\nready\n", "the new one writes behind the old one's output"
    )


def test_one_that_left_by_itself_stays_away(launch: Launch) -> None:
    workers = launch.start("print('nothing to do')")
    launch.wait_for_end(workers.pids[0])
    launch.now = 1000.0
    workers.poll()
    assert workers.pids == []
    assert launch.said == []
    assert not workers.given_up


def test_one_that_is_forgotten_stays_away(launch: Launch) -> None:
    workers = launch.start(SLEEPER, n=2)
    first, second = workers.pids
    workers.forget(first)
    os.kill(first, signal.SIGKILL)
    launch.now = 1000.0
    workers.poll()
    assert workers.pids == [second]
    os.waitpid(first, 0)


def test_one_that_keeps_dying_is_given_up_with_the_end_of_its_output(launch: Launch) -> None:
    workers = launch.start(
        "import sys; print('\\n'.join(f'line {n}' for n in range(40))); sys.exit('no "
        "such task: digitz')"
    )
    for death in range(5):
        assert not workers.given_up, death
        launch.wait_for_end(workers.pids[0])
        launch.now += 9.0
        workers.poll()
    assert workers.given_up
    assert workers.pids == []
    assert len(launch.said) == 5
    final = launch.said[-1]
    assert final.startswith(
        "local worker 1 died 5 times, each within 10 s of its start, at last with exit "
        "status 1; giving it up."
    )
    assert f"{launch.folder / 'logs' / 'worker-1.log'}, ends with\n" in final
    assert "    line 39\n    no such task: digitz" in final
    assert "line 20\n" not in final
    launch.now += 1000.0
    workers.poll()
    assert workers.pids == []


def test_deaths_that_its_trials_are_blamed_for_do_not_end_the_pool(launch: Launch) -> None:
    workers = launch.start("import os; os._exit(9)")
    for _ in range(8):
        (pid,) = workers.pids
        wait_for(lambda pid=pid: not alive(pid), f"process {pid} has ended")
        workers.poll(holders={pid}, blameless=True)
        launch.now += 1.0
        workers.poll()
    assert workers.pids and not workers.given_up


def test_one_that_ends_with_status_0_while_it_holds_trials_has_died(launch: Launch) -> None:
    workers = launch.start("import os; os._exit(0)")
    for _ in range(4):
        (pid,) = workers.pids
        wait_for(lambda pid=pid: not alive(pid), f"process {pid} has ended")
        workers.poll(holders={pid})
        launch.now += 9.0
        workers.poll()
    assert workers.pids and "died (exit status 0)" in launch.said[-1]
    launch.wait_for_end(workers.pids[0])  # it gave all back, so it left
    launch.now += 100.0
    workers.poll()
    assert workers.gone and len(launch.said) == 4


def test_the_others_go_on_when_one_is_given_up(launch: Launch) -> None:
    workers = launch.start(SLEEPER, n=2)
    steady = workers.pids[1]
    for _ in range(5):
        pid = workers.pids[0]
        os.kill(pid, signal.SIGKILL)
        launch.wait_for_end(pid)
        launch.now += 9.0
        workers.poll()
    assert workers.pids == [steady]
    assert not workers.given_up


def test_stop_ends_all_and_nothing_starts_again(launch: Launch) -> None:
    workers = launch.start(SLEEPER, n=2)
    pids = workers.pids
    wait_for(lambda: launch.log(1) == launch.log(2) == "ready\n", "both run")
    workers.stop()
    assert not any(map(alive, pids))
    launch.now = 1000.0
    workers.poll()
    assert workers.pids == []
    assert launch.said == []


def test_stop_kills_one_that_does_not_listen_with_what_it_started(launch: Launch) -> None:
    workers = launch.start(STUBBORN)
    wait_for(lambda: "child" in launch.log(), "it ignores SIGTERM")
    pid, child = workers.pids[0], int(launch.log().split()[1])
    workers.stop(timeout_s=0.1)
    assert not alive(pid)
    wait_for(lambda: not alive(child), "its child has ended")


def test_output_that_cannot_be_written(tmp_path: Path, launch: Launch) -> None:
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(CheckpointError, match="a file stands where a folder belongs"):
        launch.start(SLEEPER)


def test_how_one_that_died_ended_is_known_with_its_log(launch: Launch) -> None:
    workers = launch.start("import os, time; print(1, flush=True); time.sleep(600)")
    (pid,) = workers.pids
    assert workers.how_ended(pid) == ""
    os.kill(pid, signal.SIGSEGV)
    launch.wait_for_end(pid)
    assert (
        workers.how_ended(pid)
        == "its last worker was ended by SIGSEGV; its output ends in logs/worker-1.log"
    )
