"""The process that runs a loop, as the worker sees it: started once, used for many trials."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from common.ending import EXIT_POISONED
from common.errors import TaskError
from common.folder.records import SearchFolder
from common.offspring import Offspring
from common.search.trial import Claim
from worker.own.messages import (
    Channel,
    Loaded,
    Message,
    Raised,
    Refused,
    Returned,
    Told,
    read,
)
from worker.own.output import Output, last_words
from worker.own.saved import Packed

# A trial that is over gets TrialEnded at its next report or beat. If it makes none within this
# time, it is interrupted where it is.
ASKED_S = 3.0
INTERRUPTED_S = 5.0  # after that, for the function to end
TIDY_S = 20.0  # for a function that has got TrialEnded at a report or beat
HURRY_S = 3.0  # for all of this, if the worker is to stop: it must exit within ten seconds
LOOK_S = 0.05  # between checks of what the worker is to do
LAST_S = 1.0  # for the last output and exit status of a process that has ended
LEAVE_S = 2.0  # for an idle process to end
MEANINGS = {
    "SIGKILL": ", as the kernel does where memory runs out",
    "SIGSEGV": ", a crash in native code",
    "SIGBUS": ", a crash in native code",
    "SIGABRT": ", which native code raises for itself",
    "SIGFPE": ", a crash in native code",
    "SIGILL": ", a crash in native code",
}


@dataclass(frozen=True)
class Source:
    """Which loop it is: what the loader needs."""

    spec: str  # my_loop.py:train
    folder: str  # of the copy of its code on this machine
    module: str  # to import from there
    attribute: str  # the function in it
    threads: int = 1
    device: str = "cpu"
    gpus: int = 1  # of a trial
    visible: str | None = None  # its CUDA_VISIBLE_DEVICES; None for the worker's own


class Started(Protocol):
    """A process, as ``subprocess.Popen`` has it."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code."""
        ...

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        ...

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        ...


Start = Callable[[Source, int, int], Started]


def start_child(source: Source, socket_end: int, output: int) -> Started:
    """Start the process as a new interpreter, in a session of its own.

    Args:
        source: the loop; the process is told of it later, except for the GPUs that it sees.
        socket_end: descriptor of its end of the socket.
        output: descriptor for its stdout and stderr.
    """
    command = [sys.executable, "-P", "-m", "worker.own.child", str(socket_end), str(os.getpid())]
    seen = {} if source.visible is None else {"CUDA_VISIBLE_DEVICES": source.visible}
    return subprocess.Popen(
        command,
        env={**os.environ, **seen},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=[socket_end],
        start_new_session=True,
    )


class LoopProcess:
    """A running process, with the loop of one source."""

    def __init__(self, source: Source, offspring: Offspring, start: Start) -> None:
        """Start the process and ask it to load the loop. ``wait_loaded`` says what came of it."""
        self.source = source
        self.search: SearchFolder | None = None  # of the trials, for what the loop prints
        self._offspring = offspring
        ours, theirs = socket.socketpair()
        self._output = Output(logged=True)
        with theirs:
            self._process = start(source, theirs.fileno(), self._output.theirs)
        self._output.close_theirs()
        self._own_mark = offspring.mark_next(self._process.pid)
        self._trial_mark = 0
        self._socket = ours
        self._channel = Channel(Connection(os.dup(ours.fileno())))
        self._messages: SimpleQueue[Message | None] = SimpleQueue()
        self._broken: str | None = None  # why its messages cannot be read
        self._busy = False
        self.lives = True
        threading.Thread(target=self._read, name="loop's messages", daemon=True).start()
        self._send({"do": "load", **asdict(source)})

    def wait_loaded(self, stopping: Callable[[], bool]) -> bool:
        """Wait until the loop is loaded. Return False if the worker is told to stop meanwhile.

        Raises:
            TaskError: it cannot be loaded, in the words of the loader, or its process has ended.
        """
        while (message := self.next(LOOK_S)) is None:
            if stopping():
                return False
        if isinstance(message, Refused | Raised):
            at_import = "" if isinstance(message, Refused) else f"importing {self.source.spec}: "
            raise TaskError(at_import + message.reason) from _There(message.traceback)
        return isinstance(message, Loaded)

    def begin(self, claim: Claim, epoch: float, state: Any) -> None:
        """Let the loop train a trial.

        Args:
            claim: the trial.
            epoch: epochs that are done.
            state: the state to resume from: frozen, perhaps packed.
        """
        trial = claim.trial
        given = {
            "id": trial.id,
            "hp": dict(trial.hyperparameters),
            "epochs": trial.epochs,
            "max_epochs": trial.horizon,
            "seed": trial.seed,
            "device": self.source.device,
            "gpus": self.source.gpus,
            "epoch": epoch,
        }
        packed = state if isinstance(state, Packed) or state is None else Packed.of(state)
        self._trial_mark = self._offspring.mark_next(self._process.pid)
        self._busy = True
        self._output.turn_to(self._output_path(claim))
        self._send({"do": "train", "trial": given}, packed)

    def next(self, wait_s: float) -> Message | None:
        """Return the next message, or None if none comes within ``wait_s``.

        A process that has ended gives ``Raised``, with how it ended.
        """
        with contextlib.suppress(Empty):
            message = self._messages.get(timeout=wait_s)
            if message is None:
                return self._died()
            self._busy = self._busy and not isinstance(message, Returned | Raised)
            return message
        # A process that the loop has forked may hold the pipe open.
        return self._died() if self._process.poll() is not None and not self._is_waiting() else None

    def go_on(self) -> None:
        """Let the call of the last report return."""
        self._send({"do": "go on"})

    def end_trial(self, hurry: Callable[[], bool], beat: Callable[[], object]) -> list[str]:
        """Make the trial end if it has not, and end what it has started.

        The loop gets TrialEnded at its next report or beat, or later wherever it is. If it does not
        end, its process is killed, with all that it has started.

        Args:
            hurry: whether the worker is to stop.
            beat: called all the time while it waits.

        Returns:
            The names of the programs that the trial had left running.
        """
        if self._busy:
            self._send({"do": "end"})
            self._wait_idle(hurry, beat)
        if self._busy:
            self.kill()
        if not self.lives:
            return []
        # What a thread of the loop starts from now on is none of this trial's.
        self._offspring.mark(self._process.pid, self._own_mark)
        left = self._offspring.end_of(self._trial_mark)
        self._output.turn_to(None)
        return left

    def _wait_idle(self, hurry: Callable[[], bool], beat: Callable[[], object]) -> None:
        began, interrupted, told = time.monotonic(), False, False
        while self._busy:
            passed_s = time.monotonic() - began
            limit_s = HURRY_S if hurry() else TIDY_S if told else ASKED_S + INTERRUPTED_S
            if passed_s > limit_s:
                return
            if not interrupted and not told and passed_s > min(ASKED_S, limit_s / 2):
                interrupted = True
                self._process.send_signal(signal.SIGTERM)
            told = isinstance(self.next(LOOK_S), Told) or told
            beat()

    def kill(self) -> None:
        """End the process at once, then all that it has started."""
        self.lives = self._busy = False
        self._process.kill()
        self._end_all()
        self._process.wait()
        self._hang_up()
        self._channel.close()
        self._socket.close()
        self._output.tail(LAST_S)

    def close(self) -> None:
        """End the process, which has no trial now."""
        if self.lives:
            self._hang_up()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVE_S)
            self.kill()

    # -- pieces ----------------------------------------------------------------------------------

    def _output_path(self, claim: Claim) -> Path | None:
        """Return the file for what the loop prints while it trains a trial.

        It is None if the search's folder is gone: it is not for a worker to make it anew. The
        worker's log then has it alone.
        """
        if self.search is None:
            return None
        stage = self.search.stage(claim.trial.stage)
        with contextlib.suppress(OSError):
            if stage.path.is_dir():
                return stage.output_path(claim.trial.id, claim.fence.attempt)
        return None

    def _died(self) -> Raised:
        """Return how the process has ended, once it has. What it had started ends with it."""
        self.lives = self._busy = False
        try:
            code: int | None = self._process.wait(LAST_S)
        except subprocess.TimeoutExpired:  # it has only closed its end of the socket
            code = None
        self.kill()
        output = self._output.tail()
        why = explain_end(code) if self._broken is None else self._broken
        return Raised(f"{why}{last_words(output)}", output)

    def _hang_up(self) -> None:
        """Close the pipe for both sides, though a thread here waits for it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _end_all(self) -> None:
        self._offspring.end_all_marked()
        if not self._own_mark:  # no marks here: only what has not left its group can be found
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _is_waiting(self) -> bool:
        return not self._messages.empty()

    def _send(self, header: dict[str, Any], state: Packed | None = None) -> None:
        with contextlib.suppress(OSError):  # it has ended, as ``next`` will say
            self._channel.send(header, state)

    def _read(self) -> None:
        try:
            while True:
                self._messages.put(read(*self._channel.receive()))
        except (EOFError, OSError, TypeError):  # closed on one side or the other
            self._messages.put(None)
        except Exception as error:  # whatever a user's code has written into the pipe
            self._broken = f"its process sent what cannot be read: {error}"
            self._messages.put(None)


class LoopHost:
    """Has at most one process for loops: the next one begins where the last has ended."""

    def __init__(self, offspring: Offspring, start: Start = start_child) -> None:
        """Initialise.

        Args:
            offspring: descendants of this worker.
            start: starts a process.
        """
        self._offspring = offspring
        self._start = start
        self._process: LoopProcess | None = None

    def open(
        self,
        source: Source,
        stopping: Callable[[], bool] = lambda: False,
        search: SearchFolder | None = None,
    ) -> LoopProcess | None:
        """Return the process with this loop, and start it if there is none.

        Args:
            source: the loop.
            stopping: whether the worker is told to stop. If so, the result is None.
            search: whose stages' folders get what the loop prints while it trains. Without it, that
                goes only to the worker's log.

        Raises:
            TaskError: the loop cannot be loaded.
        """
        found = self._process
        if found is not None and found.lives and found.source == source:
            found.search = search
            return found
        self.close()
        try:
            self._process = LoopProcess(source, self._offspring, self._start)
        except OSError as error:
            raise TaskError(
                f"{source.spec}: its process cannot be started ({error.strerror}); free memory, or "
                "raise the limit of processes"
            ) from error
        try:
            loaded = self._process.wait_loaded(stopping)
        except TaskError:
            self.close()
            raise
        self._process.search = search
        return self._process if loaded else None

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.close()
            self._process = None


def explain_end(code: int | None) -> str:
    """Describe how the process of a loop has ended in the middle of its work."""
    if code is None:
        return "its process closed the pipe to the worker"
    if code == EXIT_POISONED:
        return "the device served its process no more"
    return f"its process {how_ended(code)}" + (f", as os._exit({code}) does" if code >= 0 else "")


def how_ended(code: int) -> str:
    """Describe an exit code, negative for a signal."""
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}{MEANINGS.get(name, '')}"


class _There(Exception):
    """A traceback of another process, as the cause of an error here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"
