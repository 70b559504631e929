"""A process that the processes of loops are forked from, so that none imports torch again.

A worker forks it before it starts a thread, uses a device or computes. It has then imported what
the worker has, and has run nothing of a user's. It lives as long as its worker, and what it has
forked lives no longer than it: Linux sends SIGKILL to both when their parent has gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from common.ending import END_SIGNALS
from common.forking import Server, die_with, fork, set_name, set_streams
from common.output import STDERR
from worker.own import child
from worker.own.process import LAST_S, LOOK_S, Source, Started, start_child
from worker.tasks.importing import find_modules

MAX_MESSAGE_BYTES = 1 << 12
ANSWER_S = 60.0  # a machine may be busy
NAME, CHILD_NAME = b"zygote", b"loop"  # names in `ps`
ARG_START, ARG_END = 45, 46  # places in /proc/self/stat, counted after the name


class Zygote:
    """The worker's side. Every method may be called after the process has ended."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        """Initialise.

        Args:
            channel: to the process.
            pid: the process, a child of this one.
        """
        self.pid = pid
        self._channel = channel
        self._loaded = frozenset(sys.modules)
        self._ended: dict[int, int] = {}  # exit codes
        self._asked = 0
        self._gone = False

    def start(self, source: Source, socket_end: int, output: int) -> Started:
        """Start the process of a loop. Where it cannot be forked, start a new interpreter.

        A new one has loaded fewer libraries. It is needed where a module of the task is called like
        one that only the zygote has loaded.

        Args:
            source: the loop; the process is told of it later.
            socket_end: descriptor of its end of the socket.
            output: descriptor for its stdout and stderr.

        Raises:
            OSError: it cannot be started.
        """
        if not self._gone and self._loaded.isdisjoint(find_modules(Path(source.folder))):
            asked = {"do": "fork", "environ": dict(os.environ), "bound": False}
            answer = self.ask(asked, (socket_end, output))
            if "pid" in answer:
                return Forked(int(answer["pid"]), self)
        return start_child(source, socket_end, output)

    def close(self) -> None:
        """End the process, and what it has forked."""
        self._gone = True
        self._channel.close()
        until = time.monotonic() + LAST_S
        with contextlib.suppress(ChildProcessError):  # a task has waited for it
            while not os.waitpid(self.pid, os.WNOHANG)[0] and time.monotonic() < until:
                time.sleep(LOOK_S / 10)

    def ask(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Send a message and return its answer, which is empty if there is none."""
        self._asked += 1
        packet = json.dumps({"ask": self._asked, **message}).encode()
        until = time.monotonic() + ANSWER_S
        try:
            self._channel.settimeout(ANSWER_S)
            socket.send_fds(self._channel, [packet], descriptors)
        except OSError:  # it has ended, or the message is too large
            return {}
        while (told := self._hear(until - time.monotonic())) is not None:
            if told.get("answer") == self._asked:
                return told
        self._gone = True
        self._channel.close()  # if it only hangs, it ends once it can, and what it has forked too
        return {}

    def find_exit_code(self, pid: int, wait_s: float = 0.0) -> int | None:
        """Return the exit code of a process that was forked here; None while it runs."""
        until = time.monotonic() + wait_s
        while pid not in self._ended and self._hear(max(0.0, until - time.monotonic())) is not None:
            pass
        if self._gone:
            self._ended.setdefault(pid, -signal.SIGKILL)
        return self._ended.get(pid)

    def _hear(self, wait_s: float) -> dict[str, Any] | None:
        """Return the next message. Return None if none comes in time, or the process has ended."""
        if self._gone or wait_s < 0:
            return None
        self._channel.settimeout(wait_s)
        try:
            packet = self._channel.recv(MAX_MESSAGE_BYTES)
            told: dict[str, Any] | None = json.loads(packet or b"null")
        except (TimeoutError, BlockingIOError):
            return None
        except ConnectionError:
            told = None
        if told is None:
            self._gone = True
        elif "ended" in told:
            self._ended[told["pid"]] = told["ended"]
        return told


class Forked:
    """A forked process, as ``subprocess.Popen`` has it."""

    def __init__(self, pid: int, zygote: Zygote) -> None:
        self.pid = pid
        self._zygote = zygote

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._zygote.find_exit_code(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended within ``timeout`` seconds.
        """
        while (code := self._zygote.find_exit_code(self.pid, timeout or LAST_S)) is None:
            if timeout is not None:
                raise subprocess.TimeoutExpired("a loop", timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        self._zygote.ask({"do": "signal", "pid": self.pid, "number": number, "group": False})

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def start_zygote() -> Zygote | None:
    """Fork this process. Return None where that is not possible: elsewhere than on Linux.

    Call it in the main thread, before another one is started, a device is used or anything is
    computed.
    """
    if not sys.platform.startswith("linux"):
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = os.getpid()
    # The new process is to ignore them from its first instruction on.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    try:
        pid = fork()
        if not pid:
            ours.close()
            _serve(theirs, worker, mask)
    except OSError:  # loops get a new interpreter, or the message that this is not possible
        ours.close()
        return None
    finally:
        theirs.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return Zygote(ours, pid)


def _serve(channel: socket.socket, worker: int, mask: Iterable[int]) -> NoReturn:
    try:
        os.setsid()
        die_with(worker)
        set_name(NAME)
        _set_command_line(b"worker.own.zygote")
        # Whoever ends the worker's group or container ends the worker, which then ends this.
        heard = [one for one in END_SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
        for number in heard:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        set_streams(os.open(os.devnull, os.O_WRONLY), os.open(os.devnull, os.O_WRONLY))
        _close_inherited()
        _forget_script_folder()
        gc.freeze()  # what is loaded so far stays in memory that all forks share
        zygote = os.getpid()
        Server(channel, lambda asked, given: _become(asked["environ"], given, zygote, heard)).run()
    finally:
        os._exit(0)


def _become(
    environ: dict[str, str], given: Sequence[int], zygote: int, heard: Sequence[int]
) -> NoReturn:
    """Turn the forked process into that of a loop, as a new interpreter would be."""
    try:
        os.setsid()
        set_name(CHILD_NAME)
        _set_command_line(b"worker.own.child")
        socket_end, output = given
        set_streams(output, os.dup(output))
        for number in heard:
            signal.signal(number, signal.SIG_DFL)
        if signal.SIGINT in heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environ)
        sys.argv = [child.__file__]
        draw_anew()
        child.main(socket_end, zygote)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def draw_anew() -> None:
    """Seed every random generator that a newly started process would seed itself."""
    random.seed()
    np.random.seed()
    torch.default_generator.seed()


def _close_inherited() -> None:
    """Close what whoever started the worker has left open. A new interpreter has none of it."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        number = int(entry.name)
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            if number > STDERR and os.get_inheritable(number):
                os.close(number)


def _forget_script_folder() -> None:
    """Remove the folder of the script from ``sys.path``, as ``-P`` does."""
    folders = ("", str(Path.cwd()), str(Path(sys.argv[0]).resolve().parent))
    if not sys.flags.safe_path and sys.path and sys.path[0] in folders:
        del sys.path[0]


def _set_command_line(words: bytes) -> None:
    """Replace the command line that `ps` shows: the worker's may have the URL of its Redis."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        stat = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(stat[ARG_START]), int(stat[ARG_END])
        if 0 < start < end:
            ctypes.memset(start, 0, end - start)
            ctypes.memmove(start, words, min(len(words), end - start - 1))
