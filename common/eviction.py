"""Whether a Redis may throw away what it was given: with a limit on its memory and a policy that evicts keys, it does so in silence."""

from __future__ import annotations

from typing import Any

import redis
from redis.exceptions import ResponseError

from common.broker import Broker
from common.redis_errors import translated

# ``volatile-*`` evicts only keys that expire. Those of a search (workers, requests, machines, doubts, meta, a lock) can all be lost at any
# moment: then shares are a little wrong, a machine's bad name is forgotten, or leases are extended once more; no trial, no result.
HARMFUL = "allkeys-"


def eviction_warning(broker: Broker) -> str | None:
    """What to tell the user of a server that may drop trials and results, with the remedy; None where it does not.

    Raises:
        QueueError: it cannot be reached.
    """
    for node in _memory(broker):
        limit_bytes, policy = int(node.get("maxmemory", 0)), str(node.get("maxmemory_policy", ""))
        if limit_bytes and policy.startswith(HARMFUL):
            return (
                f"warning: {broker.where} has maxmemory-policy {policy} and maxmemory {limit_bytes:,} bytes: once full, it drops keys in "
                "silence, and with them trials and results. Let it refuse writes instead, of which nothing is lost: "
                "`redis-cli CONFIG SET maxmemory-policy noeviction`, and the same in its configuration file"
            )
    return None


def _memory(broker: Broker) -> list[dict[str, Any]]:
    """What each server says of its memory; nothing where it may not say."""
    client: redis.Redis = broker.client
    with translated(broker.where):
        try:
            info: Any = client.info("memory")
        except ResponseError:
            return []  # hosted servers may forbid INFO
    return [info] if "maxmemory" in info else [node for node in info.values() if isinstance(node, dict)]  # a cluster answers by node
