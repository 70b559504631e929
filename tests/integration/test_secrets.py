"""A password stands in no process list, log line, error, record or key: while a search runs, and over an encrypted connection."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import trustme

from tests.integration.commands import Place, place, wait_for
from tests.redis_server import start_redis

SECRET = "qT7/xK:9@zW"  # with what URLs, shells and patterns stumble over
QUOTED = "qT7%2FxK%3A9%40zW"


@pytest.fixture
def encrypted(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place whose server wants the secret and a client certificate."""
    folder = tmp_path_factory.mktemp("redis")
    authority = trustme.CA()
    for name in ("127.0.0.1", "client.example"):
        issued = authority.issue_cert(name)
        issued.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = folder / "127.0.0.1.pem"
    files = ("--tls-cert-file", str(server), "--tls-key-file", str(server), "--tls-ca-cert-file", str(folder / "ca.pem"))
    url = f"rediss://:{QUOTED}@127.0.0.1:{port}/0?ssl_ca_certs={folder}/ca.pem&ssl_certfile={folder}/client.example.pem"
    with start_redis(folder, "7", "--tls-port", str(port), *files, "--requirepass", SECRET), place(tmp_path, url) as here:
        here.write_search(trials=4)
        yield here


def test_a_password_in_the_url_of_a_search_over_tls(encrypted: Place) -> None:
    here = encrypted
    master = here.start("master", "launch", "--stage", "coarse", "--workers", "1", log="master.log")
    seen: set[int] = set()

    def ended() -> bool:
        running = here.worker_pids()
        seen.update(running)
        for pid in [*running, master.pid]:
            assert not holds_secret(command_line(pid))
        return master.poll() is not None

    wait_for(ended, "the search ends")
    assert master.returncode == 0, here.output("master.log")
    assert seen, "the worker was looked at"
    assert len(here.records()) == 4
    files = [path for path in here.path.rglob("*") if path.is_file()]
    assert any(path.name == "worker-1.log" for path in files)
    assert [path for path in files if holds_secret(path.read_bytes())] == []
    assert not holds_secret(everything(str(here.redis_url)))


def test_a_refused_password_is_in_no_message(encrypted: Place) -> None:
    for command in (["master", "workers"], ["master", "launch", "--stage", "coarse", "--workers", "0"]):
        wrong = str(encrypted.redis_url).replace(QUOTED, QUOTED + "no")
        done = encrypted.run(*command, REDIS_URL=wrong)
        assert done.returncode == 4 and "refuses the login" in done.stderr, done.stderr
        assert not holds_secret((done.stdout + done.stderr).encode())


def holds_secret(text: bytes) -> bool:
    return SECRET.encode() in text or QUOTED.encode() in text


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # it has ended


def everything(url: str) -> bytes:
    """All that Redis holds."""
    with redis.Redis.from_url(url) as client:
        found = [client.dump(key) for key in client.keys("*")]
        found += [b"".join(client.hgetall(key).values()) for key in client.keys("*") if client.type(key) == b"hash"]
    assert len(found) > 5
    return os.linesep.encode().join(found)
