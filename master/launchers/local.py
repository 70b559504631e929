"""Workers on this machine. Each has its own session, and is started again when it dies.

Pure functions decide what to do about a worker that has ended (``after_end``), how many workers
there are, and what their commands are. ``LocalWorkers`` carries it out.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from common.broker.connection import Broker
from common.folder.durable import explain_os_error, make_folder
from common.folder.records import SearchFolder
from common.options import DATA_FOLDER
from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.safe_read import open_to_append, read_end
from common.search.stage import NO_NEEDS, Resources
from master.launchers.commands import worker_command, worker_environment
from master.launchers.endings import QUICK_S, Action, after_end, ending, how_ended
from master.launchers.forked import Forked, ForkServer, start_process
from master.launchers.gpus import auto_count, local_device, select_able
from master.launchers.processes import Elsewhere, Process
from master.launchers.stayed import FOLDER, Stayed, here, key_of, write_down

STOP_S = 12.0  # a worker ends within ten seconds of SIGTERM
LOG_TAIL_LINES = 12
LOG_TAIL_BYTES = 1 << 14


def local_workers(
    n: int,
    folder: SearchFolder,
    broker: Broker,
    say: Callable[[str], None],
    data: Path = DATA_FOLDER,
    spawner: ForkServer | None = None,
    resources: Resources = NO_NEEDS,
) -> LocalWorkers:
    """Return ``n`` workers for one search, not started yet.

    Suitable workers that stayed from an earlier launch are among them.

    Args:
        n: The number of workers.
        folder: The folder of the search.
        broker: The connection to the Redis that the workers use.
        say: Prints messages about workers that died.
        data: The folder of built-in data sets.
        spawner: Forks the workers. None: each is started as a separate process.
        resources: What a trial needs.

    Raises:
        QueueError: Redis cannot be reached.
    """
    command, environ = _alike(n, folder, broker, data, resources)
    key, logs = key_of(command, environ), folder.path / FOLDER
    stayed = Stayed.read(logs)
    fit: list[Elsewhere] = []
    if stayed.processes:
        found = WorkerRegistry(broker.client).list()
        fit = stayed.fit(key, found)[:n]
        stayed.dismiss(found, _holders(folder, broker), but=fit)
    return LocalWorkers(
        command, n, logs, say, environ=environ, spawner=spawner, stayed=fit, key=key
    )


def count_wanted_workers(
    asked: int | None,
    folder: SearchFolder,
    broker: Broker,
    data: Path = DATA_FOLDER,
    resources: Resources = NO_NEEDS,
) -> int:
    """Return how many local workers a launch starts.

    It is the number that was asked for. For auto (None) it is none if other workers already take
    trials of the search. Workers that stayed from an earlier launch do not count as others: they
    are part of the number, or are ended.

    Raises:
        QueueError: Redis cannot be reached.
    """
    if asked is not None:
        return asked
    found = WorkerRegistry(broker.client).list()
    able = select_able(found, folder.name, resources)
    stayed = Stayed.read(folder.path / FOLDER)
    if able and not stayed.processes:
        return 0
    n = auto_count(resources)
    if not able:
        return n
    fit = stayed.fit(key_of(*_alike(n, folder, broker, data, resources)), found)
    own = {process.pid for process in (*fit, *stayed.idle(found, _holders(folder, broker)))}
    others = [info for info in able if info not in here(able) or info.pid not in own]
    return 0 if others else n


def dismiss_stayed(folder: SearchFolder, broker: Broker) -> None:
    """End the idle workers that stayed from an earlier launch.

    This is used if no local worker is wanted, or the folder is about to be set aside.

    Raises:
        QueueError: Redis cannot be reached.
    """
    stayed = Stayed.read(folder.path / FOLDER)
    if stayed.processes:
        stayed.dismiss(WorkerRegistry(broker.client).list(), _holders(folder, broker))


def dismiss_unlike(
    asked: int | None,
    folder: SearchFolder,
    broker: Broker,
    data: Path = DATA_FOLDER,
    resources: Resources = NO_NEEDS,
) -> None:
    """End the idle workers that stayed and differ from those that this launch would start.

    This must be done before the launch publishes its trials, else they would be the first to claim
    them.

    Args:
        asked: How many local workers the launch shall have, None for auto.
        folder: The folder of the search.
        broker: The connection to the Redis that the workers use.
        data: The folder of built-in data sets.
        resources: What a trial needs.

    Raises:
        QueueError: Redis cannot be reached.
    """
    stayed = Stayed.read(folder.path / FOLDER)
    if not stayed.processes:
        return
    found = WorkerRegistry(broker.client).list()
    n = auto_count(resources) if asked is None else asked
    stayed.dismiss(
        found,
        _holders(folder, broker),
        but=stayed.fit(key_of(*_alike(n, folder, broker, data, resources)), found)[:n],
        forget=False,
    )


def _holders(folder: SearchFolder, broker: Broker) -> set[str]:
    """Return the workers that hold trials of a search now."""
    search = folder.search()
    if search is None or search.id is None:
        return set()
    return {running.worker for running in TrialQueue(broker.client, search.id).running()}


def _alike(
    n: int, folder: SearchFolder, broker: Broker, data: Path, resources: Resources
) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment of ``n`` local workers."""
    environ = worker_environment(None if broker.by_root else broker.url, os.environ) | {
        "DATA_DIR": str(data.absolute())
    }
    root = folder.root.resolve()
    return worker_command(folder.name, root, n, *local_device(resources)), environ


class _Worker:
    """One place for a worker: its process, or the time of its next start."""

    def __init__(self, number: int, log: Path) -> None:
        self.name = f"local worker {number}"
        self.log = log
        self.process: Process | None = None
        self.started_at = 0.0
        self.restart_at: float | None = None
        self.quick_deaths = 0
        self.given_up = False
        self._log_start = 0

    def start(
        self,
        command: Sequence[str],
        environ: Mapping[str, str] | None,
        now: float,
        spawner: ForkServer | None,
    ) -> None:
        try:
            with os.fdopen(open_to_append(self.log), "ab") as output:
                self._log_start = output.tell()
                self.process = start_process(command, environ, output.fileno(), spawner)
        except OSError as error:
            raise explain_os_error(error, self.log) from error
        self.started_at, self.restart_at = now, None

    def take_over(self, process: Elsewhere, now: float) -> None:
        """Look after a worker that stayed. It goes on writing to its own log."""
        self.process, self.started_at, self.restart_at = process, now, None

    def tail(self) -> str:
        """Return the last lines of the log since the start of the worker, indented."""
        try:
            lines = (
                read_end(self.log, LOG_TAIL_BYTES, self._log_start)
                .decode(errors="replace")
                .splitlines()
            )
        except OSError as error:
            lines = [f"(it cannot be read: {error.strerror})"]
        return "\n".join(
            f"    {line}" for line in lines[-LOG_TAIL_LINES:] or ["(it wrote nothing)"]
        )


class LocalWorkers:
    """A fixed number of workers that are kept running on this machine."""

    noun = "local workers"
    absence = ""

    def __init__(
        self,
        command: Sequence[str],
        n: int,
        log_dir: Path,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        environ: Mapping[str, str] | None = None,
        spawner: ForkServer | None = None,
        stayed: Sequence[Elsewhere] = (),
        key: str = "",
    ) -> None:
        """Prepare the workers without starting them.

        Args:
            command: The command line of a worker.
            n: The number of workers.
            log_dir: The folder of their output, ``worker-N.log`` each.
            say: Prints messages about workers that died.
            clock: Returns the time in seconds.
            environ: The environment of the workers. None for the master's own.
            spawner: Forks the workers, if possible.
            stayed: Workers that run already and are taken over.
            key: The key by which a later launch recognizes them.
        """
        self._command = command
        self._log_dir = log_dir
        self._say = say
        self._clock = clock
        self._environ = environ
        self._spawner = spawner
        self._stayed = list(stayed)
        self._key = key
        # Process id of a worker that died -> how it died, and where its output is.
        self._ended: dict[int, str] = {}
        self._workers = [
            _Worker(number, log_dir / f"worker-{number}.log") for number in range(1, n + 1)
        ]

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run, as of the last ``poll``."""
        return [worker.process.pid for worker in self._workers if worker.process]

    def how_ended(self, pid: int, job: str = "") -> str:
        """Describe how a process that died ended, and where its output is.

        The result is empty if that is not known.

        Args:
            pid: The process.
            job: Not used: a local worker is no job.
        """
        return self._ended.get(pid, "")

    @property
    def gone(self) -> bool:
        """Whether all workers have left, by themselves or because they were told to."""
        self.poll()
        return not self.given_up and not any(
            worker.process or worker.restart_at is not None for worker in self._workers
        )

    @property
    def given_up(self) -> bool:
        """Whether no worker runs or waits for a restart, and at least one has died too often."""
        busy = any(worker.process or worker.restart_at is not None for worker in self._workers)
        return not busy and any(worker.given_up for worker in self._workers)

    def start(self) -> Self:
        """Start all workers, except those that stayed from an earlier launch.

        Raises:
            CheckpointError: Their output cannot be written.
        """
        make_folder(self._log_dir)
        for worker in self._workers:
            if self._stayed:
                worker.take_over(self._stayed.pop(), self._clock())
            else:
                worker.start(self._command, self._environ, self._clock(), self._spawner)
        return self

    def poll(self, holders: Collection[int] = (), blameless: bool = False) -> None:
        """Check which workers have ended, and restart those that are due.

        Call this about once a second.

        Args:
            holders: Processes with trials under lease. If one of them has ended it has died,
                whatever its exit status.
            blameless: Whether the end of a holder, however quick, does not count against the next
                worker. Its trials are blamed instead.

        Raises:
            CheckpointError: The output of a restarted worker cannot be written.
        """
        now = self._clock()
        for worker in self._workers:
            if worker.process and worker.process.poll() is not None:
                self._see_to(worker, worker.process, now, worker.process.pid in holders, blameless)
            if worker.restart_at is not None and now >= worker.restart_at:
                worker.start(self._command, self._environ, now, self._spawner)

    def forget(self, pid: int) -> None:
        """Do not start the worker with this process again, however it ends."""
        self._workers = [w for w in self._workers if not (w.process and w.process.pid == pid)]

    def leave(self) -> None:
        """Stop looking after the workers, and let them go on.

        A later launch may take them over. Otherwise they leave by themselves.
        """
        pids = self.pids
        for worker in self._workers:
            worker.process = worker.restart_at = None
        # OSError: the folder has gone, and the workers will leave. Or the disk is full: then no
        # launch takes them over, and they leave by themselves.
        with suppress(OSError):
            write_down(self._log_dir, self._key, pids)

    def stop(self, timeout_s: float = STOP_S) -> None:
        """End all workers: SIGTERM first, SIGKILL for those that remain after ``timeout_s``."""
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
                process.kill_all()  # the whole session, with what the worker has started
                process.wait()

    def _see_to(
        self, worker: _Worker, process: Process, now: float, held: bool, blameless: bool
    ) -> None:
        exit_code, lived_s = process.returncode or 0, now - worker.started_at
        if isinstance(process, Elsewhere) and lived_s < QUICK_S and not held:
            # It was about to leave when it was taken over.
            worker.process, worker.restart_at = None, now
            return
        unheard = isinstance(process, Elsewhere) or (
            isinstance(process, Forked) and process.unknown
        )
        if not unheard:
            self._ended[process.pid] = (
                f"its last worker {how_ended(exit_code)}; "
                f"its output ends in {FOLDER}/{worker.log.name}"
            )
        then = after_end(
            exit_code, QUICK_S if held and blameless else lived_s, worker.quick_deaths, held
        )
        worker.process, worker.quick_deaths = None, then.quick_deaths
        if then.action is Action.RESTART:
            worker.restart_at = now + then.wait_s
            self._say(
                f"{worker.name} died ({ending(exit_code)}) after {lived_s:.0f} s; "
                f"starting it again in {then.wait_s:g} s. "
                f"Its output: {worker.log}"
            )
        elif then.action is Action.GIVE_UP:
            worker.given_up = True
            self._say(
                f"{worker.name} died {then.quick_deaths} times, each within {QUICK_S:g} s "
                f"of its start, at last with {ending(exit_code)}; "
                f"giving it up. Its output, {worker.log}, ends with\n{worker.tail()}"
            )
