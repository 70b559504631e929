"""Run `master` and `worker` as a user does.

The processes and Redis are real, and each place has its own folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

DEADLINE_S = 400.0  # only there to stop a hang, on a machine that does much else
BUSY_S = 40.0  # for what takes ten seconds at most on a machine that does nothing else

SEARCH = """
name = "{name}"
task = "{task}"
seed = {seed}
[space]
learning_rate = {{ log_uniform = [{low}, {high}] }}
weight_decay = {{ log_uniform = [1e-7, 1e-2] }}
dropout = {{ uniform = [0.0, 0.5] }}
hidden = {hidden}
batch_size = 64
{space}
[stages.coarse]
trials = {trials}
epochs = {epochs}
[stages.fine]
trials = 8
epochs = 3
[stragglers]
lease_s = {lease_s}
{stragglers}
"""


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Polls until ``condition`` is true; its value."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {deadline_s:g} s in vain for {what}")


def without_checks(command: Sequence[str]) -> list[str]:
    """The command; a launch leaves the checks before learning out."""
    return [*command, "--skip-check"] if "launch" in command else [*command]


class Place:
    """A folder with a search file and a checkpoint root, and the processes started in it."""

    def __init__(self, path: Path, redis_url: str | None = None) -> None:
        self.path = path
        self.root = path / "checkpoints"
        self.redis_url = redis_url
        self._started: list[subprocess.Popen[str]] = []

    def write_search(self, name: str = "digits", **values: Any) -> Path:
        defaults: dict[str, Any] = {
            "task": "digits", "seed": 1, "low": 1e-3, "high": 1.0, "trials": 24, "epochs": 1,
            "lease_s": 30, "space": "", "stragglers": "",
            "hidden": "{ choice = [16, 24] }",
        }  # fmt: skip
        file = self.path / "search.toml"
        file.write_text(SEARCH.format(name=name, **{**defaults, **values}))
        return file

    @property
    def environment(self) -> dict[str, str]:
        clean = {
            k: v
            for k, v in os.environ.items()
            if k not in ("REDIS_URL", "CHECKPOINT_DIR", "REDIS_PASSWORD_FILE")
        }
        return {
            **clean,
            **({"REDIS_URL": self.redis_url} if self.redis_url else {}),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "120",
        }

    def run(
        self, *command: str, timeout: float = DEADLINE_S, checks: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end.

        A launch skips the checks before learning, which take seconds, unless asked for them.
        """
        return subprocess.run(
            [sys.executable, "-P", "-m", *(command if checks else without_checks(command))],
            cwd=self.path,
            env={**self.environment, **environment},
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def start(
        self, *command: str, log: str = "", network: str = "", **environment: str
    ) -> subprocess.Popen[str]:
        """Starts a command in a session of its own; its output goes to a file.

        With ``network`` it runs in the network namespace of this name.
        """
        within = ["ip", "netns", "exec", network] if network else []
        file = self.path / (log or f"{command[0]}-{len(self._started)}.log")
        with file.open("w") as out:
            process = subprocess.Popen(
                [*within, sys.executable, "-P", "-m", *without_checks(command)],
                cwd=self.path,
                env={**self.environment, **environment},
                text=True,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def output(self, log: str) -> str:
        return (self.path / log).read_text()

    def logs(self) -> list[str]:
        """The output of every command that was started, and of the local workers."""
        return [
            file.read_text() for file in [*self.path.glob("*.log"), *self.root.glob("*/logs/*.log")]
        ]

    def stop(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()

    # -- what can be seen --------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        done = self.run("master", "status", "--json")
        assert done.returncode == 0, done.stderr
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    def rank(self, stage: str = "coarse") -> list[dict[str, Any]]:
        done = self.run("master", "rank", "--stage", stage, "--format", "json")
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def records(self, search: str = "digits", stage: str = "coarse") -> list[dict[str, Any]]:
        files = sorted((self.root / search / stage / "trials").glob("*.json"))
        return [json.loads(file.read_text()) for file in files]

    def redis_pid(self) -> int:
        """The embedded server's process."""
        with self.connection() as client:
            return int(client.info("server")["process_id"])

    def connection(self) -> redis.Redis:
        """A connection of our own, for what happens too fast to be seen by commands."""
        if self.redis_url is not None:
            return redis.Redis.from_url(self.redis_url)
        return redis.Redis(unix_socket_path=str(self.root / ".redis" / "redis.sock"))

    def worker_pids(self) -> list[int]:
        """The processes of local workers of this place, found by their command line."""
        found = []
        for pid, line in self._processes():
            with contextlib.suppress(OSError):
                forks = (
                    b"fork-server" in line and Path(f"/proc/{pid}/comm").read_text() != "worker\n"
                )  # the server, not what it has forked
                if b"worker" in line and not forks:
                    found.append(pid)
        return found

    def left_pids(self) -> list[int]:
        """Return the processes that outlive a command of this place.

        These are workers that stay for the next command, and the process that draws a report.
        """
        return [pid for pid, line in self._processes() if b"worker" in line or b"report" in line]

    def _processes(self) -> Iterator[tuple[int, list[bytes]]]:
        """Return id and command line of live processes that name this checkpoint root."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().split(b"\0")
                    state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                    if str(self.root).encode() in line and state != "Z":
                        yield int(entry.name), line


@contextlib.contextmanager
def place(path: Path, redis_url: str | None = None) -> Iterator[Place]:
    """A place whose processes are gone when the block ends."""
    here = Place(path, redis_url)
    try:
        yield here
    finally:
        here.stop()
        for pid in here.left_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if here.redis_url is None and (here.root / ".redis" / "redis.sock").exists():
            with contextlib.suppress(
                redis.ConnectionError
            ):  # its users were killed, so that none of them stopped it
                os.kill(here.redis_pid(), signal.SIGKILL)
