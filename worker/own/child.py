"""The process that runs a user's own loops.

A worker has it forked (``worker/own/zygote.py``) or starts it as ``python -m worker.own.child
DESCRIPTOR PARENT``, and gives it one trial after the other through a pipe. It lives as long as the
worker needs it, so a file is imported once. When the worker ends, however it does, this process
ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from threadpoolctl import threadpool_limits

from common.ending import EXIT_POISONED, end_process
from common.errors import TaskError
from common.forking import die_with
from worker.own.messages import (
    Beat,
    Channel,
    Loaded,
    Message,
    Raised,
    Refused,
    Report,
    Returned,
    Told,
    write,
)
from worker.own.saved import Packed, thaw, unpacked
from worker.own.trial import OwnTrial, TrialEnded
from worker.tasks.base import Loop
from worker.tasks.importing import Place
from worker.tasks.loader import load_place
from worker.training.device_errors import is_poisoned

BEAT_S = 0.1  # between two signs of life that are passed on; a loop may give thousands a second
LIBC = ctypes.CDLL(None)
Load = Callable[[dict[str, Any]], Loop]


class Child:
    """Runs ``train(trial)`` for each trial that the worker sends."""

    def __init__(self, channel: Channel, load: Load) -> None:
        self._channel = channel
        self._load = load
        self._function: Callable[[OwnTrial], object] = lambda trial: None
        self._threads = 1
        self._over = False  # the worker has said that the trial is over
        self._in_loop = False  # the loop's own code runs, and may be interrupted
        self._beat_at = 0.0
        self._limit_s: float | None = None

    def serve(self) -> None:
        """Do what the worker says, until it has gone."""
        # A process that the loop forks ends by SIGTERM like any other.
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
        while True:
            signal.signal(signal.SIGTERM, self._interrupt)  # a loop may have set its own
            try:
                asked, state = self._channel.receive()
            except (EOFError, OSError):
                return
            if asked["do"] == "load":
                self._say(self._loaded(asked))
            elif asked["do"] == "train":
                self._say(self._trained(asked["trial"], state))
            # Anything else was meant for a trial that has ended meanwhile.

    # -- a trial ---------------------------------------------------------------------------------

    def _loaded(self, asked: dict[str, Any]) -> Message:
        self._threads = asked["threads"]
        torch.set_num_threads(self._threads)
        try:
            self._function = self._load(asked).train
        except TaskError as error:
            return Refused(str(error), traceback.format_exc())
        return Loaded()

    def _trained(self, given: dict[str, Any], state: Packed | None) -> Message:
        self._over, self._beat_at, self._limit_s = False, 0.0, None
        try:
            resume = thaw(unpacked(state))
        except Exception as error:
            return Raised(f"its saved state cannot be read: {error}", traceback.format_exc())
        ended = self._run(
            OwnTrial(**given, resume=resume, hand_over=self._hand_over, alive=self._alive)
        )
        flush_output()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            gc.collect()  # takes 0.2 s, so only if it can free memory of a device
            torch.cuda.empty_cache()
        return ended

    def _run(self, trial: OwnTrial) -> Message:
        try:
            with threadpool_limits(self._threads):  # the threads of NumPy and scikit-learn
                self._in_loop = True
                self._function(trial)
                self._in_loop = False
        except TrialEnded:
            pass
        # SystemExit, too: the process serves the next trial.
        except BaseException as error:
            self._in_loop = False
            if is_poisoned(error):
                # The next trial needs another process. The worker reads why from the output.
                traceback.print_exc()
                flush_output()
                os._exit(EXIT_POISONED)
            return Raised(explain(error), traceback.format_exc())
        finally:
            self._in_loop = False
        return Returned(tuple(trial.unread()), trial.n_classes, trial.n_val)

    # -- called by the loop, through its trial ---------------------------------------------------

    def _hand_over(self, report: Report) -> None:
        """Send a report, and wait until it is processed.

        Raises:
            TrialEnded: the trial is over.
        """
        self._in_loop = False  # an interruption would leave half a message in the pipe
        if not self._over:
            flush_output()
            self._say(report)
            self._hear()
        self._go_on()

    def _alive(self, limit_s: float | None) -> None:
        """Pass on a sign of life, and look whether the trial goes on.

        Raises:
            TrialEnded: the trial is over.
        """
        now = time.monotonic()
        if not self._over and now - self._beat_at < BEAT_S and limit_s == self._limit_s:
            return
        self._in_loop = False
        if not self._over:
            self._beat_at, self._limit_s = now, limit_s
            self._say(Beat(limit_s))
        while not self._over and self._channel.has_news():
            self._hear()
        self._go_on()

    def _go_on(self) -> None:
        if self._over:
            self._say(Told())
            raise TrialEnded
        self._in_loop = True

    def _hear(self) -> None:
        try:
            self._over = self._channel.receive()[0]["do"] != "go on"
        except (EOFError, OSError):
            os._exit(0)  # the worker has gone

    def _say(self, message: Message) -> None:
        try:
            self._channel.send(*write(message))
        except OSError:
            os._exit(0)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """End the trial where its code is."""
        self._over = True
        if self._in_loop:
            self._in_loop = False
            raise TrialEnded


def explain(error: BaseException) -> str:
    """Return the error as text, with the line of the user's file that raised it."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/worker/own/" not in frame.filename
    ]
    place = f" ({own[-1].filename.rpartition('/')[2]}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def flush_output() -> None:
    """Write out what Python and the C library still hold of this process's output."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a loop may have replaced it, or closed it
            stream.flush()
    with contextlib.suppress(ValueError):  # a C library that calls its stdout otherwise
        LIBC.fflush(ctypes.c_void_p.in_dll(LIBC, "stdout"))


def load(asked: dict[str, Any]) -> Loop:
    """Load the loop that the worker names.

    Raises:
        TaskError: it cannot be loaded, or is a class.
    """
    place = Place(Path(asked["folder"]), asked["module"], asked["attribute"])
    found = load_place(asked["spec"], place)
    if not isinstance(found, Loop):
        raise TaskError(f"task {asked['spec']!r}: is a class, and was a loop when it was launched")
    return found


def main(descriptor: int, parent: int) -> NoReturn:
    """Serve the worker on the other side of a socket, and exit when it has gone."""
    die_with(parent)
    faulthandler.enable(2)  # if native code crashes, the output shows the line
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    os.set_inheritable(descriptor, False)
    Child(Channel(Connection(descriptor)), load).serve()
    end_process(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
