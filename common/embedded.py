"""The embedded server: one Redis for all processes of this machine that use a checkpoint root, there while any of them lives.

Its hidden folder ``.redis`` in the root holds

    start.lock     held alone by whoever starts or stops the server, for that moment
    users.lock     shared by every user; whoever gets it alone is the last one, and stops the server
    server.lock    held by the server process itself, so that its end shows whatever ended it
    server.json    host, boot and socket of the server; there while one may be running
    version        of the newest server that wrote the data
    redis.sock, redis.log, and the append-only file

Users that were all killed leave a server behind; the next one finds it, uses it and stops it at its end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from common import bounded, durable, redis_program
from common.embedded_place import Place, make_private
from common.errors import QueueError
from common.filelock import RETRY_S, FileLock

FOLDER = ".redis"
LOCK_PATIENCE_S = 120.0  # another process starts or stops the server: a large append-only file takes its time
ANSWER_PATIENCE_S = 60.0  # from start or discovery to the first answer, loading not counted
LOADING_PATIENCE_S = 600.0
STOP_PATIENCE_S = 30.0  # the last write to a slow disk
ANSWER_TIMEOUT_S = 5.0
MAX_LOG_BYTES = 1 << 20
LOG_TAIL_LINES = 8
LOG_TAIL_BYTES = 1 << 14
MAX_VERSION_BYTES = 1 << 10
ELSEWHERE = "start a Redis server and give --redis URL"


class EmbeddedServer:
    """One process's part in the embedded server of a checkpoint root. Threads may share it."""

    def __init__(self, root: Path) -> None:
        self.folder = root.resolve() / FOLDER
        self.log = self.folder / "redis.log"
        self.socket = ""  # known from ``acquire`` on
        self._place_file = self.folder / "server.json"
        self._version_file = self.folder / "version"
        self._alive_file = self.folder / "server.lock"
        self._mutex = threading.Lock()  # a file lock does not part the threads of one process
        self._process: subprocess.Popen[bytes] | None = None

    def acquire(self) -> None:
        """Becomes a user of the server, which is started where none runs.

        Raises:
            CheckpointError: the folder cannot be used.
            QueueError: the server does not start, or may be running on another host.
        """
        durable.make_folder(self.folder.parent)
        make_private(self.folder)
        self._start_lock = FileLock(self.folder / "start.lock")
        self._users_lock = FileLock(self.folder / "users.lock")
        try:
            with self._alone():
                self._users_lock.try_shared()  # cannot fail: it is taken alone only under the start lock
                self._run()
        except BaseException:
            self._forget()
            raise

    def ensure(self) -> bool:
        """Starts the server again if it has died; its data come from the append-only file. True if it had died.

        Raises:
            CheckpointError: the folder cannot be used.
            QueueError: the server does not start.
        """
        with self._alone():
            return self._run()

    def release(self, client: redis.Redis) -> None:
        """Ceases to be a user, and stops the server after the last one.

        Args:
            client: reaches the server even where its folder has been removed.

        Raises:
            QueueError: the server does not stop.
        """
        try:
            with self._alone():
                if self._users_lock.try_exclusive():
                    self._stop(client)
        finally:
            self._forget()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._mutex, self._start_lock.exclusive(LOCK_PATIENCE_S):
            yield

    def _forget(self) -> None:
        for lock in (self._users_lock, self._start_lock):
            lock.release()
            lock.close()

    def _run(self) -> bool:
        """Has a server answer; True if it had to be started."""
        place = self._known_place()
        self.socket = place.socket if place else ""
        deadline = Deadline(ANSWER_PATIENCE_S)
        while self._lives():
            if place and self._answers(deadline):
                return False
            if deadline.passed():
                raise QueueError(
                    f"{self.folder}: a server runs, but does not answer at {self.socket or 'a known socket'} (it hangs, or runs in a "
                    f"container with its own /tmp); `fuser {self._alive_file}` shows its process: end it and try again"
                )
            time.sleep(RETRY_S)
        self._start(place)
        return True

    def _known_place(self) -> Place | None:
        known = Place.read(self._place_file)
        if known and known.may_run_elsewhere():
            raise QueueError(
                f"{self.folder}: its Redis server may be running on the host {known.host}; run this there, or end what runs there, "
                f"or, for several hosts, {ELSEWHERE}. If {known.host} is gone for good, delete {self._place_file}"
            )
        return None if known and known.outlived() else known

    def _lives(self) -> bool:
        alive = FileLock(self._alive_file)
        try:
            if not alive.try_exclusive():
                return True
            alive.release()
            return False
        finally:
            alive.close()

    def _start(self, known: Place | None) -> None:
        program = redis_program.choose(redis_program.installed(), self._written(), self.folder)
        durable.replace(self._version_file, redis_program.version_text(max(program.version, self._written())).encode())
        place = known or Place.new(self.folder)
        place.write(self._place_file)
        self.socket = place.socket
        make_private(Path(place.socket).parent)
        Path(place.socket).unlink(missing_ok=True)  # what a killed server left
        self._process = self._spawn(program)
        deadline = Deadline(ANSWER_PATIENCE_S)
        while not self._answers(deadline):
            if self._process.poll() is not None:
                raise self._not_started(f"{program} ended with status {self._process.returncode}")
            if deadline.passed():
                raise self._not_started(f"{program} does not answer")
            time.sleep(RETRY_S)

    def _spawn(self, program: redis_program.Program) -> subprocess.Popen[bytes]:
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.old"))
        alive = FileLock(self._alive_file)
        try:
            alive.try_exclusive()  # free, as was seen under the start lock; the server inherits it
            with self.log.open("ab") as log:
                return subprocess.Popen(
                    [program.path, *_options(self.socket)],
                    cwd=self.folder,
                    env={**os.environ, "LC_ALL": "C"},  # Redis 7.2 does not start under a locale that is not installed
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[alive.fd],
                    start_new_session=True,  # Ctrl-C is for the command, not for the server
                    umask=0o077,
                )
        finally:
            alive.close()  # not released: from here on it is the server's

    def _written(self) -> tuple[int, ...]:
        """The newest version that wrote the data; empty where there is none."""
        by_layout = (7,) if (self.folder / "appendonlydir").exists() else ()
        try:
            return max(redis_program.parse_version(self._version_text()), by_layout)
        except FileNotFoundError:
            return by_layout
        except (OSError, ValueError) as error:
            raise QueueError(
                f"{self._version_file}: it cannot be read ({error}); write the server's version into it, such as 7.0.0"
            ) from error

    def _version_text(self) -> str:
        return bounded.read_bytes(self._version_file, MAX_VERSION_BYTES).decode()

    def _answers(self, deadline: Deadline) -> bool:
        try:
            with self._connection() as connection:
                return bool(connection.ping())
        except BusyLoadingError:
            deadline.extend_once(LOADING_PATIENCE_S)
            return False
        except RedisError:
            return False

    def _connection(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.socket, socket_timeout=ANSWER_TIMEOUT_S, protocol=2, retry=Retry(NoBackoff(), 0))

    def _stop(self, client: redis.Redis) -> None:
        deadline = Deadline(STOP_PATIENCE_S)
        with suppress(RedisError), self._connection() if Path(self.socket).exists() else client as connection:
            connection.shutdown(nosave=True)  # the append-only file is written and synchronised all the same
        while self.folder.exists() and self._lives():
            if deadline.passed():
                raise QueueError(f"{self.folder}: its Redis server does not stop; `fuser {self._alive_file}` shows its process, end it")
            time.sleep(RETRY_S)
        if self._process:
            self._process.wait()
        if Path(self.socket).parent != self.folder:
            shutil.rmtree(Path(self.socket).parent, ignore_errors=True)
        self._place_file.unlink(missing_ok=True)

    def _not_started(self, what: str) -> QueueError:
        return QueueError(
            f"{self.folder}: the embedded Redis server did not start: {what}. {self.log} ends with\n{log_tail(self.log)}\n"
            f"Repair what it names (a damaged append-only file: redis-check-aof --fix), "
            f"or move {self.folder} away and run `master recover`, or {ELSEWHERE}"
        )


def log_tail(log: Path) -> str:
    """The last lines of a server's log, indented."""
    try:
        lines = bounded.read_end(log, LOG_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError as error:
        lines = [f"(it cannot be read: {error.strerror})"]
    return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:])


class Deadline:
    """When patience ends."""

    def __init__(self, patience_s: float) -> None:
        self._end = time.monotonic() + patience_s
        self._extended = False

    def passed(self) -> bool:
        """True once the patience is used up."""
        return time.monotonic() > self._end

    def extend_once(self, patience_s: float) -> None:
        """More patience, for the first reason to have it."""
        if not self._extended:
            self._end = time.monotonic() + patience_s
            self._extended = True


def _options(socket_path: str) -> list[str]:
    pairs = {
        "port": "0",  # no TCP
        "unixsocket": socket_path,
        "unixsocketperm": "700",
        "dir": ".",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",  # the append-only file is all
        "daemonize": "no",
        "always-show-logo": "no",
    }
    return [word for name, value in pairs.items() for word in (f"--{name}", value)]
