"""Which device a worker owns, and how many of the machine's cores."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.errors import ConfigError
from common.filelock import FileLock
from common.trial import WorkerInfo

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Device:
    """A device that this process owns."""

    torch_device: torch.device
    model: str  # the product's name, which trials' times are compared within

    @property
    def name(self) -> str:
        """``cpu`` or ``cuda:0``."""
        return str(self.torch_device)


@contextlib.contextmanager
def owned(wanted: str) -> Iterator[Device]:
    """The device ``wanted`` ("auto", "cpu", "cuda:N"), locked against other workers of this host until the block ends.

    Raises:
        ConfigError: no such device, or another worker holds it.
    """
    with contextlib.ExitStack() as stack:
        index = _choose(wanted, stack)
        if index is None:
            yield Device(torch.device("cpu"), cpu_model())
        else:
            yield Device(torch.device("cuda", index), torch.cuda.get_device_name(index))


def _choose(wanted: str, stack: contextlib.ExitStack) -> int | None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu":
        return None
    if wanted == "auto":
        free = (index for index in range(count) if _lock(index, stack))
        return next(free, None)
    kind, _, number = wanted.partition(":")
    if kind != "cuda" or not number.isdigit():
        raise ConfigError(f"--device {wanted}: not a device; use auto, cpu, cuda:N or all")
    if int(number) >= count:
        raise ConfigError(f"--device {wanted}: this machine has {count} CUDA devices; use {'cuda:0' if count else 'cpu'} or auto")
    if not _lock(int(number), stack):
        raise ConfigError(f"--device {wanted}: another worker of this host holds it; stop that one, or use auto")
    return int(number)


def _lock(index: int, stack: contextlib.ExitStack) -> bool:
    """Takes the lock of a CUDA device for the rest of ``stack``; False if another worker has it."""
    path = Path(tempfile.gettempdir()) / f"coarsefine-{os.getuid()}-{_identity(index)}.lock"
    lock = FileLock(path)
    stack.callback(lock.close)
    return lock.try_exclusive()


def _identity(index: int) -> str:
    """The device's own id, since CUDA_VISIBLE_DEVICES renumbers the indices."""
    return str(getattr(torch.cuda.get_device_properties(index), "uuid", f"cuda{index}"))


def cpu_model() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores(affinity: int | None = None, cpu_max: str | None = None) -> int:
    """The cores that this process may use, by its affinity and its cgroup's quota; at least one."""
    cores = affinity if affinity is not None else len(os.sched_getaffinity(0))
    if cpu_max is None:
        cpu_max = CPU_MAX.read_text(encoding="ascii") if CPU_MAX.exists() else "max 100000"
    quota, period = [*cpu_max.split(), "100000"][:2]
    if quota != "max":
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def thread_share(workers: Sequence[WorkerInfo], machine: str, cores: int, together: int = 1) -> int:
    """A worker's share of the machine's cores: one process a core first, threads second.

    Args:
        workers: all known workers, this one among them or not.
        machine: this worker's machine id.
        cores: how many this process may use.
        together: how many were started at once on this machine, which may not all be known yet.
    """
    beside = [w for w in workers if w.machine == machine and w.device == "cpu" and w.state != "lost"]
    return max(1, cores // max(1, together, len(beside)))
