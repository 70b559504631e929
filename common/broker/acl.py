"""The rights of the Redis users, as rules of an ACL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

Role = Literal["master", "worker"]
ROLES: tuple[Role, ...] = get_args(Role)
FOLDER = Path(__file__).parent / "rights"
WITH_SELECTORS = (7, 0)  # the first version that knows brackets, and keys that are only read
SELECTOR = re.compile(r"\((.*?)\)")


def rules(role: str) -> str:
    """Return a user's rules for Redis 7 on one line."""
    lines = (FOLDER / f"{role}.acl").read_text(encoding="utf-8").splitlines()
    return " ".join(line for line in lines if line and not line.startswith("#"))


def flat_rules(role: str) -> str:
    """Return the same commands for Redis 6.2.

    6.2 has neither selectors nor read-only keys, so all commands apply to all keys of a search.
    """
    words = SELECTOR.sub(r"\1", rules(role)).split()
    commands = sorted({word for word in words if word.startswith("+")})
    return " ".join(["-@all", *commands, "resetkeys", "~cf:*", "~{cf}:*"])


def rules_for(role: str, version: Sequence[int]) -> str:
    """Return a role's rules for a server of this version, such as (6, 2, 14)."""
    return rules(role) if tuple(version) >= WITH_SELECTORS else flat_rules(role)
