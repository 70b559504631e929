"""Processes of workers: a protocol, and two kinds that follow it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

LOOK_S = 0.02  # between two checks of a process that is not a child


class Process(Protocol):
    """The process of a worker, however it was started."""

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its session."""

    @property
    def returncode(self) -> int | None:
        """Exit code as of the last ``poll``.

        A negative number is the signal that killed the process.
        """

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process and return its exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended within ``timeout`` seconds.
        """

    def terminate(self) -> None:
        """Ask the process to leave (SIGTERM)."""

    def kill_all(self) -> None:
        """Kill the process and all that it has started."""


class Child(subprocess.Popen[bytes]):
    """A child process of this one, with its own session."""

    def kill_all(self) -> None:
        """Kill the process and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Elsewhere:
    """A process that another process has started.

    Its exit code cannot be known here, so it is given as 0.
    """

    def __init__(self, pid: int, began: str | None = None) -> None:
        """Refer to a running process.

        Args:
            pid: The process id.
            began: When it began, as ``beginning`` returned it. None for the process that has this
                id now.
        """
        self.pid = pid
        self.began = began or beginning(pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return 0 once the process has ended, or None while it runs."""
        if self.returncode is None and (self.began is None or beginning(self.pid) != self.began):
            self.returncode = 0
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process and return 0.

        Raises:
            subprocess.TimeoutExpired: It has not ended within ``timeout`` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if until is not None and time.monotonic() >= until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(LOOK_S)
        return 0

    def terminate(self) -> None:
        """Ask the process to leave (SIGTERM)."""
        self.signal(signal.SIGTERM)

    def kill_all(self) -> None:
        """Kill the process and all that it has started."""
        self.signal(signal.SIGKILL, group=True)

    def signal(self, number: signal.Signals, group: bool = False) -> None:
        """Send a signal, unless the process id now belongs to another process."""
        if self.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                (os.killpg if group else os.kill)(self.pid, number)


def beginning(pid: int) -> str | None:
    """Return when a process began, which tells it from a later one with the same process id.

    The result is None if it has ended, or if there is no ``/proc``.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # clock ticks since the start of the computer
