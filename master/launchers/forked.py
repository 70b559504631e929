"""The master's side of the fork server (``worker/run/fork_server.py``).

The server starts workers and checks in milliseconds. It is started before the master imports its
own modules, so that both import at the same time. If it cannot be used, or has died, each worker or
check is started as a separate process instead, which only takes longer.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from common.output import STDERR
from master.launchers.processes import Child, Elsewhere, Process
from master.launchers.stayed import any_stayed

MAX_MESSAGE_BYTES = 1 << 16  # an answer is one line
ANSWER_S = 60.0  # the server may still be importing, on a slow disk
PROGRAM = (sys.executable, "-P", "-m", "worker")
DRIVER = Path("/proc/driver/nvidia")


@dataclass(frozen=True)
class Done:
    """Exit code and output of a command that has ended."""

    returncode: int
    stdout: bytes


def can_fork() -> bool:
    """Return whether workers and checks may be forked here.

    Forking needs Linux, torch and the worker package, and no visible GPU. With a GPU each worker
    must import torch for itself.
    """
    if (
        not sys.platform.startswith("linux")
        or find_spec("torch") is None
        or find_spec("worker") is None
    ):
        return False
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return hidden or not (DRIVER.exists() or shutil.which("nvidia-smi"))


class ForkServer:
    """A process that forks workers and checks.

    Every method may be called at any time, even after the process has ended.
    """

    def __init__(self, root: Path) -> None:
        """Prepare the server without starting it.

        Args:
            root: The checkpoint root. It shows in the list of processes whose workers these are.
        """
        self._root = root
        self._mutex = threading.Lock()  # guards the start
        self._news = threading.Condition()
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: dict[int, dict[str, Any]] = {}
        self._ended: dict[int, int] = {}
        self._asked = 0
        self._gone = False

    @property
    def pid(self) -> int | None:
        """Process id of the server, or None before it has been started."""
        return self._process.pid if self._process else None

    @property
    def usable(self) -> bool:
        """Whether the server lives or may still be started, as far as is known."""
        return not self._gone

    def start(self) -> Self:
        """Start the server, unless that has been done.

        Otherwise its first use starts it. It answers once it has imported torch.
        """
        with self._mutex:
            if self._process is None and not self._gone:
                self._start()
        return self

    def _start(self) -> None:
        command = [*PROGRAM, "fork-server", "--checkpoints", str(self._root.absolute())]
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # only the master receives Ctrl-C
                )
            except OSError:
                # Processes are started without it, and report the cause of the failure.
                mine.close()
                self._gone = True
                return
        self._channel = mine
        threading.Thread(
            target=self._listen, args=(mine, self._process), name="fork server", daemon=True
        ).start()

    def fork(
        self,
        words: Sequence[str],
        environ: Mapping[str, str],
        stdout: int,
        stderr: int,
        bound: bool = False,
    ) -> Forked | None:
        """Start ``worker WORDS`` in its own session.

        Args:
            words: The words of the command line.
            environ: The complete environment.
            stdout: A file descriptor. The caller keeps it and closes it.
            stderr: A file descriptor, likewise.
            bound: Whether the process is stopped when this process ends.

        Returns:
            The process, or None if it cannot be forked. The caller then starts it in the slower
            way.
        """
        answer = self.ask(
            {"do": "fork", "words": list(words), "environ": dict(environ), "bound": bound},
            (stdout, stderr),
        )
        return Forked(int(answer["pid"]), self) if "pid" in answer else None

    def check(self, words: Sequence[str]) -> Done | None:
        """Run a command of the worker to its end. It writes to this process's stderr.

        Returns:
            The ended command, or None if it could not be run to its end here.
        """
        read, write = os.pipe()
        with os.fdopen(read, "rb") as output:
            try:
                process = self.fork(words, os.environ, write, STDERR, bound=True)
            finally:
                os.close(write)
            if process is None:
                return None
            try:
                stdout = output.read()
                process.wait()
            except BaseException:
                # Ctrl-C: the process is in another session and did not receive it.
                process.terminate()
                raise
        return None if process.unknown else Done(process.returncode or 0, stdout)

    def close(self) -> None:
        """End the server. Its workers go on."""
        with self._mutex:
            if self._channel is None:
                self._gone = True
            else:
                with suppress(OSError):
                    self._channel.shutdown(socket.SHUT_RDWR)

    def find_exit_code(self, pid: int) -> int | None:
        """Return the exit code of a child, or None while it lives or if it is unknown."""
        with self._news:
            return self._ended.get(pid)

    def wait_for_end(self, pid: int, timeout_s: float | None) -> None:
        """Wait until a child has ended, the server has ended, or the time is up."""
        with self._news:
            self._news.wait_for(lambda: pid in self._ended or self._gone, timeout_s)

    def ask(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Send a message and return its answer, which is empty if there is none."""
        self.start()
        with self._news:
            self._asked += 1
            number = self._asked
        if self._channel is None or self._process is None or self._gone:
            return {}
        try:
            socket.send_fds(
                self._channel, [json.dumps({"ask": number, **message}).encode()], descriptors
            )
        except OSError:  # the server has gone, or the environment is too large for a packet
            return {}
        with self._news:
            if not self._news.wait_for(lambda: number in self._answers or self._gone, ANSWER_S):
                self._process.kill()  # it hangs, and must not carry out the message later
            return self._answers.pop(number, {})

    def _listen(self, channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
        while packet := _next(channel):
            heard = json.loads(packet)
            with self._news:
                if "ended" in heard:
                    self._ended[heard["pid"]] = heard["ended"]
                else:
                    self._answers[heard["answer"]] = heard
                self._news.notify_all()
        with self._news:
            self._gone = True
            self._news.notify_all()
        process.wait()


def _next(channel: socket.socket) -> bytes:
    """Return one packet, or no bytes if the other side has closed."""
    try:
        return channel.recv(MAX_MESSAGE_BYTES)
    except OSError:
        return b""


class Forked:
    """A process that the server has forked, with methods like those of ``subprocess.Popen``."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid = pid
        self.unknown = False  # whether it ended after the server, so that its exit code is unknown
        self._server = server
        self._elsewhere = Elsewhere(pid)  # used when the server is gone
        self._code: int | None = None

    @property
    def returncode(self) -> int | None:
        """Exit code as of the last ``poll``, or None."""
        return self._code

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs.

        The result is 0 if the server that knew the exit code has gone.
        """
        if self._code is None:
            self._code = self._server.find_exit_code(self.pid)
        if self._code is None and not self._server.usable and self._elsewhere.poll() is not None:
            self._code, self.unknown = self._elsewhere.poll(), True
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process and return its exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended within ``timeout`` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        self._server.wait_for_end(self.pid, timeout)
        if (code := self.poll()) is not None:
            return code
        left = None if until is None else until - time.monotonic()
        self._elsewhere.wait(left)  # the server is gone, or the time is up
        return self.poll() or 0

    def terminate(self) -> None:
        """Ask the process to leave (SIGTERM)."""
        self._signal(signal.SIGTERM, group=False)

    def kill_all(self) -> None:
        """Kill the process and all that it has started."""
        self._signal(signal.SIGKILL, group=True)

    def _signal(self, number: signal.Signals, group: bool) -> None:
        if (
            not self._server.ask(
                {"do": "signal", "pid": self.pid, "number": int(number), "group": group}
            )
            and self.poll() is None
        ):
            self._elsewhere.signal(number, group)


def start_early(root: Path, wanted: bool = True) -> ForkServer | None:
    """Return the fork server of a launch, or None if forking is not possible here.

    Call this before anything heavy is imported.

    Args:
        root: The checkpoint root.
        wanted: Whether the server is certain to be used. It is then started now, to import in the
            meantime, unless workers have stayed from an earlier launch. Otherwise its first use
            starts it.
    """
    if not can_fork():
        return None
    server = ForkServer(root)
    return server.start() if wanted and not any_stayed(root) else server


def start_process(
    command: Sequence[str],
    environ: Mapping[str, str] | None,
    output: int,
    spawner: ForkServer | None,
) -> Process:
    """Start a worker: forked if possible, else by its command.

    Raises:
        OSError: It cannot be started.
    """
    if spawner is not None and spawner.usable and tuple(command[: len(PROGRAM)]) == PROGRAM:
        forked = spawner.fork(
            command[len(PROGRAM) :], os.environ if environ is None else environ, output, output
        )
        if forked is not None:
            return forked
    return Child(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # only the master receives Ctrl-C
    )
