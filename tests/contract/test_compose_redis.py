"""The Redis of compose, started by docker/redis.sh with only its paths changed.

The tests cover its users and its data over a restart.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from common.broker.acl import FOLDER
from common.queue.trial_queue import TrialQueue
from tests.acl import DOCKER
from tests.contract.trials import DONE, SEARCH, made
from tests.redis_server import RedisServer, program, wait

PLACES = {
    "/secrets": "{0}/secrets",
    "/opt/rights": str(FOLDER),
    "dir /data": "dir {0}",
    "port 6379": "port 0\nunixsocket {0}/redis.sock",
}


@contextmanager
def compose_redis(folder: Path) -> Iterator[RedisServer]:
    """The script without what only root in a container can do."""
    text = (DOCKER / "redis.sh").read_text()
    text = re.sub(r"^chown .*\n", "", text, flags=re.MULTILINE)
    text, n_found = re.subn(r"setpriv .* -- redis-server", str(program("7")), text)
    assert n_found == 1
    for place, here in PLACES.items():
        assert place in text
        text = text.replace(place, here.format(folder))
    server = RedisServer(
        folder / "redis.sock", subprocess.Popen(["sh", "-c", text], stdout=subprocess.DEVNULL)
    )
    try:
        wait(server)
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cf-") as name:
        for file, password in (
            ("redis_password", "of-masters"),
            ("worker/redis_password", "of-workers"),
        ):
            path = Path(name) / "secrets" / file
            path.parent.mkdir(exist_ok=True)
            path.write_text(password)
        yield Path(name)


def test_its_users_and_its_data_over_a_restart(folder: Path) -> None:
    with (
        compose_redis(folder) as server,
        server.client(username="master", password="of-masters") as client,
    ):
        queue = TrialQueue(client, SEARCH)
        queue.register("digits")
        queue.publish(made(3))
        with server.client(username="worker", password="of-workers") as worker:
            (claim, *_) = TrialQueue(worker, SEARCH).claim("w", 2, "r")
            TrialQueue(worker, SEARCH).finish([(claim.fence, DONE)])
        before = queue.counts()
        for login in (
            {},
            {"password": "of-masters"},
            {"username": "worker", "password": "of-masters"},
        ):
            with server.client(**login) as stranger, pytest.raises(redis.AuthenticationError):
                stranger.ping()
    with (
        compose_redis(folder) as server,
        server.client(username="master", password="of-masters") as client,
    ):
        assert TrialQueue(client, SEARCH).counts() == before
        assert (
            before["coarse"]["completed"]
            == before["coarse"]["running"]
            == before["coarse"]["pending"]
            == 1
        )
        assert client.info("persistence")["aof_enabled"] == 1
