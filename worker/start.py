"""Brings a worker up, and down again."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import redis
import torch

from common.broker import open_broker
from common.durable import make_folder
from common.embedded_place import boot_id
from common.errors import ConfigError
from common.eviction import eviction_warning
from common.options import DATA_FOLDER, INTERRUPTED, TERMINATED
from common.trial import WorkerInfo
from common.workers import WorkerRegistry
from worker.device import Device, owned, thread_share, usable_cores
from worker.heartbeat import Heartbeat
from worker.loop import CPU_CLAIM, GPU_CLAIM, Loop, Options
from worker.session import Means, Sessions


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    redis: str | None
    checkpoints: Path
    device: str
    array_width: str
    search: str | None
    burst: bool
    local: int  # workers that `master launch` started together, 0 if it did not start this one
    data: Path = DATA_FOLDER

    @property
    def width(self) -> int | None:
        """The array width, None for auto.

        Raises:
            ConfigError: neither auto nor a positive number.
        """
        if self.array_width == "auto":
            return None
        if not self.array_width.isdigit() or int(self.array_width) < 1:
            raise ConfigError(f"--array-width {self.array_width}: not a width; use auto or a number of at least 1")
        return int(self.array_width)


def say(message: str) -> None:
    """One line on stderr, where a worker's log is."""
    print(f"worker {os.getpid()}: {message}", file=sys.stderr, flush=True)


def start_one(request: Request) -> int:
    """Runs one worker until it is stopped or has no more to do; returns the exit code.

    Raises:
        SearchError: it cannot begin, or the folder cannot be written.
    """
    torch.set_flush_denormal(True)  # before any thread starts: denormal weights slow a step tenfold
    width = request.width
    root = make_folder(request.checkpoints).resolve()
    with owned(request.device) as device, open_broker(request.redis, root) as broker:
        if warning := eviction_warning(broker):
            say(warning)
        registry = WorkerRegistry(broker.client)
        heartbeat = Heartbeat(_info(device, request.search), registry, say, broker.ensure)
        _hear_signals(heartbeat)
        heartbeat.once()  # so that the workers starting beside it count this one
        threads = thread_share(registry.list(), boot_id(), usable_cores(), max(1, request.local)) if device.name == "cpu" else 1
        torch.set_num_threads(threads)
        heartbeat.start()
        say(f"{heartbeat.info.worker} on {device.name} ({device.model}), at most {threads} threads, folder {root}")
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what a task prints belongs into the log
                _loop(request, broker.client, root, device, width, threads, heartbeat).run()
        finally:
            heartbeat.close()
    say("left")
    return heartbeat.exit_code


def _loop(request: Request, client: redis.Redis, root: Path, device: Device, width: int | None, threads: int, heartbeat: Heartbeat) -> Loop:
    sessions = Sessions(client, root, Means(device.torch_device, width, threads, request.data), say)
    first_claim = width or (CPU_CLAIM if device.name == "cpu" else GPU_CLAIM)
    return Loop(client, sessions, heartbeat, Options(request.search, request.burst, first_claim, request.local > 0), say)


def _info(device: Device, search: str | None) -> WorkerInfo:
    host = socket.gethostname()
    name = f"{host}-{os.getpid()}-{secrets.token_hex(2)}"
    return WorkerInfo(name, host, os.getpid(), device.name, device.model, search=search or "", machine=boot_id())


def _hear_signals(heartbeat: Heartbeat) -> None:
    def on_signal(number: int, _frame: FrameType | None) -> None:
        heartbeat.stop(TERMINATED if number == signal.SIGTERM else INTERRUPTED)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


def start_all(request: Request) -> int:
    """Starts one worker a CUDA device, passes signals on, and waits for all; returns the highest exit code.

    Raises:
        ConfigError: there is no CUDA device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise ConfigError("--device all: this machine has no CUDA device; use --device cpu or auto")
    children = [subprocess.Popen(_command(request, index), env=_environment(request)) for index in range(count)]

    def on_signal(number: int, _frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    codes = [child.wait() for child in children]
    return max(128 - code if code < 0 else code for code in codes)  # as a shell tells a signal


def _command(request: Request, index: int) -> list[str]:
    options = ["--device", f"cuda:{index}", "--array-width", request.array_width, "--checkpoints", str(request.checkpoints)]
    options += ["--data-dir", str(request.data)]
    options += ["--search", request.search] if request.search else []
    options += ["--burst"] if request.burst else []
    return [sys.executable, "-P", "-m", "worker", "start", *options]


def _environment(request: Request) -> dict[str, str]:
    """The URL travels in the environment: a password on a command line could be read in the process list."""
    return {**os.environ, **({"REDIS_URL": request.redis} if request.redis else {})}
