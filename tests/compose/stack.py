"""A clone of this repository with its compose file brought up, as a user would have it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# uid and gid that nobody here has: files with it were made for the owner of the checkout.
FOREIGN_ID = 23456
BUILD_DEADLINE_S = 1200.0  # torch and the other libraries are downloaded on the first build
COMMAND_DEADLINE_S = 300.0
POLL_S = 0.5
MAX_RESTARTS = 2  # a container that ends so often while it starts will not come up


def compose_command() -> list[str]:
    """Compose v2 if Docker has it, else docker-compose.

    Raises:
        AssertionError: neither, or no daemon answers.
    """
    remedy = "this proof needs a running Docker daemon and Compose (v2, or docker-compose 1.29)"
    assert shutil.which("docker"), f"there is no docker command; {remedy}"
    daemon = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=60)
    assert daemon.returncode == 0, f"{daemon.stderr.strip()}; {remedy}"
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=60)
    if plugin.returncode == 0:
        return ["docker", "compose"]
    assert shutil.which("docker-compose"), (
        f"there is neither `docker compose` nor docker-compose; {remedy}"
    )
    return ["docker-compose"]


SERVICES = ("redis", "worker", "master", "dashboard")  # that stay up


class Stack:
    """The clone, and what Docker runs for it under a project name of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.owner = FOREIGN_ID if os.geteuid() == 0 else os.geteuid()
        self.redis_port, self.dashboard_port = _free_port(), _free_port()
        self._compose = compose_command()
        self._environ = os.environ | {
            "COMPOSE_PROJECT_NAME": f"coarsefine-test-{secrets.token_hex(4)}",
            "REDIS_PORT": str(self.redis_port),
            "DASHBOARD_PORT": str(self.dashboard_port),
        }

    def clone(self) -> None:
        """An unmodified checkout, owned by somebody who is not root."""
        # Without --no-hardlinks the change of owner would reach this repository's own objects.
        subprocess.run(
            ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(self.folder)], check=True
        )
        if os.geteuid() == 0:
            for path in [self.folder, *self.folder.rglob("*")]:
                os.chown(path, self.owner, self.owner, follow_symlinks=False)

    def compose(
        self, *arguments: str, deadline_s: float = COMMAND_DEADLINE_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs a compose command; its exit status is the caller's to judge."""
        return subprocess.run(
            [*self._compose, *arguments],
            cwd=self.folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            stdin=subprocess.DEVNULL,
        )

    def up(self, workers: int) -> None:
        """Builds the image and starts everything; returns when all are healthy."""
        done = self.compose(
            "up", "--build", "-d", "--scale", f"worker={workers}", deadline_s=BUILD_DEADLINE_S
        )
        assert done.returncode == 0, (
            f"compose up failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        wait_until(
            lambda: self.unhealthy() == [],
            180,
            lambda: f"unhealthy: {self.unhealthy()}\n{self.logs()}",
        )

    def logs(self) -> str:
        """What the containers have said lately."""
        return self.compose("logs", "--no-color", "--tail", "40").stdout

    def containers(self, service: str) -> list[dict[str, Any]]:
        """What Docker knows of a service's containers, stopped ones too."""
        names = self._docker_names(service)
        return list(json.loads(_output(["docker", "inspect", *names]))) if names else []

    def _docker_names(self, service: str) -> list[str]:
        project = f"label=com.docker.compose.project={self._environ['COMPOSE_PROJECT_NAME']}"
        labels = ["--filter", project, "--filter", f"label=com.docker.compose.service={service}"]
        return _output(["docker", "ps", "--all", "--quiet", *labels]).split()

    def processes(self, container: dict[str, Any]) -> list[tuple[int, str]]:
        """The uid and the command line of everything that runs in a container."""
        lines = _output(["docker", "top", container["Id"], "-eo", "pid,uid,args"]).splitlines()[1:]
        rows = [line.split(maxsplit=2) for line in lines]
        return [(int(uid), arguments) for _pid, uid, arguments in rows]

    def files(self, container: dict[str, Any], folder: str) -> list[str]:
        """The paths of all files below a folder, as the container's root sees them."""
        return sorted(
            _output(["docker", "exec", container["Id"], "find", folder, "-type", "f"]).split()
        )

    def content(self, container: dict[str, Any], path: str) -> str:
        """What a file holds, as the container's root sees it."""
        return _output(["docker", "exec", container["Id"], "cat", path])

    def unhealthy(self) -> list[str]:
        """The containers that should be up and do not call themselves healthy."""
        expected = [container for service in SERVICES for container in self.containers(service)]
        for container in expected:
            assert container["RestartCount"] < MAX_RESTARTS, (
                f"{container['Name']} keeps ending:\n{self.logs()}"
            )
        return [
            container["Name"]
            for container in expected
            if container["State"].get("Health", {}).get("Status") != "healthy"
        ]

    def on_host(
        self, *command: str, deadline_s: float = COMMAND_DEADLINE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run one of this environment's programs against the published port.

        It runs in the checkout, as the owner of the checkout.
        """
        program = Path(sys.executable).with_name(command[0])
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in ("CHECKPOINT_DIR", "PYTHONPATH")
        }
        environ |= {
            "REDIS_URL": f"redis://master@127.0.0.1:{self.redis_port}/0",
            "REDIS_PASSWORD_FILE": "secrets/redis_password",
            "HOME": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.run(
            [*self._as_owner(), str(program), *command[1:]],
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            stdin=subprocess.DEVNULL,
        )

    def _as_owner(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        # The right to read is kept: Python and this repository may be below a home folder that only
        # root may enter.
        reading = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
        return [
            "setpriv",
            "--reuid",
            str(self.owner),
            "--regid",
            str(self.owner),
            "--clear-groups",
            *reading,
            "--",
        ]

    def down(self) -> None:
        """Removes containers, volume, network and images of the project."""
        self.compose("down", "--volumes", "--rmi", "local", "--remove-orphans")


def wait_until(
    condition: Callable[[], bool], deadline_s: float, explain: Callable[[], str]
) -> None:
    """Returns when ``condition`` holds; the deadline only stops a hang."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, explain()
        time.sleep(POLL_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
