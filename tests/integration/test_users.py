"""A whole search in which master and worker have their own Redis users.

They have exactly the rights of common/broker/rights.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tests.acl import ROLES, add_user
from tests.integration.commands import Place, place
from tests.redis_server import start_redis


@dataclass
class Doors:
    """A place on a server on loopback; the default user is off."""

    here: Place
    admin: redis.Redis
    port: int

    def login(self, role: str) -> dict[str, str]:
        """As docs/security.md has it: the user in the URL, the password in a file."""
        file = self.here.path / f"{role}-password"
        file.write_text(f"{role}'s secret\n")
        return {
            "REDIS_URL": f"redis://{role}@127.0.0.1:{self.port}/0",
            "REDIS_PASSWORD_FILE": str(file),
        }


@pytest.fixture
def doors(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    with (
        start_redis(folder, "7", "--port", str(port)) as server,
        server.client() as admin,
        place(tmp_path) as here,
    ):
        for role in ROLES:
            add_user(admin, role, f"{role}'s secret")
        admin.execute_command("ACL", "SETUSER", "default", "off")
        yield Doors(here, admin, port)


def test_a_search_with_two_users(doors: Doors) -> None:
    here = doors.here
    here.write_search(trials=6)
    launched = here.run(
        "master",
        "launch",
        "--stage",
        "coarse",
        "--workers",
        "0",
        "--detach",
        **doors.login("master"),
    )
    assert launched.returncode == 0, launched.stderr
    trained = here.run("worker", "start", "--burst", "--device", "cpu", **doors.login("worker"))
    assert trained.returncode == 0, trained.stderr
    assert len(here.records()) == 6
    ended = here.run(
        "master", "launch", "--stage", "coarse", "--workers", "0", **doors.login("master")
    )
    assert ended.returncode == 0, ended.stderr
    assert denied(doors.admin) == set()
    mistaken = here.run(
        "master", "launch", "--stage", "coarse", "--workers", "0", **doors.login("worker")
    )
    assert (
        mistaken.returncode == 4
        and "docs/security.md" in mistaken.stderr
        and "Traceback" not in mistaken.stderr
    )
    assert denied(doors.admin) == {"{cf}:searches"}
    said = "".join(
        part for done in (launched, trained, ended, mistaken) for part in (done.stdout, done.stderr)
    )
    assert "s secret" not in said


def denied(admin: redis.Redis) -> set[str]:
    """What Redis refused so far, but for a courtesy of redis-py's: its own name and version."""
    return {entry["object"] for entry in admin.acl_log()} - {"client|setinfo"}
