"""A Ray cluster of two nodes on this machine, for the time of a test.

The nodes listen on free ports and have a folder of their own. Each is ended by its process group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tests.chaos.needs import needed
from tests.integration.commands import wait_for
from tests.slurm.cluster import free_ports

CPUS = 1  # of each node, so that each has one actor
# A head asks for a token as soon as any program of this user has ever made one.
OPEN = {"RAY_AUTH_MODE": "disabled"}


class Cluster:
    """The nodes: a head, and one beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to reach this cluster."""
        return {"RAY_ADDRESS": self.address, **OPEN}

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        head = ("--head", f"--port={port}", f"--temp-dir={self.folder}/t")
        self._start_node("head", *head, "--include-dashboard=false")
        wait_for(lambda: "runtime started" in self._said("head"), "the head of Ray")
        self.start_beside()

    def start_beside(self) -> None:
        """Start the node beside the head."""
        self._start_node("beside", f"--address={self.address}")
        wait_for(lambda: "runtime started" in self._said("beside"), "the node beside")

    def stop_node(self, name: str) -> None:
        """End a node with all its processes, which end with the first."""
        node = self.nodes.pop(name)
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def stop(self) -> None:
        for name in [*self.nodes][::-1]:
            self.stop_node(name)

    def _said(self, name: str) -> str:
        assert self.nodes[name].poll() is None, (self.folder / f"{name}.out").read_text()
        return (self.folder / f"{name}.out").read_text()

    def _start_node(self, name: str, *options: str) -> None:
        words = ["start", "--block", "--node-ip-address=127.0.0.1", f"--num-cpus={CPUS}", *options]
        command = [sys.executable, "-P", "-m", "ray.scripts.scripts", *words]
        with (self.folder / f"{name}.out").open("wb") as log:
            self.nodes[name] = subprocess.Popen(
                [*command, "--disable-usage-stats", "--object-store-memory=100000000"],
                cwd=self.folder,
                env={**os.environ, **OPEN},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Run a cluster inside the block. Skip the test where Ray is missing; in CI, fail it."""
    needed(find_spec("ray") is not None, "Ray is not installed; `make ray-test` installs it")
    running = Cluster(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()
