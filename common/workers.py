"""The workers of one Redis, whatever they work on: who lives, what it says of itself, what it is ordered."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import redis

from common import scripts, wire
from common.errors import DamagedReplyError
from common.redis_errors import translated
from common.trial import WorkerInfo

LOST_S = 30.0  # unseen for so long: its leases run out, too
FORGET_S = 3600.0  # unseen for so long: no longer listed
KEYS = ("{cf}:workers", "{cf}:seen", "{cf}:orders", "{cf}:slow")  # announce.lua says what each holds
QUIT = "quit"


class WorkerRegistry:
    """Who works for this Redis. Every method raises QueueError when Redis does not serve.

    Args:
        client: a connection that does not send again by itself.
        lost_s: unseen for so long, a worker is shown as lost.
        forget_s: unseen for so long, it is forgotten.
    """

    def __init__(self, client: redis.Redis, lost_s: float = LOST_S, forget_s: float = FORGET_S) -> None:
        self.client: Any = client  # redis-py types each reply as "sync or async"
        self.where = scripts.where_of(client)
        self.lost_s = lost_s
        self.forget_ms = round(forget_s * 1000)

    def announce(self, info: WorkerInfo) -> list[str]:
        """Says that a worker lives and what it does, about once a second; returns its orders ("quit")."""
        with translated(self.where):
            orders = scripts.run(self.client, "announce", KEYS, [info.worker, wire.dumps(asdict(info)), self.forget_ms])
        return [wire.text(order) for order in orders]

    def list(self) -> list[WorkerInfo]:
        """All that were seen in the last hour, by name; "lost" and "slow" take the place of what they said last."""
        with translated(self.where):
            reply = scripts.run(self.client, "workers", KEYS, [self.forget_ms])
        found = (self._info(*reply[first : first + 3]) for first in range(0, len(reply), 3))
        return sorted((info for info in found if info is not None), key=lambda info: info.worker)

    def get(self, worker: str) -> WorkerInfo | None:
        """One of them, None if there is none of that name."""
        return next((info for info in self.list() if info.worker == worker), None)

    def leave(self, worker: str) -> None:
        """Takes a worker off the list; it goes, or an operator knows that it is gone."""
        workers, seen, orders, slow = KEYS
        with translated(self.where):
            self.client.pipeline().hdel(workers, worker).zrem(seen, worker).hdel(orders, worker).srem(slow, worker).execute()

    def order_quit(self, worker: str) -> None:
        """Orders a worker to stop; it hears it when it announces itself next."""
        with translated(self.where):
            self.client.hset(KEYS[2], worker, QUIT)

    def mark_slow(self, worker: str, slow: bool = True) -> None:
        """Calls a worker slow, or takes it back."""
        with translated(self.where):
            (self.client.sadd if slow else self.client.srem)(KEYS[3], worker)

    def _info(self, line: Any, unseen_ms: Any, slow: Any) -> WorkerInfo | None:
        """One of them; None where it is no worker of ours that says so."""
        try:
            unseen = wire.whole_in(wire.text(unseen_ms).removeprefix("-"), "time")  # before now where the server's clock went back
            info = replace(wire.worker_in(line), last_seen_s=0.0 if wire.text(unseen_ms).startswith("-") else unseen / 1000)
        except DamagedReplyError:
            return None
        if info.last_seen_s > self.lost_s:
            return replace(info, state="lost")
        return replace(info, state="slow") if wire.text(slow) == "1" else info
