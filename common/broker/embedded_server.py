"""The embedded server: one Redis for all processes of this machine that use a checkpoint root.

It runs as long as any of them does; the last one stops it. Its hidden folder ``.redis`` in the root
holds

    start.lock     locked exclusively while a process starts or stops the server
    users.lock     shared by every user; one that gets it exclusively is the last
    server.json    host, boot and socket of the server, as long as one may be running
    redis.sock, and what ``ServerFolder`` lists

If all users are killed, the server goes on. The next user finds it, uses it and stops it at its
end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from common.broker.embedded_folder import Place, make_private, remove_socket
from common.broker.server_folder import (
    ANSWER_PATIENCE_S,
    LOADING_PATIENCE_S,
    Deadline,
    ServerFolder,
)
from common.errors import QueueError
from common.folder import durable
from common.folder.filelock import RETRY_S, FileLock
from common.shell_command import shell_command

FOLDER = ".redis"
# Another process may be starting or stopping the server; this takes long with a large append-only
# file.
LOCK_PATIENCE_S = 120.0
STOP_PATIENCE_S = 30.0  # a slow disk may still be writing
ANSWER_TIMEOUT_S = 5.0


class EmbeddedServer:
    """One process's use of the embedded server of a checkpoint root. Threads may share it."""

    def __init__(self, root: Path) -> None:
        self.folder = root.resolve() / FOLDER
        self.socket = ""  # set by ``acquire``
        self._place_file = self.folder / "server.json"
        self._server = ServerFolder(self.folder)
        # A file lock does not exclude other threads of the same process.
        self._mutex = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None  # of the server, whoever started it

    def acquire(self) -> None:
        """Become a user of the server, and start it if none runs.

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
                # This cannot fail: users.lock is only ever taken exclusively under the start lock.
                self._users_lock.try_shared()
                self._run()
        except BaseException:
            self._forget()
            raise

    def ensure(self) -> bool:
        """Start the server again if it has died. It loads its data from the append-only file.

        Returns:
            True if the server had died.

        Raises:
            CheckpointError: the folder cannot be used.
            QueueError: the server does not start.
        """
        with self._alone():
            return self._run()

    def release(self, client: redis.Redis) -> None:
        """Stop being a user, and stop the server if this was the last one.

        Args:
            client: a connection that reaches the server even where its folder has been removed.

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
        """Make sure that a server answers. Return True if it had to be started."""
        place = self._find_place()
        if place is not None:
            self.socket = place.socket
        deadline = Deadline(ANSWER_PATIENCE_S)
        while self._server.is_in_use():
            if place and self._answers(deadline):
                return False
            if deadline.has_passed():
                where = place.socket if place else "a known socket"
                raise QueueError(
                    f"{self.folder}: a server runs, but does not answer at {where} (it hangs, or "
                    f"runs in a container with its own /tmp); `fuser {self._server.lock}` shows "
                    "its process: end it and try again"
                )
            time.sleep(RETRY_S)
        self._start(place)
        return True

    def _find_place(self) -> Place | None:
        known = Place.read(self._place_file)
        if known and known.may_run_elsewhere():
            raise QueueError(
                f"{self.folder}: its Redis server may be running on the host {known.host}; run "
                f"this there, or end what runs there, or, for several hosts, {_elsewhere()}. If "
                f"{known.host} is gone for good, delete {self._place_file}"
            )
        return None if known and (known.is_outlived() or not known.is_ours(self.folder)) else known

    def _start(self, known: Place | None) -> None:
        program = self._server.choose_program()
        place = known or Place.new(self.folder)
        place.write(self._place_file)
        self.socket = place.socket
        path = Path(place.socket)
        make_private(path.parent)
        path.unlink(missing_ok=True)  # a killed server leaves it behind
        settings = [
            ("port", "0"),  # no TCP
            ("unixsocket", place.socket),
            ("unixsocketperm", "700"),
        ]
        self._process = self._server.start(
            program, settings, self._answers, "embedded", f", or {_elsewhere()}"
        )

    def _answers(self, deadline: Deadline) -> bool:
        try:
            with self._connection() as connection:
                connection.ping()  # unlike INFO, it is refused while the data is loaded
                info: Any = connection.info("server")
                self._pid = int(info["process_id"])
                return True
        except BusyLoadingError:
            deadline.extend_once(LOADING_PATIENCE_S)
            return False
        except RedisError:
            return False

    def _connection(self) -> redis.Redis:
        return redis.Redis(
            unix_socket_path=self.socket,
            socket_timeout=ANSWER_TIMEOUT_S,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
        )

    def _stop(self, client: redis.Redis) -> None:
        if self._is_replaced():
            # A normal shutdown would unlink its socket, whose path now belongs to the other server.
            self._end_removed(signal.SIGKILL)
            return
        deadline = Deadline(STOP_PATIENCE_S)
        with (
            suppress(RedisError),
            self._connection() if Path(self.socket).is_socket() else client as connection,
        ):
            # The append-only file is written and synced all the same.
            connection.shutdown(nosave=True)
        if not self.folder.exists():
            # The client's connection may be broken, and the socket is gone.
            self._end_removed(signal.SIGTERM)
        while self.folder.exists() and self._server.is_in_use():
            if deadline.has_passed():
                raise QueueError(
                    f"{self.folder}: its Redis server does not stop; `fuser {self._server.lock}` "
                    "shows its process, end it"
                )
            time.sleep(RETRY_S)
        if self._process:
            self._process.wait()
        remove_socket(Path(self.socket))
        self._place_file.unlink(missing_ok=True)

    def _is_replaced(self) -> bool:
        """Return whether the folder was removed and another one made in its place.

        The server that runs there belongs to other processes and must not be stopped.
        """
        try:
            there = self._users_lock.path.stat()
        except FileNotFoundError:
            return False
        return not os.path.samestat(there, os.fstat(self._users_lock.fd))

    def _end_removed(self, number: signal.Signals) -> None:
        """Signal the server whose folder was removed or moved, if it still runs."""
        with suppress(OSError):
            place = Path(f"/proc/{self._pid}/cwd")
            is_ours = place.readlink().name.removesuffix(" (deleted)") == FOLDER
            # If the folders are the same, another server has the number of the one that ended.
            same = self.folder.exists() and os.path.samestat(place.stat(), self.folder.stat())
            if self._pid is not None and is_ours and not same:
                os.kill(self._pid, number)


def _elsewhere() -> str:
    return f"`{shell_command('master redis start')}` starts a server that other hosts reach"
