"""The command line and the environment of a local worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from master.launchers.forked import PROGRAM


def worker_command(
    search: str, root: Path, together: int = 1, device: str = "auto", gpus: int = 1
) -> list[str]:
    """Return the command line of a local worker.

    It does not contain the Redis URL, since a process list shows the command line to everybody.

    Args:
        search: The only search that the worker works for.
        root: The checkpoint root.
        together: How many workers are started with it. They share the cores.
        device: The device, as for `worker start`.
        gpus: The GPUs of each worker.
    """
    words = [
        "--device",
        device,
        "--search",
        search,
        "--checkpoints",
        str(root),
        "--local",
        str(together),
    ]
    words += ["--gpus-per-trial", str(gpus)] if gpus > 1 else []
    return [*PROGRAM, "start", *words]


def worker_environment(url: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a local worker.

    Args:
        url: The URL of Redis. None for a server that a worker finds by the checkpoint root.
        environ: The master's own environment.
    """
    inherited = {name: value for name, value in environ.items() if name != "REDIS_URL"}
    return {**inherited, "PYTHONUNBUFFERED": "1", **({"REDIS_URL": url} if url else {})}
