"""Workers on this machine, in sessions of their own, started again when they die.

What becomes of a worker that has ended (``after_end``), how many there shall be and what their commands are is decided by
functions of values; ``LocalWorkers`` carries it out.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from common.bounded import open_to_append, read_end
from common.broker import Broker
from common.durable import explained, make_folder
from common.options import DATA_FOLDER
from common.records import SearchFolder

QUICK_S = 10.0  # a worker that lives for less has not got to work: importing torch takes a few seconds
MAX_QUICK_DEATHS = 5
FIRST_WAIT_S = 1.0  # before the first restart, doubled with each quick death
STOP_S = 12.0  # a worker promises to be gone ten seconds after SIGTERM
LOG_TAIL_LINES = 12
LOG_TAIL_BYTES = 1 << 14
CPU_WORKERS = 2  # with `--workers auto` and no GPU
GPU_FOLDER = Path("/proc/driver/nvidia/gpus")
GPU_LIST_S = 20.0  # nvidia-smi wakes sleeping devices


class Action(Enum):
    """What becomes of a worker that has ended."""

    LEAVE = "it left by itself, or by order"
    RESTART = "it died"
    GIVE_UP = "it died too often"


@dataclass(frozen=True)
class Next:
    """An action, with the quick deaths in a row so far and the time to wait before a restart."""

    action: Action
    quick_deaths: int = 0
    wait_s: float = 0.0


def after_end(exit_code: int, lived_s: float, quick_deaths: int, held: bool = False) -> Next:
    """Decides about a worker that has ended.

    Args:
        exit_code: 0 where it left by itself or by order; negative the signal that killed it.
        lived_s: from its start to its end.
        quick_deaths: how many times in a row it had died quickly before.
        held: whether it still had trials: who leaves gives them back, so a task has ended it (``os._exit(0)``).
    """
    if exit_code == 0 and not held:
        return Next(Action.LEAVE)
    if lived_s >= QUICK_S:
        return Next(Action.RESTART, 0, FIRST_WAIT_S)
    quick_deaths += 1
    if quick_deaths >= MAX_QUICK_DEATHS:
        return Next(Action.GIVE_UP, quick_deaths)
    return Next(Action.RESTART, quick_deaths, FIRST_WAIT_S * 2 ** (quick_deaths - 1))


def ending(exit_code: int) -> str:
    """``exit status 1`` or ``SIGKILL``."""
    if exit_code >= 0:
        return f"exit status {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def worker_command(search: str, root: Path, together: int = 1, device: str = "auto") -> list[str]:
    """The command line of a local worker. The Redis URL is not in it: a process list shows it to everybody.

    Args:
        search: the only one that it works for.
        root: the checkpoint root.
        together: how many are started with it, which share the cores.
        device: as for `worker start`.
    """
    words = ["--device", device, "--search", search, "--checkpoints", str(root), "--local", str(together)]
    return [sys.executable, "-P", "-m", "worker", "start", *words]


def worker_environment(url: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a local worker.

    Args:
        url: of Redis, None for the embedded server, which a worker finds by the checkpoint root.
        environ: the master's own.
    """
    inherited = {name: value for name, value in environ.items() if name != "REDIS_URL"}
    return {**inherited, "PYTHONUNBUFFERED": "1", **({"REDIS_URL": url} if url else {})}


def visible_gpus(installed: int, visible: str | None) -> int:
    """How many GPUs a process sees.

    Args:
        installed: in the machine.
        visible: ``CUDA_VISIBLE_DEVICES``, None if not set; CUDA reads it up to the first entry that is no device.
    """
    if visible is None:
        return installed
    count = 0
    for entry in visible.split(","):
        named = entry.strip().startswith(("GPU-", "MIG-"))
        if not installed or not (named or (entry.strip().isdecimal() and int(entry) < installed)):
            break
        count += 1
    return count


def auto_count() -> int:
    """How many workers ``--workers auto`` starts: one a GPU, else two on the CPU, or one where it has a single core."""
    gpus = visible_gpus(_installed_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return gpus or min(CPU_WORKERS, cores)


def _installed_gpus() -> int:
    """Counted without torch, which would take seconds to import."""
    program = shutil.which("nvidia-smi")
    if program:
        try:
            answer = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=GPU_LIST_S, check=False)
            return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
        except (OSError, subprocess.TimeoutExpired):
            return 0  # its driver does not answer, so CUDA would not either
    return len(list(GPU_FOLDER.iterdir())) if GPU_FOLDER.is_dir() else 0


def local_workers(n: int, folder: SearchFolder, broker: Broker, say: Callable[[str], None], data: Path = DATA_FOLDER) -> LocalWorkers:
    """``n`` workers for one search, not started yet; ``data``: the folder of built-in data sets."""
    environ = worker_environment(None if broker.embedded else broker.url, os.environ) | {"DATA_DIR": str(data.absolute())}
    return LocalWorkers(worker_command(folder.name, folder.root.resolve(), n), n, folder.path / "logs", say, environ=environ)


class _Worker:
    """One place for a worker: its process, or when the next one is due."""

    def __init__(self, number: int, log: Path) -> None:
        self.name = f"local worker {number}"
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.restart_at: float | None = None
        self.quick_deaths = 0
        self.given_up = False
        self._log_start = 0

    def start(self, command: Sequence[str], environ: Mapping[str, str] | None, now: float) -> None:
        try:
            with os.fdopen(open_to_append(self.log), "ab") as output:
                self._log_start = output.tell()
                self.process = subprocess.Popen(
                    command,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C is for the master alone
                )
        except OSError as error:
            raise explained(error, self.log) from error
        self.started_at, self.restart_at = now, None

    def tail(self) -> str:
        """The last lines since its start, indented."""
        try:
            lines = read_end(self.log, LOG_TAIL_BYTES, self._log_start).decode(errors="replace").splitlines()
        except OSError as error:
            lines = [f"(it cannot be read: {error.strerror})"]
        return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:] or ["(it wrote nothing)"])


class LocalWorkers:
    """Keeps ``n`` workers running on this machine."""

    def __init__(
        self,
        command: Sequence[str],
        n: int,
        log_dir: Path,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Args: ``log_dir``: worker-N.log each; ``environ``: of the workers, None for the master's own."""
        self._command = command
        self._log_dir = log_dir
        self._say = say
        self._clock = clock
        self._environ = environ
        self._workers = [_Worker(number, log_dir / f"worker-{number}.log") for number in range(1, n + 1)]

    @property
    def pids(self) -> list[int]:
        """Of those that run, as far as the last ``poll`` saw."""
        return [worker.process.pid for worker in self._workers if worker.process]

    @property
    def gone(self) -> bool:
        """Whether all have left by themselves, or by order."""
        self.poll()
        return not self.given_up and not any(worker.process or worker.restart_at is not None for worker in self._workers)

    @property
    def given_up(self) -> bool:
        """Whether none runs or is due to be started again, and at least one has died too often."""
        busy = any(worker.process or worker.restart_at is not None for worker in self._workers)
        return not busy and any(worker.given_up for worker in self._workers)

    def start(self) -> Self:
        """Starts all.

        Raises:
            CheckpointError: their output cannot be written.
        """
        make_folder(self._log_dir)
        for worker in self._workers:
            worker.start(self._command, self._environ, self._clock())
        return self

    def poll(self, holders: Collection[int] = (), blameless: bool = False) -> None:
        """Sees who has ended and starts again who is due; to be called about once a second.

        Args:
            holders: processes with trials under lease: one that has ended has died, whatever its exit status.
            blameless: whether the end of a holder, however quick, says nothing against the next: its trials are blamed for it.

        Raises:
            CheckpointError: the output of a restarted one cannot be written.
        """
        now = self._clock()
        for worker in self._workers:
            if worker.process and worker.process.poll() is not None:
                self._see_to(worker, worker.process, now, worker.process.pid in holders, blameless)
            if worker.restart_at is not None and now >= worker.restart_at:
                worker.start(self._command, self._environ, now)

    def forget(self, pid: int) -> None:
        """Does not start the worker with this process again, however it ends."""
        self._workers = [w for w in self._workers if not (w.process and w.process.pid == pid)]

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Ends all: SIGTERM first, SIGKILL for what is still there after ``timeout_s``."""
        running = [worker.process for worker in self._workers if worker.process]
        for worker in self._workers:
            worker.process = worker.restart_at = None
        for process in running:
            process.terminate()
        deadline = self._clock() + timeout_s
        for process in running:
            try:
                process.wait(max(0.0, deadline - self._clock()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its own session, with what it has started itself
                process.wait()

    def _see_to(self, worker: _Worker, process: subprocess.Popen[bytes], now: float, held: bool, blameless: bool) -> None:
        exit_code, lived_s = process.returncode, now - worker.started_at
        then = after_end(exit_code, QUICK_S if held and blameless else lived_s, worker.quick_deaths, held)
        worker.process, worker.quick_deaths = None, then.quick_deaths
        if then.action is Action.RESTART:
            worker.restart_at = now + then.wait_s
            self._say(
                f"{worker.name} died ({ending(exit_code)}) after {lived_s:.0f} s; starting it again in {then.wait_s:g} s. "
                f"Its output: {worker.log}"
            )
        elif then.action is Action.GIVE_UP:
            worker.given_up = True
            self._say(
                f"{worker.name} died {then.quick_deaths} times, each within {QUICK_S:g} s of its start, at last with {ending(exit_code)}; "
                f"giving it up. Its output, {worker.log}, ends with\n{worker.tail()}"
            )
