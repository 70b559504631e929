"""The Redis users of docker/*.acl, for a server of a test."""

from __future__ import annotations

import re
from pathlib import Path

import redis

DOCKER = Path(__file__).parents[1] / "docker"
ROLES = ("master", "worker")
SELECTOR = re.compile(r"\((.*?)\)")


def rules(role: str) -> str:
    """A role's rules on one line, as docker/redis.sh gives them to Redis 7."""
    lines = (DOCKER / f"{role}.acl").read_text().splitlines()
    return " ".join(line for line in lines if line and not line.startswith("#"))


def flat_rules(role: str) -> str:
    """The same commands for 6.2, which knows neither selectors nor keys that are only read: all of them on all keys of a search."""
    words = SELECTOR.sub(r"\1", rules(role)).split()
    commands = sorted({word for word in words if word.startswith("+")})
    return " ".join(["-@all", *commands, "resetkeys", "~cf:*", "~{cf}:*"])


def add_user(client: redis.Redis, role: str, password: str, flat: bool = False) -> None:
    """Makes or replaces a role's user; its name is the role's."""
    words = (flat_rules if flat else rules)(role)
    client.execute_command("ACL", "SETUSER", role, "reset", "on", f">{password}", *words.split())
