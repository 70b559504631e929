"""The Redis users of common/broker/rights, for a server of a test."""

from __future__ import annotations

from pathlib import Path

import redis

from common.broker.acl import ROLES, SELECTOR, flat_rules, rules

__all__ = ["DOCKER", "ROLES", "SELECTOR", "USERS", "add_user", "flat_rules", "rules"]

USERS = (*ROLES, "scaler")  # the last is that of KEDA
DOCKER = Path(__file__).parents[1] / "docker"


def add_user(client: redis.Redis, role: str, password: str, flat: bool = False) -> None:
    """Makes or replaces a role's user; its name is the role's."""
    words = (flat_rules if flat else rules)(role)
    client.execute_command("ACL", "SETUSER", role, "reset", "on", f">{password}", *words.split())
