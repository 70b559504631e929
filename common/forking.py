"""A server that forks processes on request, and reports those that have ended.

A process that has imported everything once is forked within milliseconds, and shares the memory of
all that was imported. Such a process must not start a thread, use a device or compute. A fork would
inherit locks that are never released, and a CUDA context that no child process can use. So the
server only waits, forks and reaps.

Each message on its socket is one packet of JSON. With ``fork`` come two file descriptors:

    {"ask": 1, "do": "fork", "environ": {...}, "bound": false, ...}
    {"ask": 2, "do": "signal", "pid": 71, "number": 15, "group": false}
    {"answer": 1, "pid": 71}        {"answer": 2}        {"answer": 1, "error": "..."}
    {"pid": 71, "ended": -9}

When the socket closes, the other side has ended. The server then sends SIGTERM to the processes
that are ``bound`` to it, and returns.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

MAX_MESSAGE_BYTES = 1 << 20  # for a large environment; the limit of a socket packet is lower
DESCRIPTORS = 2  # file descriptors that come with a fork
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
Become = Callable[[dict[str, Any], Sequence[int]], NoReturn]


class Server:
    """The server, in a process of its own."""

    def __init__(self, channel: socket.socket, become: Become) -> None:
        """Initialise.

        Args:
            channel: the socket.
            become: called in each forked process with the message that asked for it and the
                descriptors that came with it. They are the process's own.
        """
        self._channel = channel
        self._become = become
        # By process id: whether the process ends with the other side.
        self._children: dict[int, bool] = {}
        self._wake, self._poke = socket.socketpair()
        self._wake.setblocking(False)
        self._poke.setblocking(False)

    def answer_waiting(self) -> None:
        """Answer one message if it is there already."""
        if select.select([self._channel], [], [], 0)[0]:
            self._hear()

    def run(self) -> None:
        """Serve until the other side closes the socket."""
        signal.set_wakeup_fd(self._poke.fileno(), warn_on_full_buffer=False)
        # The wakeup descriptor is written only for signals that have a Python handler.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._reap()  # who has ended before
        while True:
            ready, _, _ = select.select([self._channel, self._wake], [], [])
            if self._wake in ready:
                self._wake.recv(1 << 12)
                self._reap()
            if self._channel in ready and not self._hear():
                break
        for pid, bound in self._children.items():
            if bound:
                os.kill(pid, signal.SIGTERM)  # not reaped yet, so the id is still this process's

    def _hear(self) -> bool:
        """Answer one message. Return False if the other side has closed the socket."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(
                self._channel, MAX_MESSAGE_BYTES, DESCRIPTORS
            )
        except ConnectionError:
            return False
        if not packet:
            return False
        asked: dict[str, Any] = json.loads(packet)
        try:
            found = self._fork(asked, descriptors) if asked["do"] == "fork" else self._signal(asked)
            self._say({"answer": asked["ask"], **found})
        except OSError as error:  # no memory left, or too many processes
            self._say({"answer": asked["ask"], "error": str(error)})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _fork(self, asked: dict[str, Any], descriptors: Sequence[int]) -> dict[str, int]:
        pid = fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for used in (self._channel, self._wake, self._poke):
                used.close()
            self._become(asked, descriptors)
        self._children[pid] = bool(asked["bound"])
        return {"pid": pid}

    def _signal(self, asked: dict[str, Any]) -> dict[str, int]:
        pid = asked["pid"]
        if pid in self._children:  # not reaped yet, so the id is still this process's
            (os.killpg if asked["group"] else os.kill)(pid, asked["number"])
        return {}

    def _reap(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._children[pid]
                self._say({"pid": pid, "ended": os.waitstatus_to_exitcode(status)})

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except ConnectionError:
            return  # `_hear` notices next that the socket has closed


def fork() -> int:
    """Fork this process. Return the child's id, and 0 in the child.

    Raises:
        OSError: no memory is left, or there are too many processes.
    """
    with warnings.catch_warnings():
        # Python warns of a fork beside threads. These are of NumPy's library, which can fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def set_streams(stdout: int, stderr: int) -> None:
    """Redirect stdout and stderr to descriptors, which are closed, and stdin to the null device."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, stdout, stderr)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def set_name(name: bytes) -> None:
    """Set the name of this process in `ps`, at most 15 bytes. Linux only."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name)


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Make this process end when its parent does, even by SIGKILL. It does nothing without prctl.

    Where there is none, the process ends when it next speaks to the parent.

    Args:
        parent: the parent, which may have gone already.
        number: the signal that this process gets then. A program that takes its place gets it too.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it has gone already
            os._exit(0)
