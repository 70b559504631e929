"""Whether a server lets scripts escape their sandbox. Each of its branches has a fixed version."""

from __future__ import annotations

from typing import Any

from common.broker.connection import Broker, server_info
from common.broker.errors import translate_errors
from common.broker.server_program import parse_version, version_text

CVE = "CVE-2025-49844"
# The first fixed version of each branch. Branches 6.0 and 7.0 have none.
FIXED = {
    "Redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}


def remedy_of(program: str, version: str) -> str | None:
    """Return the version to upgrade to; None if this one has the fix or nobody can tell.

    Args:
        program: "Redis" or "Valkey".
        version: the server's version as it states it, such as "7.0.15".
    """
    found = parse_version(version)
    fixed = next((first for first in FIXED[program] if first[:2] >= found[:2]), None)
    return version_text(fixed) if found and fixed and found < fixed else None


def sandbox_warning(broker: Broker) -> str | None:
    """Return a warning if the server's scripts can leave their sandbox, else None.

    There is none for the embedded server, which only the user who started it can reach.

    Raises:
        QueueError: the server cannot be reached.
    """
    if broker.embedded:
        return None
    with translate_errors(broker.where):
        nodes = server_info(broker.client, "server")
    for program, version in map(_name_version, nodes):
        if remedy := remedy_of(program, version):
            return (
                f"warning: {broker.where} is {program} {version}, which lets every client that "
                f"may run scripts run any code as the server ({CVE}); upgrade it to {remedy} or "
                "newer, unless your distribution or provider has backported the fix"
            )
    return None


def _name_version(node: dict[str, Any]) -> tuple[str, str]:
    """Return the name of the server program and its version.

    Valkey also states the version of the Redis that it is compatible with.
    """
    if "valkey_version" in node:
        return "Valkey", str(node["valkey_version"])
    return "Redis", str(node.get("redis_version", ""))
