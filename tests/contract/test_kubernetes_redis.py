"""The Redis of deploy/kubernetes, started as its manifest says with only its paths changed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from common.queue.scripts import search_keys
from common.queue.trial_queue import TrialQueue
from tests.acl import DOCKER, USERS
from tests.contract.trials import SEARCH, made
from tests.kubernetes_files import BASE, find_pods, read_resources
from tests.redis_server import RedisServer, program, wait


@contextmanager
def kubernetes_redis(folder: Path) -> Iterator[RedisServer]:
    """Run the commands of the pod: the one that writes the users, and the server."""
    pod = dict(find_pods(read_resources(BASE)))["StatefulSet coarsefine-redis"]
    (users,), (server,) = pod["initContainers"], pod["containers"]
    places = {
        "/opt/coarsefine": str(DOCKER),
        "python": sys.executable,
        " /secrets": f" {folder}/secrets",
        ">/users": f">{folder}/users",
    }
    shell, option, text = users["command"]
    for place, here in places.items():
        assert place in text
        text = text.replace(place, here)
    subprocess.run([shell, option, text], check=True)
    words = [
        word.replace("/data", str(folder)).replace("/users/", f"{folder}/users/")
        for word in server["args"]
    ]
    port = words.index("--port")
    words[port + 1 : port + 2] = ["0", "--unixsocket", f"{folder}/redis.sock"]
    running = RedisServer(
        folder / "redis.sock",
        subprocess.Popen([program("7"), *words], stdout=subprocess.DEVNULL),
    )
    try:
        wait(running)
        yield running
    finally:
        running.process.terminate()
        running.process.wait(30)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cf-") as name:
        (Path(name) / "secrets").mkdir()
        (Path(name) / "users").mkdir()
        for user in USERS:
            (Path(name) / "secrets" / user).write_text(f"of-{user}s\n")
        yield Path(name)


def test_its_users_and_its_data_over_a_restart(folder: Path) -> None:
    with (
        kubernetes_redis(folder) as server,
        server.client(username="master", password="of-masters") as master,
        server.client(username="scaler", password="of-scalers") as scaler,
    ):
        queue = TrialQueue(master, SEARCH)
        queue.publish(made(3))
        with server.client(username="worker", password="of-workers") as worker:
            assert TrialQueue(worker, SEARCH).claim("w", 1, "r")
        assert scaler.zcard(search_keys(SEARCH)["pending"]) == 2
        for login in ({}, {"username": "worker", "password": "of-masters"}):
            with server.client(**login) as stranger, pytest.raises(redis.AuthenticationError):
                stranger.ping()
        before = queue.counts()
    with (
        kubernetes_redis(folder) as server,
        server.client(username="master", password="of-masters") as master,
    ):
        assert TrialQueue(master, SEARCH).counts() == before
        assert master.info("persistence")["aof_enabled"] == 1
        assert master.info("memory")["maxmemory_policy"] == "noeviction"


def test_without_keda_there_is_no_scaler(folder: Path) -> None:
    (folder / "secrets" / "scaler").unlink()
    with (
        kubernetes_redis(folder) as server,
        server.client(username="master", password="of-masters") as master,
        server.client(username="scaler", password="of-scalers") as scaler,
    ):
        assert master.ping()
        with pytest.raises(redis.AuthenticationError):
            scaler.ping()


def test_no_password_is_in_the_file_of_users(folder: Path) -> None:
    with kubernetes_redis(folder):
        text = (folder / "users" / "users.acl").read_text()
    assert not [user for user in USERS if f"of-{user}s" in text]


def test_a_missing_password_ends_it_with_one_line(folder: Path) -> None:
    (folder / "secrets" / "worker").unlink()
    done = subprocess.run(
        [sys.executable, DOCKER / "redis_users.py", folder / "secrets"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "worker cannot be read: No such file" in done.stderr and "\n" not in done.stderr[:-1]
