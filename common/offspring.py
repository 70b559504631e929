"""The processes that a task starts, which end with its trial or with the process that ran the task.

A process inherits the resource limits of its parent, through forks, new programs, new sessions and
emptied environments. One of them, RLIMIT_LOCKS, has had no effect in Linux since 2.4.25. Its lower
value serves as a mark that all descendants carry, and no other process does. The mark is read again
right before each signal, so that a process that has reused a number is not hit.

A process that is killed cannot end its descendants. So it has a guard: this file runs as a small
program in its own session, without the mark, and waits until its parent is gone. Systems other than
Linux have no such mark, and there this module does nothing.
"""

from __future__ import annotations

import atexit
import importlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LOCKS = 10  # RLIMIT_LOCKS, which the module resource does not name
KIND = 1 << 61  # the base of all marks: a limit set by a user is smaller
# Marks of one process: the first is its own, then one for each child and one for each trial.
TRIALS = 1 << 20
GRACE_S = 2.0  # between SIGTERM and SIGKILL
LAST_S = 3.0  # for processes that survive SIGKILL, since they hang in a driver
LOOK_S = 0.02
MOST_READ = 1 << 16  # bytes of a file in /proc
GUARD_LOOK_S = 0.2  # how often a guard looks for its parent
# Helpers that a library starts at its first use and then keeps using. They end with the process,
# not with the trial that came first.
LIBRARIES = (b"torch/_inductor/compile_worker", b"resource_tracker import main")


class Offspring:
    """The descendants of this process that start after ``begin``."""

    def __init__(self) -> None:
        self._first = 0  # the first mark
        self._n_marks = 0
        self._owner = 0
        self._guard: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Mark this process, so that whatever it starts from now on ends when it ends.

        It does nothing where this has begun already. A process that another worker's task started
        keeps that worker's mark, and ends with it.
        """
        if (
            self._owner
            or not sys.platform.startswith("linux")
            or _mark_of(0) is None
            or is_mark(_mark_of(0))
        ):
            return
        first = KIND + int.from_bytes(os.urandom(5)) * TRIALS
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(first)]
        # If no process is left for the guard, an orderly end still ends the descendants.
        with suppress(OSError):
            quiet = subprocess.DEVNULL
            self._guard = subprocess.Popen(
                command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
            )
        try:
            _set_mark(0, first)
        except (OSError, ValueError):  # a user has set a limit below the mark
            return
        self._first, self._owner = first, os.getpid()
        # The exit handler of multiprocessing waits for its children, whatever they do. It is
        # registered now so that it runs after this one.
        importlib.import_module("multiprocessing.util")
        atexit.register(self.end)

    def mark_next(self, pid: int) -> int:
        """Mark a child of this process, or itself (0), with a number that no other process has.

        What the child starts from now on carries the same mark.

        Returns:
            The mark, for ``mark`` and ``end_of``; 0 where there are no marks.
        """
        if not self._owner:
            return 0
        self._n_marks = self._n_marks % (TRIALS - 1) + 1
        self.mark(pid, self._first + self._n_marks)
        return self._first + self._n_marks

    @contextmanager
    def marking(self) -> Iterator[int]:
        """Give what starts inside the block a mark of its own, from its first instruction on.

        Yields:
            The mark, for ``end_of``; 0 where there are no marks.
        """
        mark = self.mark_next(0)
        try:
            yield mark
        finally:
            self.mark(0, self._first)

    def mark(self, pid: int, mark: int) -> None:
        """Give a child of this process a mark that ``mark_next`` returned."""
        if self._owner:
            with suppress(OSError, ValueError):  # the child has ended
                _set_mark(pid, mark)

    def end_of(self, mark: int) -> list[str]:
        """End all processes with a mark, except helpers of libraries.

        Returns:
            The names of the programs that were signalled.
        """
        return end_marked(mark, mark + 1, spared=LIBRARIES) if mark else []

    def end_all_marked(self) -> list[str]:
        """End all processes with a mark that ``mark_next`` gave, whichever it is.

        Returns:
            The names of the programs that were signalled.
        """
        return end_marked(self._first + 1, self._first + TRIALS) if self._owner else []

    def end(self) -> None:
        """End every process that was started here."""
        # A fork of this process has the same attributes, and must not run this.
        if self._owner == os.getpid():
            # Otherwise torch would raise for the workers of a data loader.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            end_marked(self._first, self._first + TRIALS)


def disown(pid: int) -> None:
    """Remove the mark from a child that no task started, and that must outlive this process."""
    if sys.platform.startswith("linux") and is_mark(_mark_of(pid)):
        with suppress(OSError, ValueError):
            _set_mark(pid, -1)


def is_mark(value: int | None) -> bool:
    """Return whether a limit is a mark of this program."""
    return value is not None and KIND <= value < 2 * KIND


def end_marked(first: int, beyond: int, spared: tuple[bytes, ...] = ()) -> list[str]:
    """End all other processes whose mark is in a range.

    They get SIGTERM, and those still alive after two seconds get SIGKILL.

    Args:
        first: the first mark of the range.
        beyond: the mark after the last.
        spared: processes with one of these in their command line are left running.

    Returns:
        The names of the programs that were signalled.
    """
    named: dict[int, str] = {}
    kill_at = time.monotonic() + GRACE_S
    while found := [pid for pid in _living(first, beyond) if not _is_spared(pid, spared)]:
        late = time.monotonic() - kill_at
        if late > LAST_S:
            break
        for pid in found:
            if late > 0 or pid not in named:
                named.setdefault(pid, _name_of(pid))
                _send(pid, signal.SIGKILL if late > 0 else signal.SIGTERM, first, beyond)
        time.sleep(LOOK_S)
    for pid in named:
        # Reap children of this process that nothing else waits for.
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return sorted(set(named.values()))


def _living(first: int, beyond: int) -> list[int]:
    """Return the processes whose mark is in the range, except this one and zombies."""
    with os.scandir("/proc") as entries:
        pids = {int(entry.name) for entry in entries if entry.name.isdigit()} - {os.getpid()}
    marked = [pid for pid in pids if first <= (_mark_of(pid) or 0) < beyond]
    return [pid for pid in marked if not _has_ended(pid)]


def _send(pid: int, number: signal.Signals, first: int, beyond: int) -> None:
    if first <= (_mark_of(pid) or 0) < beyond:
        with suppress(OSError):
            os.kill(pid, number)


def _mark_of(pid: int) -> int | None:
    """Return the lower limit; None if the process is gone or belongs to another user."""
    try:
        return resource.prlimit(pid, LOCKS)[0]
    except (OSError, ValueError):
        return None


def _set_mark(pid: int, mark: int) -> None:
    """Set the mark, or remove it with -1. Raise OSError or ValueError if that fails."""
    upper = resource.prlimit(pid, LOCKS)[1]
    resource.prlimit(pid, LOCKS, (upper if mark < 0 else mark, upper))


def _has_ended(pid: int) -> bool:
    return (_read(pid, "stat").rpartition(b")")[2].split() or [b"X"])[0] in b"ZX"


def _is_spared(pid: int, spared: tuple[bytes, ...]) -> bool:
    line = _read(pid, "cmdline") if spared else b""
    return any(part in line for part in spared)


def _name_of(pid: int) -> str:
    return _read(pid, "comm").decode(errors="replace").strip() or str(pid)


def _read(pid: int, name: str) -> bytes:
    try:
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
        try:
            return os.read(descriptor, MOST_READ)
        finally:
            os.close(descriptor)
    except OSError:
        return b""


def guard(parent: int, first: int) -> None:
    """Wait until the parent is gone, then end what it left."""
    while os.getppid() == parent:
        time.sleep(GUARD_LOOK_S)
    end_marked(first, first + TRIALS)


if __name__ == "__main__":
    guard(*map(int, sys.argv[1:]))
