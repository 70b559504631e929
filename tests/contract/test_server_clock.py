"""The server's clock goes back, or a server with a slow clock takes over.

Nothing waits until the old time is reached again.
"""

from __future__ import annotations

import redis

from common.queue.trial_queue import TrialQueue
from tests.contract.trials import check_consistent, ids, made, until

AHEAD_MS = 3_600_000


def set_back(client: redis.Redis, queue: TrialQueue) -> None:
    """Change the keys as if the server's clock was set back by an hour.

    All noted times then lie an hour ahead.
    """
    for key in ("leases", "workers"):
        for member, score in client.zrange(queue.keys[key], 0, -1, withscores=True):
            client.zadd(queue.keys[key], {member: score + AHEAD_MS})
    for field, value in client.hgetall(queue.keys["meta"]).items():
        client.hset(queue.keys["meta"], field, int(value) + AHEAD_MS)


def test_leases_of_a_worker_that_is_gone_end_within_a_lease(client: redis.Redis) -> None:
    queue = TrialQueue(client, "c" * 16, lease_s=0.3)
    queue.publish(made(2))
    queue.tick(master=True)
    claims = queue.claim("gone", 2, "r")
    set_back(client, queue)

    found: list[str] = []

    def all_expired() -> bool:
        found.extend(
            fence.trial_id
            for fence, _ in queue.tick(master=False).expired
            if fence.trial_id not in found
        )
        return len(found) == 2

    until(all_expired, "both leases to be over", 10)
    for claim in claims:
        assert queue.expire(claim.fence) is not None
    check_consistent(queue)


def test_who_has_gone_does_not_count_as_live(client: redis.Redis) -> None:
    queue = TrialQueue(client, "c" * 16, lease_s=30, live_s=0.2)
    queue.publish(made(4))
    queue.tick(master=True)
    assert len(queue.claim("gone", 1, "r")) == 1
    set_back(client, queue)
    assert queue.master_alive()
    queue.tick(master=False)
    until(
        lambda: not queue.live_workers(within_s=0.3), "the worker that is gone to be forgotten", 10
    )
    assert ids(queue.claim("here", 4, "s")) == [
        "coarse-0001",
        "coarse-0002",
        "coarse-0003",
    ]  # all that waits is its share
