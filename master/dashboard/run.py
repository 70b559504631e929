"""`master serve`: bind the address, print it, and serve until a signal ends it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from common.ending import BY_SIGNAL, hear_end, unhear_end
from common.errors import ConfigError
from common.search.search_file import check_name, load_search
from master.dashboard.access import Access, find_token, is_loopback, own_names
from master.dashboard.app import create_app
from master.dashboard.patience import Impatient
from master.dashboard.watch import Watch

# Seconds that a thread which draws a figure may keep the others waiting. Python's default is ten
# times as long.
SWITCH_S = 0.0005
GRACE_S = 2  # for answers under way; event streams end at once
BACKLOG = 128


@dataclass(frozen=True)
class Request:
    """The options of the command line."""

    host: str
    port: int
    token_file: Path | None
    names: tuple[str, ...]
    checkpoints: Path
    redis: str | None
    search: str | None  # the only search to show; None: all


def only_search(config: Path | None, name: str | None) -> str | None:
    """Return the one search that was asked for, or None for all in the checkpoint root.

    The search need not have been launched yet.

    Raises:
        ConfigError: Both were given, the file is invalid, or the name is not a search's name.
    """
    if config is not None and name is not None:
        raise ConfigError(f"--config {config} and --search {name}: give one of the two")
    return (
        load_search(config).name
        if config is not None
        else (check_name(name) if name is not None else None)
    )


class Server(uvicorn.Server):
    """uvicorn's server with this program's exit codes.

    It limits the wait for clients, and open event streams do not delay its end.
    """

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app, http=Impatient, log_level="warning", access_log=False, lifespan="off"
        )
        config.timeout_graceful_shutdown = GRACE_S
        super().__init__(config)
        self._app = app
        self.code = 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End the server on a signal.

        The command then exits with its own code instead of dying of the signal.
        """
        before = hear_end(self._stop)
        try:
            yield
        finally:
            unhear_end(before)

    def _stop(self, kind: int, frame: FrameType | None) -> None:
        self.code = BY_SIGNAL + kind
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the event streams, then shut down."""
        self._app.state.closed.set()
        await super().shutdown(sockets)


def serve(
    request: Request,
    environ: dict[str, str],
    say: Callable[[str], None],
    show: Callable[[str], None],
) -> int:
    """Serve until a signal asks for the end.

    Args:
        request: What to serve, and where.
        environ: The environment, which may hold the token.
        say: Prints remarks, on stderr.
        show: Prints the address, on stdout.

    Returns:
        The exit code.

    Raises:
        ConfigError: The address is taken or does not belong to this machine, or the token cannot be
            used.
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
    """Return a socket that listens at an address.

    Raises:
        ConfigError: The address cannot be used. The message says what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(
            f"--host {host}: no address of this machine ({error.strerror}); "
            "use 127.0.0.1, 0.0.0.0 or one of its own"
        ) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened at ({error.strerror}); "
            "choose another with --port, or 0 for any that is free"
        ) from error
    return listening


def address_shown(address: str, port: int) -> str:
    """Return the URL at which a browser on this machine finds the dashboard."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(
        address, f"[{address}]" if ":" in address else address
    )
    return f"http://{host}:{port}/"


def _remark(access: Access, is_new: bool) -> str:
    needed = "only to kill something" if access.open_to_loopback else "for everything"
    whose = (
        "the token in this address is new at each start"
        if is_new
        else "add ?token= and your token to the address"
    )
    return f"{whose}; it is needed {needed}. Ctrl-C ends the dashboard, not the search"
