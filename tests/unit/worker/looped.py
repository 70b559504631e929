"""Run functions of a test as loops: in a process that is forked, so that they need no file."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common.forking import die_with
from common.offspring import Offspring
from common.search.search_file import Search
from worker.own import LoopHost, OwnLoop, OwnTrial, Source
from worker.own.child import Child
from worker.own.messages import Channel
from worker.own.process import Start, Started
from worker.tasks.base import Loop

SPEC = "my_loop.py:train"
FORKED: list[Forked] = []  # of this test; ``end_forked`` ends them


class Forked:
    """A forked process, as ``subprocess.Popen`` has it."""

    def __init__(self, run: Callable[[], object]) -> None:
        parent = os.getpid()
        self._code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            with contextlib.suppress(BaseException):
                os.setsid()
                die_with(parent)
                run()
            os._exit(0)
        FORKED.append(self)

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (600.0 if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("a forked loop", timeout or 0.0)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def end_forked() -> None:
    """End the processes that this test has forked."""
    while FORKED:
        one = FORKED.pop()
        one.kill()
        one.wait()


def start_forked(load: Callable[[dict[str, Any]], Loop]) -> Start:
    """Start processes that load a loop in this way, by a fork that takes milliseconds."""

    def start(source: Source, socket_end: int, output: int) -> Started:
        def run() -> None:
            faulthandler.disable()
            for number in (1, 2):
                os.dup2(output, number)
            sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)  # pytest has its own
            Child(Channel(Connection(os.dup(socket_end))), load).serve()

        return Forked(run)

    return start


def host_of(train: Callable[[OwnTrial], object]) -> LoopHost:
    """A host whose process runs this function."""
    return LoopHost(Offspring(), start_forked(lambda asked: Loop(train, SPEC)))


def own_of(
    train: Callable[[OwnTrial], object],
    search: Search,
    log: Callable[[str], None] = lambda message: None,
) -> OwnLoop:
    """A trainer for this function."""
    open_ = partial(host_of(train).open, Source(SPEC, "", "", "", gpus=3))
    return OwnLoop(SPEC, open_, search=search, log=log)


class Noted:
    """Notes of a loop in another process, in a file."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "notes"

    def add(self, *what: object) -> None:
        with self._file.open("a") as file:
            file.write("".join(f"{one}\n" for one in what))

    def all(self) -> list[str]:
        return self._file.read_text().splitlines() if self._file.exists() else []

    def __contains__(self, what: Any) -> bool:
        return str(what) in self.all()
