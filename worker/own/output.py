"""What a process of the task writes to its stdout and stderr."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from pathlib import Path
from typing import BinaryIO

from common.output import STDERR

MOST_READ = 1 << 16  # bytes
TAIL = 1 << 14  # bytes of the end that are kept in memory, for the reason of a failure
LINES, CHARACTERS = 3, 500  # of the end of an output in a reason
CRASH = "Fatal Python error"  # how the lines begin that faulthandler writes
MOST_FILE = 10 << 20  # bytes of a file; above that its middle is left out
HEAD, END = 2 << 20, 4 << 20  # bytes of its beginning and its end that stay


class Output:
    """Reads a pipe to its end, passes it on, and keeps the last part."""

    def __init__(self, path: Path | None = None, logged: bool = False) -> None:
        """Open the pipe and start to read it.

        Args:
            path: the file to write to; None for no file.
            logged: write to this process's stderr, too.
        """
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)
        self._lock = threading.Lock()  # held from reading a part until it is passed on
        self._file = _File(path) if path is not None else None
        self._logged = logged
        self._tail = b""
        self._ended = False
        self.n_bytes = 0  # that were written so far
        self._thread = threading.Thread(target=self._read, name="output", daemon=True)
        self._thread.start()

    def close_theirs(self) -> None:
        """Close the end that the process has got."""
        os.close(self.theirs)

    def turn_to(self, path: Path | None) -> None:
        """Write what comes from now on to another file, or to none.

        What the pipe holds already still goes where it went. The tail begins anew.
        """
        with self._lock:
            n_before = self.n_bytes
            while self.n_bytes - n_before < MOST_READ and self._take():
                pass  # no more than a pipe holds, since somebody may write all the time
            if self._file is not None:
                self._file.close()
            self._file = _File(path) if path is not None else None
            self._tail = b""

    def tail(self, wait_s: float = 0.0) -> str:
        """Return the last part of what was written.

        Args:
            wait_s: for the end of the output, at most.
        """
        self._thread.join(wait_s)
        return self._tail.decode(errors="replace")

    def _read(self) -> None:
        waiting = select.poll()
        waiting.register(self._ours, select.POLLIN)
        while not self._ended:
            waiting.poll()
            with self._lock:
                self._take()
        os.close(self._ours)
        if self._file is not None:
            self._file.close()

    def _take(self) -> bool:
        """Pass on a part of what the pipe holds. Return False if it holds nothing, or has ended."""
        try:
            part = b"" if self._ended else os.read(self._ours, MOST_READ)
        except BlockingIOError:
            return False
        except OSError:
            part = b""
        self._ended = not part
        self._tail = (self._tail + part)[-TAIL:]
        self.n_bytes += len(part)
        with contextlib.suppress(OSError):  # a full disk is no trial's fault
            if self._file is not None:
                self._file.write(part)
        with contextlib.suppress(OSError):
            if self._logged:
                _pass_on(part)
        return bool(part)


class _File:
    """A file that keeps the beginning and the end of what is written to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left_out = 0
        self._open: BinaryIO | None = None

    def write(self, part: bytes) -> None:
        """Add to the file. It is made with its first bytes."""
        if not part:
            return
        if self._open is None:
            self._path.parent.mkdir(exist_ok=True)  # a stage's folder is not made anew
            self._open = self._path.open("ab", buffering=0)
        self._open.write(part)
        if self._open.tell() > MOST_FILE:
            self.close()
            self._cut()

    def close(self) -> None:
        """Close the file, which the next bytes would open again."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _cut(self) -> None:
        size = self._path.stat().st_size
        with self._path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(size - END)
            end = file.read()
        self._left_out += size - HEAD - END
        told = f"\n[... {self._left_out:,} bytes left out ...]\n".encode()
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(head + told + end)
        temporary.replace(self._path)


def last_words(output: str) -> str:
    """Return the last lines of an output for a reason, or "" if there are none.

    Where Python tells of a crash, return that and the lines of code where it was.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    crashed = next((n for n, line in enumerate(lines) if line.startswith(CRASH)), None)
    if crashed is not None:
        places = [line for line in lines[crashed:] if line.startswith("File ")]
        lines = [lines[crashed], *places[: LINES - 1]]
    told = " | ".join(lines[-LINES:])[-CHARACTERS:]
    return f"; its output ends: {told}" if told else ""


def _pass_on(part: bytes) -> None:
    while part:
        part = part[os.write(STDERR, part) :]
