"""One trial's function in a thread of its own, and the hand-over of its reports."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import torch
from threadpoolctl import threadpool_limits

from worker.own.trial import OwnTrial, Report, TrialEnded

ASKED_S = 3.0  # a trial that is over learns of it at its next report; one that makes none for so long is interrupted
INTERRUPTED_S = 25.0  # and where even that leads nowhere for so long, the worker leaves
AGAIN_S = 1.0  # between two interruptions: a loop may catch one


@dataclass(frozen=True)
class Returned:
    """The function came to its end."""


@dataclass(frozen=True)
class Raised:
    """The function raised."""

    reason: str
    traceback: str


class Runner:
    """Runs ``function(trial)`` until it returns, raises, or is told that the trial is over."""

    def __init__(self, function: Callable[[OwnTrial], object], make: Callable[[Runner], OwnTrial], threads: int) -> None:
        self._function = function
        self._threads = threads
        self._messages: SimpleQueue[Report | Returned | Raised] = SimpleQueue()
        self._answers: SimpleQueue[None] = SimpleQueue()
        self._over = False
        self._told = False
        self.trial = make(self)
        self._thread = threading.Thread(target=self._run, name=self.trial.id, daemon=True)  # a hung one must not keep the process

    # -- what the loop's own thread calls, through its trial ---------------------------------------------------------

    def hand_over(self, report: Report) -> None:
        """Blocks until the report was dealt with; raises TrialEnded where the trial is over."""
        self.check()
        self._messages.put(report)
        self._answers.get()
        self.check()

    def check(self) -> None:
        """Raises TrialEnded where the trial is over."""
        if self._over:
            self._told = True
            raise TrialEnded

    # -- what the worker's thread calls ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def next(self, wait_s: float) -> Report | Returned | Raised | None:
        """What the function does next, None if nothing within ``wait_s``."""
        try:
            return self._messages.get(timeout=wait_s)
        except Empty:
            return None

    def go_on(self) -> None:
        """Lets the last report return."""
        self._answers.put(None)

    def end(self, patience_s: float) -> bool:
        """Has the function end, by TrialEnded at its next report, else wherever it is; False if it does not within ``patience_s``.

        Once told, it may take its time to tidy up.
        """
        self._over = True
        self._answers.put(None)
        began = asked = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - began < patience_s:
            self._thread.join(0.05)
            now = time.monotonic()
            if not self._told and now - began > min(ASKED_S, patience_s / 2) and now - asked > AGAIN_S:
                asked = now
                self._interrupt()
        return not self._thread.is_alive()

    def _interrupt(self) -> None:
        """Raises TrialEnded in the function's thread, at its next Python instruction."""
        if self._thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(TrialEnded))

    def _run(self) -> None:
        with contextlib.suppress(TrialEnded):  # an interruption may come as late as here
            self._messages.put(self._outcome())

    def _outcome(self) -> Returned | Raised:
        torch.set_num_threads(self._threads)  # a new thread has the default number otherwise
        try:
            with threadpool_limits(self._threads):  # what numpy and scikit-learn use
                self._function(self.trial)
        except TrialEnded:
            return Returned()
        except BaseException as error:  # SystemExit too: nothing that a user's function does ends the worker's thread
            return Raised(_told(error), traceback.format_exc())
        return Returned()


def _told(error: BaseException) -> str:
    """The error, and the line of the user's file that raised it."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/worker/own/" not in frame.filename]
    place = f" ({own[-1].filename.rpartition('/')[2]}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"
