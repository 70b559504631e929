"""The workers of one Redis, for any search: which are alive, what they report, their orders."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import redis

from common.broker.errors import translate_errors
from common.broker.urls import where_of
from common.errors import DamagedReplyError
from common.queue import scripts, wire
from common.search.trial import WorkerInfo

LOST_S = 30.0  # unseen for this long, a worker counts as lost; its leases run out, too
FORGET_S = 3600.0  # unseen for this long, a worker is no longer listed
# announce.lua says what each holds.
KEYS = (
    "{cf}:workers",
    "{cf}:seen",
    "{cf}:orders",
    "{cf}:slow",
)
QUIT = "quit"


class WorkerRegistry:
    """The workers of this Redis. Every method raises QueueError if Redis is unavailable.

    Args:
        client: a connection that does not resend commands by itself.
        lost_s: seconds unseen after which a worker is shown as lost.
        forget_s: seconds unseen after which a worker is forgotten.
    """

    def __init__(
        self, client: redis.Redis, lost_s: float = LOST_S, forget_s: float = FORGET_S
    ) -> None:
        self.client: Any = client  # redis-py types each reply as "sync or async"
        self.where = where_of(client)
        self.lost_s = lost_s
        self.forget_ms = round(forget_s * 1000)

    def announce(self, info: WorkerInfo) -> list[str]:
        """Report that a worker lives and what it does, about once a second.

        Returns:
            The worker's orders ("quit").
        """
        with translate_errors(self.where):
            orders = scripts.run(
                self.client,
                "announce",
                KEYS,
                [info.worker, wire.dumps(asdict(info)), self.forget_ms],
            )
        return [wire.text(order) for order in orders]

    def list(self) -> list[WorkerInfo]:
        """Return the workers that were seen in the last hour, by name.

        "lost" and "slow" replace the state that the worker reported last.
        """
        with translate_errors(self.where):
            reply = scripts.run(self.client, "workers", KEYS, [self.forget_ms])
        found = (self._info(*reply[first : first + 3]) for first in range(0, len(reply), 3))
        return sorted((info for info in found if info is not None), key=lambda info: info.worker)

    def get(self, worker: str) -> WorkerInfo | None:
        """Return the worker of this name; None if there is none."""
        return next((info for info in self.list() if info.worker == worker), None)

    def leave(self, worker: str) -> None:
        """Remove a worker that leaves, or that an operator knows to be gone, from the list."""
        workers, seen, orders, slow = KEYS
        with translate_errors(self.where):
            self.client.pipeline().hdel(workers, worker).zrem(seen, worker).hdel(
                orders, worker
            ).srem(slow, worker).execute()

    def order_quit(self, worker: str) -> None:
        """Order a worker to stop. It learns of it when it announces itself next."""
        with translate_errors(self.where):
            self.client.hset(KEYS[2], worker, QUIT)

    def mark_slow(self, worker: str, slow: bool = True) -> None:
        """Mark a worker as slow, or remove the mark."""
        with translate_errors(self.where):
            (self.client.sadd if slow else self.client.srem)(KEYS[3], worker)

    def _info(self, line: Any, unseen_ms: Any, slow: Any) -> WorkerInfo | None:
        """Return one worker; None if this program did not write its line."""
        try:
            # Negative if the server's clock went back.
            unseen = wire.whole_in(wire.text(unseen_ms).removeprefix("-"), "time")
            info = replace(
                wire.worker_in(line),
                last_seen_s=0.0 if wire.text(unseen_ms).startswith("-") else unseen / 1000,
            )
        except DamagedReplyError:
            return None
        if info.last_seen_s > self.lost_s:
            return replace(info, state="lost")
        return replace(info, state="slow") if wire.text(slow) == "1" else info
