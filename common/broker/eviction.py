"""Whether a Redis may silently drop keys: it does with a memory limit and an eviction policy."""

from __future__ import annotations

from common.broker.connection import Broker, server_info
from common.broker.errors import translate_errors

# ``volatile-*`` evicts only keys that expire. A search can lose all of its expiring keys (workers,
# requests, machines, doubts, meta, a lock) at any moment. The worst effects are that shares are
# slightly wrong, strikes against a machine are forgotten, or leases are extended once more. No
# trial and no result is lost.
HARMFUL = "allkeys-"


def eviction_warning(broker: Broker) -> str | None:
    """Return a warning if the server may drop trials and results, else None.

    The warning includes the remedy.

    Raises:
        QueueError: the server cannot be reached.
    """
    with translate_errors(broker.where):
        nodes = server_info(broker.client, "memory")
    for node in nodes:
        limit_bytes, policy = int(node.get("maxmemory", 0)), str(node.get("maxmemory_policy", ""))
        if limit_bytes and policy.startswith(HARMFUL):
            return (
                f"warning: {broker.where} has maxmemory-policy {policy} and maxmemory "
                f"{limit_bytes:,} bytes: once full, it drops keys in silence, and with them "
                "trials and results. Let it refuse writes instead, of which nothing is lost: "
                "`redis-cli CONFIG SET maxmemory-policy noeviction`, and the same in its "
                "configuration file"
            )
    return None
