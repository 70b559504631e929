"""The Lua scripts in ``common/lua`` and how they are called: once, never sent again after a lost answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import NoScriptError
from redis.sentinel import SentinelConnectionPool

ALONE = frozenset({"register", "announce", "workers"})  # scripts on keys of no single search, which do not need shared.lua
SEARCH_KEYS = (
    "trials",
    "states",
    "pending",
    "open",
    "groups",
    "counts",
    "leases",
    "progress",
    "results",
    "endings",
    "workers",
    "requests",
    "meta",
    "curves",
    "machines",
    "doubts",
)  # in the order of KEYS; shared.lua says what each holds


@dataclass(frozen=True)
class Script:
    """A script's text and the digest that Redis knows it by."""

    text: str
    digest: bytes


@cache
def load(name: str) -> Script:
    """The script ``lua/NAME.lua``, with what the transitions share before it."""
    folder = resources.files("common") / "lua"
    parts = [name] if name in ALONE else ["shared", name]
    text = "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode())


def run(client: Any, name: str, keys: Sequence[str | bytes], arguments: Sequence[str | int | float]) -> Any:
    """Carries out a script once. A server that does not know it yet has not run it, and gets its text.

    Raises:
        redis.exceptions.RedisError: as redis-py raises it; the caller translates.
    """
    script = load(name)
    try:
        return client.evalsha(script.digest, len(keys), *keys, *arguments)
    except NoScriptError:
        return client.eval(script.text, len(keys), *keys, *arguments)


def search_keys(search_id: str) -> dict[str, str]:
    """The keys of a search by their short name, in the order of KEYS; one hash tag, so that they share a cluster slot."""
    return {name: f"cf:{{{search_id}}}:{name}" for name in SEARCH_KEYS}


def where_of(client: redis.Redis) -> str:
    """Where ``client`` connects to, as messages name it; without user and password."""
    if isinstance(client, RedisCluster):
        return f"the Redis Cluster at {', '.join(sorted(str(node.name) for node in client.get_nodes()))}"
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return f"Redis {pool.service_name!r}, which Sentinel watches,"
    options = pool.connection_kwargs
    return f"Redis at {options.get('path') or '{}:{}'.format(options.get('host', 'localhost'), options.get('port', 6379))}"
