from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.commands import Place, place
from tests.redis_server import start_redis


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard() -> None:
    """Restore SIGINT.

    A script's ``&`` makes its processes ignore SIGINT, and every process that a test starts would
    inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    """A folder on the embedded server."""
    with place(tmp_path) as opened:
        yield opened


@pytest.fixture
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server without a password."""
    with start_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def password_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server on loopback whose password is "right"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with start_redis(
        tmp_path_factory.mktemp("redis"), "7", "--port", str(port), "--requirepass", "right"
    ):
        yield f"redis://:right@127.0.0.1:{port}/0"
