"""`master redis start`, `stop` and `status`: real servers, by the commands' own functions."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from common.broker.connection import open_broker
from common.broker.shared_server import SharedServer
from common.errors import ConfigError, QueueError
from master.commands.redis_server import Wanted, start, status, stop
from tests.chaos.networks import network
from tests.integration.commands import place, wait_for
from tests.integration.servers import free_port
from tests.redis_server import program


def here(tls: bool | None = None) -> Wanted:
    """On this host alone, at a port of its own."""
    return Wanted("lo", free_port(), tls)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint root whose server is stopped at the end."""
    root = tmp_path / "checkpoints"
    yield root
    if (root / ".redis-server" / "server.json").exists():
        stop(root)


@pytest.fixture(params=["7", "6.2"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The version of the only server on the PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "redis-server").symlink_to(program(request.param))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return str(request.param)


def pid_of(root: Path) -> int:
    with open_broker(None, root) as broker:
        return int(broker.client.info("server")["process_id"])


def options(root: Path) -> dict[str, Any]:
    shared = SharedServer(root)
    record = shared.read()
    assert record is not None
    return {"host": record.address, "port": record.port, "retry": Retry(NoBackoff(), 0)}


def secrets_of(root: Path) -> list[bytes]:
    shared = SharedServer(root)
    return [shared.password_file(role).read_bytes().strip() for role in ("master", "worker")]


def test_both_users_get_in_by_the_folder_alone_with_the_rights_of_their_version(
    root: Path, version: str
) -> None:
    said: list[str] = []
    assert f"Redis {version}" in start(root, here(), said.append)
    with open_broker(None, root) as master, open_broker(None, root, role="worker") as worker:
        assert not master.embedded
        master.client.hset("cf:a:meta", "key", "value")
        assert worker.client.hget("cf:a:meta", "key") == "value"
        for client in (master.client, worker.client):
            for words in (["FLUSHALL"], ["CONFIG", "GET", "*"], ["ACL", "LIST"], ["GET", "other"]):
                with pytest.raises(NoPermissionError):
                    client.execute_command(*words)
        if version == "7":
            with pytest.raises(NoPermissionError):
                worker.client.hset("cf:a:frozen", "key", "value")
    for login in ({}, {"password": "x"}, {"username": "worker", "password": "x"}):
        with redis.Redis(**options(root), **login) as stranger, pytest.raises(redis.RedisError):
            stranger.ping()


def test_a_restart_keeps_data_address_and_passwords(root: Path) -> None:
    start(root, here(), print)
    with open_broker(None, root) as broker:
        broker.client.set("cf:key", "value")
    before = options(root)["port"], secrets_of(root), pid_of(root)
    assert "its data stays" in stop(root)
    with pytest.raises(QueueError, match=r"run `master redis start` on "):
        open_broker(None, root)
    start(root, Wanted(), print)
    assert (options(root)["port"], secrets_of(root)) == before[:2] and pid_of(root) != before[2]
    with open_broker(None, root) as broker:
        assert broker.client.get("cf:key") == "value"


def test_what_was_killed_starts_again(root: Path) -> None:
    start(root, here(), print)
    os.kill(pid_of(root), signal.SIGKILL)
    home = SharedServer(root).home(SharedServer(root).read())  # type: ignore[arg-type]
    wait_for(lambda: not home.is_in_use(), "the server's end")
    assert "no Redis server runs" in stop(root)
    assert "listens on 127.0.0.1" in start(root, Wanted(), print)


def test_it_starts_once_and_binds_only_what_was_asked(root: Path) -> None:
    start(root, here(), print)
    with pytest.raises(QueueError, match=r"runs already and listens on 127\.0\.0\.1"):
        start(root, Wanted(), print)
    sockets = listening(pid_of(root))
    assert sockets == {("0100007F", options(root)["port"])}


def listening(pid: int) -> set[tuple[str, int]]:
    """The TCP addresses, as the kernel writes them, on which a process listens."""
    own = {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    found = [
        line[1].split(":") for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own
    ]
    return {(address, int(port, 16)) for address, port in found}


def test_with_tls_nobody_gets_in_without_it_and_the_certificate_is_checked(root: Path) -> None:
    start(root, here(tls=True), print)
    assert status(root).startswith("Redis ") and "with TLS" in status(root)
    with redis.Redis(**options(root)) as plain, pytest.raises(redis.RedisError):
        plain.ping()
    shared = SharedServer(root)
    first = shared.ca.read_bytes()
    stop(root)
    start(root, Wanted(), print)
    assert shared.ca.read_bytes() == first, "made once"
    stop(root)
    start(root, Wanted("127.0.0.2"), print)
    assert shared.ca.read_bytes() != first, "another address has another certificate"
    with open_broker(None, root) as broker:
        assert broker.client.ping()
    second = shared.ca.read_bytes()
    shared.ca.write_bytes(first)
    with pytest.raises(QueueError, match="no authority known here has signed"):
        open_broker(None, root)
    shared.ca.write_bytes(second)


def test_no_password_is_in_an_argument_an_environment_or_a_log(
    root: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:of-another@127.0.0.1:1/0")
    said: list[str] = []
    said.append(start(root, here(), said.append))
    said.append(status(root))
    process = Path(f"/proc/{pid_of(root)}")
    secret = [*secrets_of(root), b"of-another"]
    seen = [(process / name).read_bytes() for name in ("cmdline", "environ")]
    shared = SharedServer(root)
    keepers = {shared.password_file("master"), shared.password_file("worker")}
    files = {path for path in root.rglob("*") if path.is_file()} - keepers
    assert len(files) > 4 and any(path.name == "redis.log" for path in files)
    texts = [*seen, *(path.read_bytes() for path in files), "".join(said).encode()]
    assert not any(word in text for word in secret for text in texts)


def test_only_the_owner_may_enter_and_others_files_are_not_trusted(root: Path) -> None:
    start(root, here(), print)
    shared = SharedServer(root)
    private = [shared.password_file("master"), shared.password_file("worker"), shared.file]
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert shared.folder.stat().st_mode & 0o777 == 0o700
    for mode in (0o750, 0o702):
        shared.folder.chmod(mode)
        with pytest.raises(ConfigError, match="nobody else may enter it"):
            open_broker(None, root)
    shared.folder.chmod(0o700)


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"host": 3}', '{"port": 0}', '{"address": "a@b"}', '{"home": ""}']
)
def test_a_damaged_file_is_told_of(root: Path, damage: str) -> None:
    shared = SharedServer(root)
    shared.folder.mkdir(parents=True, mode=0o700)
    good = {"host": "h", "boot_id": "b", "bind": "::1", "address": "::1", "port": 1, "tls": False}
    good["home"] = "data"
    found = json.loads(damage) if damage.startswith('{"') else None
    shared.file.write_text(damage if found is None else json.dumps(good | found))
    with pytest.raises(QueueError, match=r"server.json: it is damaged; delete it"):
        shared.read()
    shared.file.unlink()


def test_another_hosts_server_is_neither_started_nor_stopped_here(root: Path) -> None:
    start(root, here(), print)
    shared = SharedServer(root)
    known = shared.file.read_text()
    changes = {"host": "node7", "boot_id": "another"}
    shared.file.write_text(json.dumps(json.loads(known) | changes))
    for command in (lambda: start(root, Wanted(), print), lambda: stop(root)):
        with pytest.raises(QueueError, match=r"on the host node7"):
            command()
    assert "on node7 listens on 127.0.0.1" in status(root)
    shared.file.write_text(known)


def test_it_does_not_start_beside_the_embedded_server(root: Path) -> None:
    with (
        open_broker(None, root),
        pytest.raises(QueueError, match=r"use the embedded Redis server .* end them first"),
    ):
        start(root, here(), print)
    assert "listens" in start(root, here(), print)


def test_a_long_log_is_set_aside_while_the_server_runs(root: Path) -> None:
    start(root, here(), print)
    home = SharedServer(root).home(SharedServer(root).read())  # type: ignore[arg-type]
    with home.log.open("ab") as log:
        log.write(b"x" * (1 << 20))
    status(root)
    assert home.log.with_suffix(".log.old").stat().st_size > 1 << 20 and not home.log.exists()
    stop(root)
    assert b"ready to exit" in home.log.read_bytes()


@pytest.mark.faults
def test_a_worker_on_another_host_finds_the_server_by_the_folder(tmp_path: Path) -> None:
    """The other host is a network namespace: it reaches this one by one address alone."""
    with network(40) as other, place(tmp_path) as there:
        there.write_search(trials=6)
        began = there.run("master", "redis", "start", "--host", other.host_address, "--tls")
        try:
            assert began.returncode == 0, began.stderr
            assert f"listens on {other.host_address}:" in began.stdout
            launch = ("master", "launch", "--stage", "coarse", "--workers", "0")
            launched = there.run(*launch, "--detach")
            assert launched.returncode == 0, launched.stderr
            worker = there.start(
                "worker", "start", "--checkpoints", str(there.root), network=other.name
            )
            wait_for(lambda: len(there.records()) == 6 or worker.poll() is not None, "the trials")
            seen = [
                Path(f"/proc/{worker.pid}/{name}").read_bytes() for name in ("cmdline", "environ")
            ]
            ended = there.run(*launch)
            assert ended.returncode == 0, ended.stderr
            assert len(there.records()) == 6
            told = [began, launched, ended, there.run("master", "redis", "status")]
            texts = [*seen, *(log.encode() for log in there.logs())]
            texts += [(done.stdout + done.stderr).encode() for done in told]
            assert not any(word in text for word in secrets_of(there.root) for text in texts)
            worker.terminate()
            assert worker.wait(60) == 143
        finally:
            stopped = there.run("master", "redis", "stop")
        assert stopped.returncode == 0, stopped.stderr
