"""A Redis server with an append-only file.

It can be killed, stopped, restarted, and robbed of what it wrote.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.redis_server import program

PATIENCE_S = 30.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """Redis 7 on a port of loopback, run as an operator would.

    Its append-only file is synchronised every second.

    Args:
        folder: for its data.
        addresses: of this host, on which it listens as well.
    """

    def __init__(self, folder: Path, *addresses: str) -> None:
        self.folder = folder
        self.address, self.port = "127.0.0.1", free_port()
        self._addresses = (self.address, *addresses)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def url(self) -> str:
        return self.url_at(self.address)

    def url_at(self, address: str) -> str:
        return f"redis://{address}:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(
            host=self.address, port=self.port, decode_responses=True, socket_timeout=5, protocol=2
        )

    def start(self) -> None:
        options = {
            "bind": " ".join(self._addresses),
            "port": str(self.port),
            "protected-mode": "no",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",
            "logfile": str(self.folder.parent / "redis.log"),
        }
        words = [
            word
            for name, value in options.items()
            for word in (f"--{name}", *(value.split(" ") if name == "bind" else [value]))
        ]
        self._process = subprocess.Popen(
            [program("7"), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait(self) -> None:
        """Until it serves."""
        deadline = time.monotonic() + PATIENCE_S
        with self.client() as client:
            while True:
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                assert time.monotonic() < deadline, (
                    f"Redis does not serve after {PATIENCE_S} s; see "
                    f"{self.folder.parent / 'redis.log'}"
                )
                time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def cut(self, share: float) -> int:
        """Cut the last ``share`` off a stopped server's append-only file; return how many bytes."""
        logs = [
            path
            for path in self.folder.rglob("*.aof")
            if ".incr." in path.name or path.parent == self.folder
        ]
        latest = max(logs, key=lambda path: path.stat().st_mtime)
        size = latest.stat().st_size
        os.truncate(latest, size - int(size * share))
        return int(size * share)

    def empty(self) -> None:
        """Removes all data of a server that does not run."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def served(folder: Path, *addresses: str) -> Iterator[Server]:
    """A server that runs when the block begins, and not when it has ended."""
    server = Server(folder, *addresses)
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()
