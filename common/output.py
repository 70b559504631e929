"""Output of a program: its encoding, and what happens if it cannot be written."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

CANNOT_WRITE = 1  # exit code
STDOUT, STDERR = 1, 2


class OutputError(Exception):
    """Stdout cannot be written."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(
            f"what is printed cannot be written to stdout ({cause.strerror}); free its disk, or "
            "send it elsewhere"
        )
        # A closed pipe, as of `head`, is not an error.
        self.code = 0 if isinstance(cause, BrokenPipeError) else CANNOT_WRITE


def run_program(program: Callable[[], object]) -> NoReturn:
    """Run a console script to its end, whatever stdout and stderr are.

    A character that they cannot encode is written as an escape, such as ``\\u00e9``. If stdout
    cannot be written, the program ends with one message, or silently if its reader is gone. If
    stderr cannot be written, that is ignored.

    Args:
        program: the command. It exits by itself if its exit code is not 0.
    """
    for number in (STDOUT, STDERR):
        _hold(number)
    sys.stdout = _open(sys.stdout, STDOUT, lasting=False)
    sys.stderr = _open(sys.stderr, STDERR, lasting=True)
    try:
        try:
            program()
        finally:
            sys.stdout.flush()
    except OutputError as error:
        if error.code:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.code)
    sys.exit(0)


def find_log(root: Path) -> str:
    """Return the file that stderr is written to, relative to ``root`` if it is in there.

    The result is empty if stderr is no file, or the system does not tell.
    """
    try:
        if not stat.S_ISREG(os.fstat(STDERR).st_mode):
            return ""
        file = (Path("/proc/self/fd") / str(STDERR)).readlink()
        own = root.resolve()
        return str(file.relative_to(own) if file.is_relative_to(own) else file)
    except OSError:
        return ""


def outlive_readers() -> None:
    """Ignore from now on that stdout's reader is gone or its disk is full: the work goes on."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, Output):
        raw.lasting = True


def keep_stdout() -> TextIO:
    """Return the current stdout, for this program's answer alone.

    From now on everything else that writes to stdout, such as a task, its libraries or a process
    that it starts, writes to stderr, so that it cannot be taken for a part of the answer.
    """
    sys.stdout.flush()
    kept = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    return _open(sys.stdout, kept, lasting=False, at_once=True)


class Output(io.FileIO):
    """A file descriptor that leads to the null device after its first failure.

    If it is ``lasting``, it does not raise. It lies below all buffers, so it does not matter which
    code writes, or when a buffer is flushed.
    """

    lasting = False

    def write(self, data: Any) -> int:
        """Write ``data``.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # discards what is still buffered
            os.close(nowhere)
            if not self.lasting:
                raise OutputError(error) from error
            return memoryview(data).nbytes


def _hold(number: int) -> None:
    """Fill a descriptor that was closed when the program started.

    It then rejects writes, and no other file gets its number.
    """
    with contextlib.suppress(OSError):
        os.fstat(number)
        return
    nowhere = os.open(os.devnull, os.O_RDONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def _open(stream: Any, number: int, lasting: bool, at_once: bool = False) -> io.TextIOWrapper:
    raw = Output(number, "w", closefd=False)
    raw.lasting = lasting
    at_once = (
        at_once
        or lasting
        or raw.isatty()
        or getattr(stream, "line_buffering", False)
        or getattr(stream, "write_through", False)
    )
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=at_once
    )
