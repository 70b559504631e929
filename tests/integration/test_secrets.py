"""A password appears in no process list, log line, error, record or key.

This holds while a search runs and over an encrypted connection.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
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
    port = free_port()
    server = folder / "127.0.0.1.pem"
    files = (
        "--tls-cert-file",
        str(server),
        "--tls-key-file",
        str(server),
        "--tls-ca-cert-file",
        str(folder / "ca.pem"),
    )
    url = (
        f"rediss://:{QUOTED}@127.0.0.1:{port}/0?ssl_ca_certs={folder}/ca.pem&"
        f"ssl_certfile={folder}/client.example.pem"
    )
    with (
        start_redis(folder, "7", "--tls-port", str(port), *files, "--requirepass", SECRET),
        place(tmp_path, url) as here,
    ):
        here.write_search(trials=4)
        yield here


@pytest.fixture
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that wants the secret, for a command line."""
    port = free_port()
    with start_redis(
        tmp_path_factory.mktemp("redis"), None, "--port", str(port), "--requirepass", SECRET
    ):
        yield f"redis://:{QUOTED}@127.0.0.1:{port}/0"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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


def test_a_password_on_the_masters_own_command_line_goes_no_further(
    url: str, tmp_path: Path
) -> None:
    """All users see a typed command line, as the documents say.

    What the master starts does not repeat it.
    """
    with place(tmp_path) as here:
        here.write_search(trials=4)
        master = here.start(
            "master",
            "--redis",
            url,
            "launch",
            "--stage",
            "coarse",
            "--workers",
            "1",
            log="master.log",
        )
        seen = watched(master, "worker")
        assert master.returncode == 0, here.output("master.log")
        assert seen and len(here.records()) == 4
        assert not any(holds_secret(line) for line in seen)
        assert no_file_holds_it(here)
        assert not holds_secret(everything(url))


def test_a_password_that_is_not_asked_for_goes_nowhere(tmp_path: Path) -> None:
    """The environment has a URL, and the embedded server overrules it.

    That server is its own process and inherits the environment.
    """
    with place(tmp_path) as here:
        here.write_search(trials=2)
        url = f"redis://:{QUOTED}@127.0.0.1:1/0"
        command = ("master", "--redis", "", "launch", "--stage", "coarse", "--workers", "1")
        master = here.start(*command, log="master.log", REDIS_URL=url)
        seen = watched(master, "worker", "redis-server")
        assert master.returncode == 0, here.output("master.log")
        assert not any(holds_secret(line) for line in seen)
        assert no_file_holds_it(here)


def test_the_workers_of_all_devices_are_started_without_it(url: str, tmp_path: Path) -> None:
    """The parent of one worker a device has the URL where the user wrote it.

    Its children do not have it. Their devices do not exist.
    """
    devices = (
        "import torch; torch.cuda.is_available = lambda: True; torch.cuda.device_count = lambda: 2"
    )
    program = f"{devices}; import sys; from worker.cli import main; sys.argv[0] = 'worker'; main()"
    with place(tmp_path) as here:
        command = [
            sys.executable,
            "-P",
            "-c",
            program,
            "start",
            "--redis",
            url,
            "--device",
            "all",
            "--checkpoints",
            str(here.root),
        ]
        with (tmp_path / "all.log").open("w") as out:
            parent = subprocess.Popen(
                command, cwd=tmp_path, env=here.environment, stdout=out, stderr=out, text=True
            )
        seen = watched(parent, "cuda:0", "cuda:1")
        assert parent.returncode not in (0, None), "there is no such device"
        assert not any(holds_secret(line) for line in seen)
        assert no_file_holds_it(here)


def watched(parent: subprocess.Popen[str], *marks: str) -> set[bytes]:
    """Return the command lines of all direct and indirect children of a process until its end.

    Check that command lines with each mark were among them.
    """
    seen: set[bytes] = set()

    def ended() -> bool:
        try:
            below = psutil.Process(parent.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        seen.update(
            line
            for child in below
            if (line := command_line(child.pid)) and line != command_line(parent.pid)
        )
        return parent.poll() is not None

    wait_for(ended, "the process ends")
    assert all(any(mark.encode() in line for line in seen) for mark in marks), seen
    return seen


def no_file_holds_it(here: Place) -> bool:
    files = [path for path in here.path.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if holds_secret(path.read_bytes())] == []


def test_a_refused_password_is_in_no_message(encrypted: Place) -> None:
    for command in (
        ["master", "workers"],
        ["master", "launch", "--stage", "coarse", "--workers", "0"],
    ):
        wrong = str(encrypted.redis_url).replace(QUOTED, QUOTED + "no")
        for done in (
            encrypted.run(*command, REDIS_URL=wrong),
            encrypted.run(*command, "--redis", wrong),
        ):
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
        found += [
            b"".join(client.hgetall(key).values())
            for key in client.keys("*")
            if client.type(key) == b"hash"
        ]
    assert len(found) > 5
    return os.linesep.encode().join(found)
