"""`master serve`: binds the address, says where the dashboard is, and serves until it is told to stop."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from common.errors import ConfigError
from common.options import INTERRUPTED, TERMINATED
from common.search import check_name, load_search
from master.serve.access import Access, find_token, is_loopback, own_names
from master.serve.app import create_app
from master.serve.watch import Watch

SWITCH_S = 0.0005  # how long a thread that draws a figure may keep the others waiting; ten times less than Python's own
GRACE_S = 2  # for answers under way; streams of events end at once
BACKLOG = 128


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    host: str
    port: int
    token_file: Path | None
    names: tuple[str, ...]
    checkpoints: Path
    redis: str | None
    search: str | None  # the only one to show


def only_search(config: Path | None, name: str | None) -> str | None:
    """The one search that was asked for, which need not have been launched yet; None: all in the checkpoint root.

    Raises:
        ConfigError: both were given, the file is invalid, or the name is none.
    """
    if config is not None and name is not None:
        raise ConfigError(f"--config {config} and --search {name}: give one of the two")
    return load_search(config).name if config is not None else (check_name(name) if name is not None else None)


class Server(uvicorn.Server):
    """uvicorn's, with our exit codes, and with streams that do not hold up its end."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_S, lifespan="off"))
        self._app = app
        self.code = 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the server; the command then leaves with its own code instead of dying of the signal."""
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.signal(kind, self._stop) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _stop(self, kind: int, frame: FrameType | None) -> None:
        self.code = INTERRUPTED if kind == signal.SIGINT else TERMINATED
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the streams of events first."""
        self._app.state.closed.set()
        await super().shutdown(sockets)


def serve(request: Request, environ: dict[str, str], say: Callable[[str], None], show: Callable[[str], None]) -> int:
    """Serves until SIGINT or SIGTERM; returns the exit code.

    Args:
        request: what to serve, and where.
        environ: may hold the token.
        say: for remarks, on stderr.
        show: for the address, on stdout.

    Raises:
        ConfigError: the address is taken or no address of this machine, or the token cannot be used.
    """
    token, is_new = find_token(request.token_file, environ)
    bound = bind(request.host, request.port)
    address, port = bound.getsockname()[:2]
    access = Access(token, is_loopback(address), port, own_names([request.host, *request.names]))
    watch = Watch(request.checkpoints.resolve(), request.redis, request.search)
    server = Server(create_app(watch, access, request.search))
    sys.setswitchinterval(SWITCH_S)
    watch.start()
    try:
        show(f"dashboard: {address_shown(address, port)}{f'?token={token}' if is_new else ''}")
        say(_remark(access, is_new))
        server.run(sockets=[bound])
    finally:
        bound.close()
        watch.close()
    return server.code


def bind(host: str, port: int) -> socket.socket:
    """Listens at an address.

    Raises:
        ConfigError: with the remedy.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(
            f"--host {host}: no address of this machine ({error.strerror}); use 127.0.0.1, 0.0.0.0 or one of its own"
        ) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened at ({error.strerror}); choose another with --port, or 0 for any that is free"
        ) from error
    return listening


def address_shown(address: str, port: int) -> str:
    """Where a browser on this machine finds it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(address, f"[{address}]" if ":" in address else address)
    return f"http://{host}:{port}/"


def _remark(access: Access, is_new: bool) -> str:
    needed = "only to kill something" if access.open_to_loopback else "for everything"
    whose = "the token in this address is new at each start" if is_new else "add ?token= and your token to the address"
    return f"{whose}; it is needed {needed}. Ctrl-C ends the dashboard, not the search"
