"""Bells: workers hear that trials wait, and masters that trials ended, without constant polling.

A bell is a Redis stream with one entry. Its key belongs to no single search, since a worker may
work for any. A ring is only a hint: it may be lost with its server, and it may be heard without a
cause. So a process that waits also looks by itself when it has heard nothing for a second.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from common.broker.errors import refusal
from common.queue import wire

WORK = "{cf}:work"  # rings when trials wait
ENDED = "{cf}:ended"  # rings when trials have ended or were given back
LONGEST_S = 1.0  # of one blocking read; signals and orders are noticed after it
# First sleep where nothing can be heard. Each later one is half as long again, up to the time asked
# for.
FIRST_NAP_S = 0.05
DEAF_S = 30.0  # before another attempt to listen where this user may not
BEGINNING = "0-0"  # the id before any entry
UNHEARD = (RedisError, RedisClusterException, OSError)


class Bell:
    """One bell. Any thread may ring it; only one may wait on it.

    Args:
        client: a connection to Redis, of any kind. A wait takes its own connection from the pool.
        key: ``WORK`` or ``ENDED``.
    """

    def __init__(self, client: redis.Redis, key: str) -> None:
        self.key = key
        self._client: Any = client  # redis-py types each reply as "sync or async"
        self._longest_s = _longest_s(client)
        self._last: str | None = None  # the id of the last ring that was heard
        self._nap_s = FIRST_NAP_S
        self._deaf_until = 0.0

    def ring(self) -> None:
        """Wake all that wait. Errors are ignored: those that wait soon look by themselves."""
        with suppress(*UNHEARD):
            self._client.xadd(self.key, {"rung": "1"}, maxlen=1, approximate=False)

    def wait(self, timeout_s: float = LONGEST_S) -> bool:
        """Return when the bell rings, or after ``timeout_s`` or a second, whichever is shorter.

        A ring since the last wait counts. So look, wait, then look again, and nothing in between is
        missed. The first wait returns at once, since a ring before it may have been missed. If
        Redis is away or does not let this user listen, the wait sleeps, a little longer each time.
        It never raises.

        Returns:
            Whether it rang, or may have.
        """
        limit_s = min(timeout_s, self._longest_s)
        if limit_s <= 0:
            return False
        if time.monotonic() >= self._deaf_until:
            try:
                heard = self._hear(limit_s)
                self._nap_s = FIRST_NAP_S
                return heard
            except UNHEARD as error:
                if isinstance(error, RedisError) and refusal(error) == "NOPERM":
                    self._deaf_until = time.monotonic() + DEAF_S
        self._nap(limit_s)
        return False

    def _hear(self, limit_s: float) -> bool:
        if self._last is not None:
            block_ms = max(1, round(limit_s * 1000))  # 0 would wait for ever
            rung = _newest(self._client.xread({self.key: self._last}, count=1, block=block_ms))
            if rung is not None:
                self._last = rung
                return True
        # No later ring was heard. The server may have been emptied, or be another one whose clock
        # is behind.
        newest = _newest(self._client.xread({self.key: BEGINNING}, count=1)) or BEGINNING
        heard, self._last = newest != self._last, newest
        return heard

    def _nap(self, limit_s: float) -> None:
        threading.Event().wait(min(self._nap_s, limit_s) * random.uniform(0.5, 1.0))
        self._nap_s = min(self._nap_s * 1.5, LONGEST_S)


class Bells:
    """Both bells of a Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self.work = Bell(client, WORK)
        self.ended = Bell(client, ENDED)


def _newest(reply: Any) -> str | None:
    """Return the id of the last entry in a reply of XREAD; None if it has none."""
    for entries in (
        reply.values() if isinstance(reply, dict) else [stream[1] for stream in reply or ()]
    ):
        if entries:
            return wire.text(entries[-1][0])
    return None


def _longest_s(client: Any) -> float:
    """Return how long a read may block: a second, or half of the client's timeout if shorter.

    After its timeout the client would take the server for dead.
    """
    cluster = isinstance(client, RedisCluster)
    options = (
        client.get_connection_kwargs() if cluster else client.connection_pool.connection_kwargs
    )
    timeout_s = options.get("socket_timeout")
    return min(LONGEST_S, timeout_s / 2) if timeout_s else LONGEST_S
