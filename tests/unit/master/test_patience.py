"""The dashboard's own sockets.

Clients that send half a request or read no answer block nothing and are dropped.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest
from fastapi import Response

from master.dashboard.patience import Impatient
from master.dashboard.run import Server, bind
from tests.integration.commands import wait_for
from tests.unit.master.test_serve import dashboard

LARGE = 64 << 20  # bytes of an answer: more than any system's buffers take
SOON_S = 0.3
NEVER_S = 3600.0
HEAD = b"GET /api/health HTTP/1.1\r\nhost: 127.0.0.1:8265\r\n"


@pytest.fixture
def serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, Server]]]:
    """Starts the dashboard's server in this process, with limits of a test; returns its port."""
    monkeypatch.setattr(Server, "capture_signals", lambda self: nullcontext())
    with ExitStack() as stack:

        def start(patience_s: float, most: int = 500) -> tuple[int, Server]:
            monkeypatch.setattr(Impatient, "patience_s", patience_s)
            monkeypatch.setattr(Impatient, "most", most)
            return stack.enter_context(served(tmp_path))

        yield start


@contextmanager
def served(root: Path) -> Iterator[tuple[int, Server]]:
    made = dashboard(root)
    made.app.add_api_route("/api/large", lambda: Response(b"x" * LARGE))
    server, listening = Server(made.app), bind("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    try:
        yield listening.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        made.watch.close()


def open_to(port: int, sent: bytes = b"", receive_bytes: int | None = None) -> socket.socket:
    made = socket.socket()
    if receive_bytes is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.settimeout(60)
    made.connect(("127.0.0.1", port))
    made.sendall(sent)
    return made


def is_closed(client: socket.socket) -> bool:
    """Whether the server has ended the connection; waits for its word."""
    try:
        return client.recv(1 << 16) == b""
    except ConnectionResetError:
        return True


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/api/health", headers={"host": "127.0.0.1:8265"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status == 200


def test_a_request_is_answered_beside_300_half_open_ones(
    serving: Callable[..., tuple[int, Server]],
) -> None:
    port, server = serving(NEVER_S)
    with ExitStack() as stack:
        for number in range(300):
            stack.enter_context(
                open_to(
                    port,
                    (
                        b"",
                        HEAD,
                        b"POST /api/kill HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n\r\n{",
                    )[number % 3],
                )
            )
        wait_for(lambda: len(server.server_state.connections) == 300, "all to be open")
        assert answers(port)
        assert len(server.server_state.connections) >= 300, "none had to go for it"


@pytest.mark.parametrize(
    "sent",
    [b"", b"G", HEAD, b"POST /api/kill HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n\r\n{"],
)
def test_half_a_request_is_waited_for_in_vain_once(
    serving: Callable[..., tuple[int, Server]], sent: bytes
) -> None:
    port, server = serving(SOON_S)
    with open_to(port, sent) as client:
        while not is_closed(client):  # what was refused before its body came has had its answer
            pass
    wait_for(lambda: not server.server_state.connections, "nothing to be open")


def test_a_part_now_and_then_gains_no_time(serving: Callable[..., tuple[int, Server]]) -> None:
    port, _ = serving(SOON_S)
    with open_to(port, HEAD) as client, pytest.raises(OSError):  # broken or reset, as it happens
        while True:
            client.sendall(b"x")
            threading.Event().wait(SOON_S / 5)


def test_half_a_request_after_an_answer_is_waited_for_no_longer(
    serving: Callable[..., tuple[int, Server]],
) -> None:
    port, server = serving(SOON_S)
    with open_to(port, HEAD + b"\r\n") as client:
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        client.sendall(HEAD)
        while not is_closed(client):
            pass
    wait_for(lambda: not server.server_state.connections, "nothing to be open")


@pytest.mark.parametrize("last", [b"", b"connection: close\r\n"])
def test_who_reads_nothing_of_its_answer_is_cut_off(
    serving: Callable[..., tuple[int, Server]], last: bytes
) -> None:
    port, server = serving(SOON_S)
    with open_to(port, HEAD.replace(b"health", b"large") + last + b"\r\n", receive_bytes=4096):
        wait_for(
            lambda: server.server_state.total_requests or server.server_state.connections,
            "it to be heard",
        )
        wait_for(lambda: not server.server_state.connections, "it to be cut off")


def test_who_reads_slowly_gets_all_of_it(serving: Callable[..., tuple[int, Server]]) -> None:
    port, _ = serving(2.0)
    with open_to(port, HEAD.replace(b"health", b"large") + b"connection: close\r\n\r\n") as client:
        n_read, pauses = 0, 0
        while part := client.recv(1 << 16):
            n_read += len(part)
            if n_read > pauses * LARGE / 16:
                pauses += 1
                threading.Event().wait(
                    0.3
                )  # of all sixteen together the server has not the patience
    assert n_read > LARGE


def test_a_stream_of_events_may_be_silent(serving: Callable[..., tuple[int, Server]]) -> None:
    port, server = serving(SOON_S)
    with open_to(port, HEAD.replace(b"health", b"events") + b"\r\n") as client:
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        threading.Event().wait(4 * SOON_S)
        assert len(server.server_state.connections) == 1


def test_where_too_many_are_open_who_waits_longest_goes(
    serving: Callable[..., tuple[int, Server]],
) -> None:
    port, server = serving(NEVER_S, most=20)
    with ExitStack() as stack:
        clients = []
        for n in range(1, 31):
            clients.append(stack.enter_context(open_to(port, HEAD)))
            wait_for(
                lambda n=n: len(server.server_state.connections) == min(n, 20),
                "it to be open, and no more than 20",
            )
        assert all(is_closed(client) for client in clients[:10])
        assert answers(port), "one more of them goes for it"
        assert is_closed(clients[10])
