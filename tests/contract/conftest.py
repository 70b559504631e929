"""The servers of the contract tests.

Each test runs on every promised version of Redis, on a server of its own kind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import torch

from common.queue.trial_queue import TrialQueue
from tests.contract.trials import SEARCH, check_consistent
from tests.redis_server import VERSIONS, RedisServer, start_redis


@pytest.fixture(scope="session", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with (
        tempfile.TemporaryDirectory(prefix="cf-") as folder,
        start_redis(Path(folder), request.param) as running,
    ):
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def queue(client: redis.Redis) -> Iterator[TrialQueue]:
    """A search whose ticks have begun; afterwards its keys must agree with each other."""
    queue = TrialQueue(client, SEARCH)
    queue.tick(master=True)
    yield queue
    check_consistent(queue)


@pytest.fixture
def brief(client: redis.Redis) -> TrialQueue:
    """The same search, with leases that are over at once."""
    return TrialQueue(client, SEARCH, lease_s=0.001)


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Keep denormal numbers.

    An engine flushes them to zero, which would affect the tests that draw numbers.
    """
    yield
    torch.set_flush_denormal(False)
