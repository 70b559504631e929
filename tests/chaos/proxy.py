"""A proxy in front of Redis that can lose the answer to a script.

Redis has then run the script, and its caller does not hear the result.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import common.queue
from common.queue import scripts
from tests.chaos.servers import Server

CHUNK = 1 << 16
SCRIPTS = sorted(
    path.stem
    for path in (Path(common.queue.__file__).parent / "lua").glob("*.lua")
    if path.stem != "shared"
)


@dataclass
class Loss:
    """An answer to be lost: the next one to this script."""

    script: str
    taken: bool = False  # a connection is to suffer it
    happened: bool = False


class Proxy:
    """Listens on loopback and passes everything on to a server, each connection by two threads."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._names = {scripts.load(name).digest: name for name in SCRIPTS}
        self._losses: list[Loss] = []
        self._mutex = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def lose(self, script: str) -> Loss:
        loss = Loss(script)
        with self._mutex:
            self._losses.append(loss)
        return loss

    def forget(self, loss: Loss) -> None:
        with self._mutex:
            self._losses = [one for one in self._losses if one is not loss]

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                _Connection(self, client, (self._server.address, self._server.port)).start()

    def takes(self, request: bytes) -> Loss | None:
        """The loss that this request is to suffer."""
        name = next((name for digest, name in self._names.items() if digest in request), None)
        with self._mutex:
            found = next(
                (loss for loss in self._losses if loss.script == name and not loss.taken), None
            )
            if found is not None:
                found.taken = True
        return found


class _Connection:
    def __init__(self, proxy: Proxy, client: socket.socket, server: tuple[str, int]) -> None:
        self._proxy, self._client, self._address = proxy, client, server
        self._loss: Loss | None = None

    def start(self) -> None:
        try:
            self._server = socket.create_connection(self._address, timeout=5)
            self._server.settimeout(None)
        except OSError:
            self._client.close()
            return
        threading.Thread(target=self._requests, daemon=True).start()
        threading.Thread(target=self._answers, daemon=True).start()

    def _requests(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := self._client.recv(CHUNK):
                self._loss = self._loss or self._proxy.takes(chunk)
                self._server.sendall(chunk)
        self._end()

    def _answers(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := self._server.recv(CHUNK):
                if self._loss is not None and not chunk.startswith(b"-NOSCRIPT"):
                    self._loss.happened = True
                    break
                self._client.sendall(chunk)
        self._end()

    def _end(self) -> None:
        if self._loss is not None and not self._loss.happened:
            self._loss.taken = False  # broken by something else: the next one is to suffer it
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
