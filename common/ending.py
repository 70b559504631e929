"""The end of a process whose work is done and saved."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import NoReturn

Handler = Callable[[int, FrameType | None], object] | int | None

# Sent by Ctrl-C, kill, the terminal and job schedulers.
END_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
# A shell reports a process that a signal ended with this plus the signal's number as exit code.
BY_SIGNAL = 128
# Of a worker, or of the process of a loop, that its device serves no more. A new one may be served.
EXIT_POISONED = 71


def end_process(code: int) -> NoReturn:
    """End the process at once, without the interpreter's cleanup.

    The cleanup takes half a second once torch is loaded. Functions registered with ``atexit`` run,
    and stdout and stderr are flushed. The caller has left its ``with`` blocks, so the files, locks
    and connections that matter are closed.

    Args:
        code: the exit code.

    Raises:
        OutputError: stdout cannot be written; the process goes on.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # There is no other way to run them. It reports exceptions and goes on.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def hear_end(
    handler: Callable[[int, FrameType | None], object], *besides: int
) -> dict[int, Handler]:
    """Call ``handler`` on every signal that asks a process to end, except those in ``besides``.

    A signal that was ignored when the process began stays ignored, as SIGHUP does under ``nohup``.
    Only the main thread of a process may hear signals; in another one this does nothing.

    Returns:
        What happened on each of these signals before, for ``unhear_end``.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in END_SIGNALS if number not in besides}
    heard: dict[int, Handler] = {
        int(number): own
        for number, own in before.items()
        if own is not signal.SIG_IGN and own is not None
    }
    for number in heard:
        signal.signal(number, handler)
    return heard


def unhear_end(before: Mapping[int, Handler]) -> None:
    """Let the signals do again what they did ``before``, as ``hear_end`` returned it."""
    for number, own in before.items():
        signal.signal(number, own)
