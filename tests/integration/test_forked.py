"""The fork server as a real process, and what it forks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from common.errors import CheckpointError
from master.launchers import forked
from master.launchers.forked import (
    PROGRAM,
    Forked,
    ForkServer,
    can_fork,
    start_early,
    start_process,
)
from master.launchers.local import LocalWorkers
from master.launchers.processes import Child, Elsewhere, beginning
from tests.integration.commands import DEADLINE_S, wait_for
from tests.integration.processes import alive


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("checkpoints")).start()
    yield server
    server.close()
    if server._process is not None:
        server._process.wait(DEADLINE_S)


class Place:
    """A folder, with an output, for processes that are forked."""

    def __init__(self, path: Path, server: ForkServer) -> None:
        self.path, self.log, self.server = path, path / "log", server
        self.forked: list[Forked] = []

    def fork(self, *words: str, bound: bool = False, **environ: str) -> Forked:
        with self.log.open("ab") as output:
            found = self.server.fork(
                words, {**os.environ, **environ}, output.fileno(), output.fileno(), bound
            )
        assert found is not None
        self.forked.append(found)
        return found

    def worker(self, bound: bool = False, **environ: str) -> Forked:
        """One that is up and idle."""
        known = self.said().count("folder")
        found = self.fork(
            "start",
            "--device",
            "cpu",
            "--checkpoints",
            str(self.path / "checkpoints"),
            bound=bound,
            **environ,
        )
        wait_for(lambda: self.said().count("folder") > known, "the worker is up")
        return found

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def end_redis(self) -> None:
        """The embedded server, which outlives workers that are killed."""
        found = self.path / "checkpoints/.redis/server.json"
        with contextlib.suppress(redis.RedisError, FileNotFoundError):
            redis.Redis(unix_socket_path=json.loads(found.read_text())["socket"]).shutdown(
                nosave=True
            )


@pytest.fixture
def here(tmp_path: Path, server: ForkServer) -> Iterator[Place]:
    place = Place(tmp_path, server)
    yield place
    for process in place.forked:
        Elsewhere(process.pid).terminate()
    for process in place.forked:
        process.wait(DEADLINE_S)
    place.end_redis()


def test_a_forked_worker_is_a_worker_of_its_own_session_and_environment(here: Place) -> None:
    worker = here.worker(DATA_DIR="/nowhere")
    assert os.getsid(worker.pid) == worker.pid and worker.poll() is None
    assert Path(f"/proc/{worker.pid}/comm").read_text() == "worker\n"
    assert str(Path(f"/proc/{worker.pid}/fd/0").readlink()) == os.devnull
    kept = [link.readlink() for link in Path(f"/proc/{worker.pid}/fd").iterdir() if link.exists()]
    assert (
        Path(f"/proc/{here.server.pid}/fd/0").readlink() not in kept
    )  # so that the server's end is not held up by it
    worker.terminate()
    assert worker.wait(DEADLINE_S) == 143 == worker.returncode
    assert f"worker {worker.pid}: left" in here.said()


def test_how_a_forked_process_ended_is_heard(here: Place) -> None:
    assert here.fork("start", "--device", "nonsense").wait(DEADLINE_S) == 2
    assert "error: --device nonsense" in here.said()
    killed = here.worker()
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait(DEADLINE_S) == -signal.SIGKILL == killed.poll()
    assert not Path(f"/proc/{killed.pid}").exists()  # waited for: no zombie is left
    with pytest.raises(subprocess.TimeoutExpired):
        here.worker().wait(0.05)


def test_all_that_a_forked_process_has_started_ends_with_it(here: Place) -> None:
    worker = here.worker()
    worker.kill_all()
    assert worker.wait(DEADLINE_S) == -signal.SIGKILL


def test_each_draws_numbers_of_its_own_and_knows_its_command_line(
    here: Place, tmp_path: Path
) -> None:
    (tmp_path / "drawing.py").write_text(
        "import json, random, sys\nimport numpy, torch\n"
        "print(json.dumps([random.random(), float(numpy.random.rand()), "
        "torch.initial_seed(), sys.argv, torch.get_num_threads()]), "
        "file=sys.stderr)\n"
        "class Task:\n    def data(self): raise ValueError('seen')\n"
        "    def model(self, hp): raise ValueError\n"
    )
    search = tmp_path / "search.toml"
    search.write_text(
        'name = "s"\ntask = "drawing.py:Task"\nseed = 1\n[space]\nlearning_rate = 0.1\n'
        "[stages.a]\ntrials = 1\nepochs = 1\n"
    )
    words = (
        "check",
        "--config",
        str(search),
        "--checkpoints",
        str(tmp_path / "checkpoints"),
        "--json",
    )
    here.fork(*words).wait(DEADLINE_S)
    here.fork(*words).wait(DEADLINE_S)
    fresh = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False)
    lines = [line for line in (here.said() + fresh.stderr).splitlines() if line.startswith("[")]
    one, two, other = map(json.loads, lines)
    assert all(mine != yours for mine, yours in zip(one[:3], two[:3], strict=True))
    assert one[3][0].endswith("worker") and one[3][1:] == list(words) == other[3][1:]
    assert one[4] == other[4]


def test_checks_come_back_with_code_and_output(
    server: ForkServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = server.check(["check", "--checkpoints", str(tmp_path), "--json", "--table"])
    assert done is not None and done.returncode == 0
    assert json.loads(done.stdout)["passed"]
    assert "gradient at the start" in capfd.readouterr().err
    wrong = server.check(["check", "--search", "none", "--checkpoints", str(tmp_path), "--json"])
    assert wrong is not None and (wrong.returncode, wrong.stdout) == (2, b"")


def test_checks_asked_for_before_all_is_loaded_are_done_and_heard(tmp_path: Path) -> None:
    server = ForkServer(tmp_path)
    try:
        done = server.check(["check", "--checkpoints", str(tmp_path), "--json"])  # the first word
        assert done is not None and done.returncode == 0 and json.loads(done.stdout)["passed"]
        worker = Place(tmp_path, server).worker()
        worker.terminate()
        assert (worker.wait(DEADLINE_S), worker.unknown) == (143, False)
    finally:
        server.close()


def test_when_the_master_ends_the_server_ends_and_workers_go_on_but_for_what_is_bound(
    tmp_path: Path,
) -> None:
    server = ForkServer(tmp_path)
    place = Place(tmp_path, server)
    worker, check = place.worker(), place.worker(bound=True)
    assert server.pid is not None
    server.close()  # as the end of the process does
    wait_for(lambda: not alive(server.pid or 0) and not server.usable, "the server has left")
    wait_for(lambda: check.poll() is not None, "what was bound has been told")
    assert worker.poll() is None
    worker.terminate()
    assert (worker.wait(DEADLINE_S), worker.unknown) == (0, True)


def test_a_server_that_died_costs_nothing_but_time(tmp_path: Path) -> None:
    server = ForkServer(tmp_path)
    place = Place(tmp_path, server)
    worker = place.worker()
    os.kill(server.pid or 0, signal.SIGKILL)
    wait_for(lambda: not server.usable, "it is seen")
    assert worker.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.05)
    assert server.check(["check"]) is None
    with place.log.open("ab") as output:
        other = start_process([*PROGRAM, "--help"], None, output.fileno(), server)
    assert isinstance(other, Child) and other.wait(DEADLINE_S) == 0
    worker.kill_all()
    assert worker.wait(DEADLINE_S) == 0 and worker.unknown
    place.end_redis()


def test_what_is_no_worker_is_not_forked(server: ForkServer, tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as output:
        process = start_process(["true"], None, output.fileno(), server)
    assert isinstance(process, Child) and process.wait(DEADLINE_S) == 0


def test_an_environment_too_large_for_a_packet_is_started_the_other_way(
    server: ForkServer, tmp_path: Path
) -> None:
    environ = {**os.environ, **{f"LARGE_{n}": "x" * 100_000 for n in range(5)}}
    with (tmp_path / "log").open("ab") as output:
        process = start_process([*PROGRAM, "--help"], environ, output.fileno(), server)
    assert isinstance(process, Child) and process.wait(DEADLINE_S) == 0 and server.usable


def test_local_workers_are_forked_restarted_and_stopped(server: ForkServer, tmp_path: Path) -> None:
    said: list[str] = []
    command = [*PROGRAM, "start", "--device", "cpu", "--checkpoints", str(tmp_path), "--local", "2"]
    workers = LocalWorkers(command, 2, tmp_path / "logs", said.append, spawner=server).start()
    try:
        first, second = workers.pids
        assert Path(f"/proc/{first}/stat").read_text().split()[3] == str(server.pid)
        os.kill(first, signal.SIGKILL)
        wait_for(
            lambda: not alive(first) and (workers.poll() or first not in workers.pids),
            "its death is seen",
        )
        assert "local worker 1 died (SIGKILL)" in said[0]
        wait_for(lambda: workers.poll() or len(workers.pids) == 2, "another is started")
    finally:
        pids = workers.pids
        workers.stop()
    assert second in pids and not any(map(alive, pids))
    with pytest.raises(CheckpointError):
        LocalWorkers(
            command, 1, tmp_path / "logs" / "worker-1.log", said.append, spawner=server
        ).start()


def test_no_server_where_gpus_are_or_nothing_can_be_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(forked, "DRIVER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert can_fork()
    monkeypatch.setattr(forked, "DRIVER", tmp_path)
    assert not can_fork() and start_early(tmp_path) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert can_fork()
    monkeypatch.setattr(forked, "find_spec", lambda name: None if name == "torch" else object())
    assert not can_fork()


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        assert Elsewhere(child.pid, "7").poll() == 0
        Elsewhere(child.pid, "7").kill_all()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.05)
        known = Elsewhere(child.pid, beginning(child.pid))
        assert known.poll() is None
        known.terminate()
        assert known.wait(DEADLINE_S) == 0  # a zombie, until we wait for it
        assert child.wait(DEADLINE_S) == -signal.SIGTERM
    finally:
        child.kill()
