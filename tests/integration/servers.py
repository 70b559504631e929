"""Servers on loopback as users have them: alone, as a Cluster, watched by a Sentinel."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.integration.commands import wait_for
from tests.redis_server import program


def free_port(also: int = 0) -> int:
    """A port that is free now, as is the one ``also`` above it."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            if port + also > 65535:
                continue
            try:
                two.bind(("127.0.0.1", port + also if also else 0))
            except OSError:
                continue
            return port


@contextmanager
def running(folder: Path, port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server on loopback, killed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        program("7"),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(folder),
        *options,
    ]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: answers(port), f"the server on port {port}")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    with redis.Redis(port=port) as client, contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


@dataclass
class Cluster:
    """Three nodes that share the slots."""

    url: str
    folder: Path
    nodes: dict[int, subprocess.Popen[bytes]]  # by port

    def port_of(self, key: str) -> int:
        """The node that serves a key."""
        with redis.Redis(port=next(iter(self.nodes))) as asked:
            slot = asked.cluster("keyslot", key)
            rows = asked.execute_command("CLUSTER", "SLOTS")
        return next(int(row[2][1]) for row in rows if row[0] <= slot <= row[1])


NODE = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--appendonly", "yes")


@contextmanager
def a_cluster(folder: Path) -> Iterator[Cluster]:
    """A Cluster whose nodes keep their data over a restart."""
    ports = [free_port(also=10_000) for _ in range(3)]
    with ExitStack() as stack:
        nodes = {
            port: stack.enter_context(running(folder / str(port), port, *NODE)) for port in ports
        }
        share = 16384 // 3 + 1
        for number, port in enumerate(ports):
            with redis.Redis(port=port) as node:
                node.execute_command(
                    "CLUSTER", "ADDSLOTSRANGE", number * share, min((number + 1) * share, 16384) - 1
                )
                node.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
        for port in ports:
            with redis.Redis(port=port, decode_responses=True) as node:
                wait_for(
                    lambda node=node: (
                        "cluster_state:ok" in str(node.execute_command("CLUSTER", "INFO"))
                    ),
                    "the cluster",
                )
        yield Cluster(f"redis+cluster://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}", folder, nodes)


@dataclass
class Watched:
    """A primary and its replica, and the Sentinel that watches them."""

    url: str
    primary: subprocess.Popen[bytes]
    replica_port: int


@contextmanager
def a_sentinel(folder: Path) -> Iterator[Watched]:
    """One Sentinel that fails over two seconds after the primary is gone.

    A busy machine lets a server wait for most of that.
    """
    primary, replica, watcher = free_port(), free_port(), free_port()
    settings = (
        f"port {watcher}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor search 127.0.0.1 {primary} 1\n"
    )
    settings += (
        "sentinel down-after-milliseconds search 2000\nsentinel failover-timeout search 4000\n"
    )
    (folder / "sentinel.conf").write_text(settings)
    with ExitStack() as stack:
        dying = stack.enter_context(running(folder / "primary", primary))
        stack.enter_context(
            running(folder / "replica", replica, "--replicaof", "127.0.0.1", str(primary))
        )
        command = [str(program("7")), str(folder / "sentinel.conf"), "--sentinel"]
        sentinel = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stack.callback(sentinel.wait)
        stack.callback(sentinel.kill)
        wait_for(lambda: answers(watcher), "the Sentinel")
        with redis.Redis(port=watcher, decode_responses=True) as asked:
            wait_for(
                lambda: len(asked.sentinel_slaves("search")) == 1,
                "the Sentinel to know the replica",
            )
        yield Watched(f"redis+sentinel://127.0.0.1:{watcher}/search/0", dying, replica)
