"""The Lua scripts in ``common/queue/lua``, and calling them. A call is never sent twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError

# Scripts on keys of no single search. They do not need shared.lua.
ALONE = frozenset({"register", "announce", "workers"})
# In the order of KEYS; shared.lua says what each holds.
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
)


@dataclass(frozen=True)
class Script:
    """A script's text, and the digest by which Redis knows it."""

    text: str
    digest: bytes


@cache
def load(name: str) -> Script:
    """Return the script ``lua/NAME.lua``, preceded by the code that all transitions share."""
    folder = resources.files("common.queue") / "lua"
    parts = [name] if name in ALONE else ["shared", name]
    text = "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode())


def run(
    client: Any, name: str, keys: Sequence[str | bytes], arguments: Sequence[str | int | float]
) -> Any:
    """Run a script once. A server that does not know the script has not run it, and gets its text.

    Raises:
        redis.exceptions.RedisError: as redis-py raises it; the caller translates it.
    """
    script = load(name)
    try:
        return client.evalsha(script.digest, len(keys), *keys, *arguments)
    except NoScriptError:
        return client.eval(script.text, len(keys), *keys, *arguments)


def search_keys(search_id: str) -> dict[str, str]:
    """Return short name -> key of a search, in the order of KEYS.

    All keys have the same hash tag, so that they are in one cluster slot.
    """
    return {name: f"cf:{{{search_id}}}:{name}" for name in SEARCH_KEYS}
