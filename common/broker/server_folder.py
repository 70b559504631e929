"""The folder of a Redis server that this program starts: its data, its log and its lock.

It holds

    server.lock    locked by the server process itself, so that its end shows, whatever its cause
    version        the newest server version that wrote the data
    redis.log, and the append-only file

The server gets its configuration on standard input, so no value of it is in an argument list.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from common import safe_read
from common.broker import server_program
from common.broker.server_program import Program
from common.errors import QueueError
from common.folder import durable
from common.folder.filelock import RETRY_S, FileLock
from common.offspring import disown
from common.shell_command import shell_command

# From start or discovery to the first answer; loading the data is not counted.
ANSWER_PATIENCE_S = 60.0
LOADING_PATIENCE_S = 600.0
MAX_LOG_BYTES = 1 << 20
LOG_TAIL_LINES = 8
LOG_TAIL_BYTES = 1 << 14
MAX_VERSION_BYTES = 1 << 10
KEEP: Mapping[str, str] = {
    "dir": ".",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",  # no snapshots: the append-only file has everything
    "daemonize": "no",
    "always-show-logo": "no",
}


class Deadline:
    """The time at which a caller stops waiting."""

    def __init__(self, patience_s: float) -> None:
        self._end = time.monotonic() + patience_s
        self._extended = False

    def has_passed(self) -> bool:
        """Return whether the time has passed."""
        return time.monotonic() > self._end

    def extend_once(self, patience_s: float) -> None:
        """Extend the wait to ``patience_s`` from now; only the first call has an effect."""
        if not self._extended:
            self._end = time.monotonic() + patience_s
            self._extended = True


class ServerFolder:
    """The folder in which one server runs. It must exist before any method is called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "redis.log"
        self.lock = path / "server.lock"
        self._version_file = path / "version"

    def is_in_use(self) -> bool:
        """Return whether a server runs in the folder.

        Raises:
            CheckpointError: the folder cannot be used.
        """
        lock = FileLock(self.lock)
        try:
            if not lock.try_exclusive():
                return True
            lock.release()
            return False
        finally:
            lock.close()

    def choose_program(self, programs: Iterable[Program] | None = None) -> Program:
        """Return a server program that may open the data, and note its version beside the data.

        Args:
            programs: Those to choose from; None: all of this machine.

        Raises:
            QueueError: there is none, or the version of the data cannot be read.
        """
        written = self.read_version()
        found = server_program.find_programs() if programs is None else programs
        program = server_program.choose(found, written, self.path)
        text = server_program.version_text(max(program.version, written))
        durable.replace(self._version_file, text.encode())
        return program

    def read_version(self) -> tuple[int, ...]:
        """Return the newest version that wrote the data; empty where there is no data.

        Raises:
            QueueError: the file with the version cannot be read.
        """
        by_layout = (7,) if (self.path / "appendonlydir").exists() else ()
        try:
            text = safe_read.read_bytes(self._version_file, MAX_VERSION_BYTES).decode()
            return max(server_program.parse_version(text), by_layout)
        except FileNotFoundError:
            return by_layout
        except (OSError, ValueError) as error:
            raise QueueError(
                f"{self._version_file}: it cannot be read ({error}); write the server's version "
                "into it, such as 7.0.0"
            ) from error

    def start(
        self,
        program: Program,
        settings: Iterable[Sequence[str]],
        answers: Callable[[Deadline], bool],
        name: str,
        otherwise: str = "",
    ) -> subprocess.Popen[bytes]:
        """Start a server in a session of its own, and wait until it answers.

        Args:
            program: The server program.
            settings: Directives of the configuration besides ``KEEP``, each as words.
            answers: Whether the server answers. It may extend the deadline.
            name: The kind of server, for the message.
            otherwise: What else a user may do where it does not start, for the message.

        Raises:
            QueueError: it ends at once, or does not answer.
        """
        process = self._spawn(program, [*settings, *KEEP.items()])
        deadline = Deadline(ANSWER_PATIENCE_S)
        while not answers(deadline):
            ended = process.poll() is not None
            if ended or deadline.has_passed():
                what = f"ended with status {process.returncode}" if ended else "does not answer"
                raise QueueError(
                    f"{self.path}: the {name} Redis server did not start: {program} {what}. "
                    f"{self.log} ends with\n{log_tail(self.log)}\n"
                    "Repair what it names (a damaged append-only file: redis-check-aof --fix), or "
                    f"move {self.path} away and run `{shell_command('master recover')}`{otherwise}"
                )
            time.sleep(RETRY_S)
        return process

    def _spawn(
        self, program: Program, settings: Iterable[Sequence[str]]
    ) -> subprocess.Popen[bytes]:
        self.rotate_log()
        lock = FileLock(self.lock)
        try:
            # The lock is free, as was seen under the start lock. The server inherits it.
            lock.try_exclusive()
            with self.log.open("ab") as log:
                process = subprocess.Popen(
                    [program.path, "-"],
                    cwd=self.path,
                    env=_environment(),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock.fd],
                    # A new session: Ctrl-C in the terminal stops the command and not the server.
                    start_new_session=True,
                    umask=0o077,
                )
            # A worker may have started the server while a user's task trains. The server must
            # outlive the task.
            disown(process.pid)
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has ended at once, which the caller sees
                process.stdin.write(configuration(settings).encode(errors="surrogateescape"))
                process.stdin.close()
            return process
        finally:
            # Closed, not released: the server process now holds the lock.
            lock.close()

    def rotate_log(self) -> None:
        """Set a log aside that has become long. The one that was set aside before is lost."""
        with suppress(OSError):
            if self.log.stat().st_size > MAX_LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.old"))


def _environment() -> dict[str, str]:
    """Return the environment of a server: without what may hold the password of another one."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("REDIS_")}
    # Redis 7.2 does not start under a locale that is not installed.
    return {**own, "LC_ALL": "C"}


def configuration(settings: Iterable[Sequence[str]]) -> str:
    """Return directives as the text of a configuration file, every value in quotes."""
    return "".join(
        f"{directive} {' '.join(map(_quote, values))}\n" for directive, *values in settings
    )


def _quote(word: str) -> str:
    for mark, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        word = word.replace(mark, escaped)
    return f'"{word}"'


def log_tail(log: Path) -> str:
    """Return the last lines of a server's log, indented."""
    try:
        lines = safe_read.read_end(log, LOG_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError as error:
        lines = [f"(it cannot be read: {error.strerror})"]
    return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:])
