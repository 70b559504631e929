"""Start a worker, or one for each of several CUDA devices, and shut it down."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import redis
import torch

from common.broker.connection import open_broker
from common.broker.embedded_folder import boot_id
from common.broker.eviction import eviction_warning
from common.broker.sandbox import sandbox_warning
from common.ending import BY_SIGNAL, END_SIGNALS, EXIT_POISONED, hear_end
from common.errors import ConfigError
from common.folder.durable import make_folder
from common.offspring import Offspring
from common.output import find_log
from common.queue.workers import WorkerRegistry
from common.search.protocol import PROTOCOL
from common.search.trial import WorkerInfo
from worker.own import LoopHost
from worker.own.process import start_child
from worker.own.zygote import start_zygote
from worker.run.heartbeat import Heartbeat
from worker.run.job import find_job_id, find_leave_time
from worker.run.loop import CPU_CLAIM, GPU_CLAIM, Loop, LoopOptions
from worker.run.request import Request
from worker.run.session import Means, Sessions
from worker.tasks.copies import remove_copies
from worker.training.compute.device import (
    Cores,
    Device,
    count_gpus,
    own_cores,
    own_device,
    share_devices,
    thread_share,
)

LOOK_S = 0.5  # between looks at the workers of several devices
SILENT_S = 3.0  # a worker that is heard of once a second, and not for so long, may be dead


def say(message: str) -> None:
    """Print one line to stderr, where a worker's log goes."""
    print(f"worker {os.getpid()}: {message}", file=sys.stderr, flush=True)


def start_workers(request: Request) -> int:
    """Run the workers that the devices are shared by, and return the highest exit code.

    One worker runs in this process. Several run in processes of their own.

    Raises:
        SearchError: a worker cannot start, or the folder cannot be written.
    """
    count = count_gpus() if request.device not in ("auto", "cpu") else 0
    shares = share_devices(request.device, request.gpus, count)
    left_over = count - len(shares) * request.gpus if request.device == "all" else 0
    if left_over:
        say(f"--gpus-per-trial {request.gpus}: {left_over} of {count} CUDA devices stay unused")
    if len(shares) == 1:
        return start_one(replace(request, device=shares[0]))
    return _start_all(request, shares)


def start_one(request: Request) -> int:
    """Run one worker until it is stopped or has nothing left to do. Return its exit code.

    Raises:
        SearchError: the worker cannot start, or the folder cannot be written.
    """
    width = request.width
    root = make_folder(request.checkpoints).resolve()
    # Before any thread, and before torch looks for devices.
    zygote = start_zygote() if request.device in ("auto", "cpu") else None
    with (
        own_device(request.device, request.gpus) as device,
        open_broker(request.redis, root, role="worker") as broker,
    ):
        on_cpu = device.name == "cpu"
        if zygote is not None and not on_cpu:  # a loop on a GPU gets a new interpreter
            zygote.close()
            zygote = None
        warnings = (device.note, eviction_warning(broker), sandbox_warning(broker))
        for warning in filter(None, warnings):
            say(warning)
        registry, cores = WorkerRegistry(broker.client), own_cores()
        heartbeat = Heartbeat(
            _info(device, request.search, cores, root),
            registry,
            say,
            broker.ensure,
            stop_grace_s=request.stop_grace_s,
            leave_at=find_leave_time(
                request.max_hours, request.stop_grace_s, os.environ, time.time()
            ),
        )
        _hear_signals(heartbeat)
        offspring = Offspring()
        host = LoopHost(offspring, zygote.start if zygote is not None else start_child)
        try:
            heartbeat.once()  # so that workers that start at the same time count this one
            refuse_shared(registry.list, heartbeat.info)
            threads = (
                thread_share(registry.list(), boot_id(), cores, max(1, request.local))
                if on_cpu
                else 1
            )
            torch.set_num_threads(threads)
            heartbeat.start()
            say(
                f"{heartbeat.info.worker} on {device.name} ({device.model}), at most {threads} "
                f"threads, folder {root}"
            )
            means = Means(
                device.torch_device, width, threads, request.data, offspring, host, device.gpus
            )
            gc.freeze()  # what is loaded stays, and no collection has to look at it again
            with contextlib.redirect_stdout(sys.stderr):  # a task's prints go to the log
                _loop(request, broker.client, root, means, heartbeat).run()
        finally:
            host.close()
            heartbeat.close()
            remove_copies()
            if zygote is not None:
                zygote.close()
    say("left")
    return heartbeat.exit_code


def _loop(
    request: Request, client: redis.Redis, root: Path, means: Means, heartbeat: Heartbeat
) -> Loop:
    sessions = Sessions(client, root, means, say)
    on_cpu = means.device.type == "cpu"
    first_claim = means.width or (CPU_CLAIM if on_cpu else GPU_CLAIM)
    folder = root / request.search if request.search else None
    return Loop(
        client,
        sessions,
        heartbeat,
        LoopOptions(
            request.search,
            request.burst,
            first_claim,
            request.local > 0,
            folder,
            request.idle_exit_s,
        ),
        say,
    )


def _info(device: Device, search: str | None, cores: Cores, root: Path) -> WorkerInfo:
    host = socket.gethostname()
    name = f"{host}-{os.getpid()}-{secrets.token_hex(2)}"
    return WorkerInfo(
        name,
        host,
        os.getpid(),
        device.name,
        device.model,
        search=search or "",
        machine=boot_id(),
        protocol=PROTOCOL,
        job=find_job_id(os.environ),
        cores=cores.pool,
        gpus=",".join(device.ids),
        log=find_log(root),
    )


def refuse_shared(
    list_workers: Callable[[], Sequence[WorkerInfo]],
    own: WorkerInfo,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Check that no worker in another container of this machine holds one of the GPUs.

    Containers have the same Redis, and each has locks of its own. A worker that has not been heard
    for a while may be dead, so it is waited for.

    Args:
        list_workers: returns the workers that Redis knows.
        own: this worker, which has announced itself.
        sleep: waits for seconds.

    Raises:
        ConfigError: one does.
    """
    ids = {one for one in own.gpus.split(",") if one}
    began = time.monotonic()
    while holders := [
        (info, shared)
        for info in (list_workers() if ids else ())
        if (info.machine, info.state != "lost") == (own.machine, True)
        and (shared := sorted(ids & set(info.gpus.split(","))))
        and info.worker != own.worker
        and info.last_seen_s < SILENT_S
    ]:
        if time.monotonic() - began > SILENT_S:
            info, shared = holders[0]
            raise ConfigError(
                f"--device {own.device}: worker {info.worker}, in another container of this "
                f"machine, holds {shared[0]}; stop that one, or name another device"
            )
        sleep(LOOK_S)


def _hear_signals(heartbeat: Heartbeat) -> None:
    def on_signal(number: int, _frame: FrameType | None) -> None:
        heartbeat.stop(BY_SIGNAL + number)

    hear_end(on_signal)
    os.register_at_fork(after_in_child=_hear_nothing)


def _hear_nothing() -> None:
    """Restore the default signal handlers, in a process that a task has forked.

    Such a process then ends by a signal like any other. Its ``terminate`` relies on that.
    """
    for number in END_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _start_all(request: Request, shares: Sequence[str]) -> int:
    """Start a worker for each share of the devices, pass signals on, and wait for all.

    A worker that its device serves no more is started again.

    Returns:
        The highest exit code.
    """

    def start(devices: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(_command(request, devices), env=_environment(request))

    children, codes, told = {devices: start(devices) for devices in shares}, list[int](), set[int]()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        told.add(number)
        for child in [*children.values()]:
            child.send_signal(number)

    hear_end(on_signal)
    while children:
        for devices, child in [*children.items()]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(LOOK_S)
                if code == EXIT_POISONED and not told:
                    children[devices] = start(devices)
                else:
                    del children[devices]
                    codes.append(code)
    return max(128 - code if code < 0 else code for code in codes)  # a signal as in a shell


def _command(request: Request, devices: str) -> list[str]:
    options = [
        "--device",
        devices,
        "--gpus-per-trial",
        str(request.gpus),
        "--array-width",
        request.array_width,
        "--checkpoints",
        str(request.checkpoints),
    ]
    limits = {"--idle-exit": request.idle_exit_s, "--max-hours": request.max_hours}
    for name, value in {**limits, "--stop-grace": request.stop_grace_s}.items():
        options += [name, str(value)] if value is not None else []
    options += ["--data-dir", str(request.data)]
    options += ["--search", request.search] if request.search else []
    options += ["--burst"] if request.burst else []
    return [sys.executable, "-P", "-m", "worker", "start", *options]


def _environment(request: Request) -> dict[str, str]:
    """Return the environment of a child process, with the URL of Redis.

    The URL is not on the command line, since the process list would show its password.
    """
    return {**os.environ, **({"REDIS_URL": request.redis} if request.redis else {})}
