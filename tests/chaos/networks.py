"""A network for a single worker.

It is a namespace with one link to this host, which can go down and up. It needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.chaos.needs import needed


@dataclass
class Network:
    """A namespace; the host is ``host_address`` in it."""

    name: str
    host_address: str
    linked: bool = True

    def down(self) -> None:
        self.linked = False
        self._turn("down")

    def up(self) -> None:
        self._turn("up")
        self.linked = True

    def _turn(self, to: str) -> None:
        subprocess.run(["ip", "-n", self.name, "link", "set", "eth0", to], check=True)


@contextmanager
def network(number: int) -> Iterator[Network]:
    """Provide a network inside the block.

    ``number`` (below 60) tells several networks apart, also those of another run.
    """
    needed(
        os.geteuid() == 0 and shutil.which("ip") is not None,
        "a network of a worker's own takes root and the command ip (iproute2)",
    )
    name, link, subnet = (
        f"chaos-{os.getpid()}-{number}",
        f"ch{os.getpid() % 100000}n{number}",
        4 * number,
    )
    host, own = (f"10.231.{os.getpid() % 250}.{subnet + n}" for n in (1, 2))
    try:
        _ip("netns", "add", name)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("address", "add", f"{host}/30", "dev", link)
        _ip("link", "set", link, "up")
        _ip("-n", name, "address", "add", f"{own}/30", "dev", "eth0")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", "eth0", "up")
        yield Network(name, host)
    finally:
        subprocess.run(
            ["ip", "netns", "delete", name], capture_output=True, check=False
        )  # takes both ends of the link with it


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    needed(done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}")
