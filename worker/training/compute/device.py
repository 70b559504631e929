"""The devices that a worker owns, and its share of the machine's cores."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.errors import ConfigError
from common.folder.filelock import FileLock
from common.search.trial import WorkerInfo
from worker.training.compute.device_option import split_devices

# Of the locks on GPUs: the same folder for all users of a host, whatever their TMPDIR.
LOCKS = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
DEVICES = Path("/dev")
# Variables that say which GPUs a process sees, of NVIDIA's and AMD's drivers.
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
SLICE = "MIG-"  # the id of a slice of a GPU begins so
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Device:
    """What this process owns: the CPU, or one or more GPUs."""

    torch_device: torch.device  # arrays of trials train here
    model: str  # product name; times of trials are compared only within one
    gpus: tuple[int, ...] = ()  # numbers of all its GPUs in torch; none on the CPU
    ids: tuple[str, ...] = ()  # of its GPUs, whatever their numbers here
    note: str = ""  # what the user should know of the choice

    @property
    def name(self) -> str:
        """The names in torch: ``cpu``, ``cuda:0`` or ``cuda:0,cuda:1``."""
        return name_devices(self.gpus)


def name_devices(gpus: Sequence[int]) -> str:
    """Return the names of GPUs in torch, such as ``cuda:0,cuda:1``; ``cpu`` if there are none."""
    return ",".join(f"cuda:{gpu}" for gpu in gpus) or "cpu"


def count_gpus() -> int:
    """Return how many CUDA devices this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def share_devices(wanted: str, n_gpus: int, count: int) -> list[str]:
    """Return the devices of each worker that one ``worker start`` starts.

    Args:
        wanted: "auto", "cpu", "all", "cuda:N", or several such as "cuda:0,cuda:1".
        n_gpus: how many GPUs each worker owns.
        count: how many CUDA devices this process sees.

    Returns:
        One text for each worker, as ``own_device`` takes it. GPUs of "all" that are too few for
        another worker are left out.

    Raises:
        ConfigError: a device does not exist, or there are too few of them or too many.
    """
    if wanted == "cpu" and n_gpus > 1:
        raise ConfigError(
            f"--gpus-per-trial {n_gpus}: --device cpu has none; leave it out, and set on_cpu = "
            "true below [resources] in the search file to let the CPU stand in"
        )
    if wanted in ("cpu", "auto"):
        return [wanted]
    if wanted == "all" and not count:
        raise ConfigError("--device all: this machine has no CUDA device; use --device cpu or auto")
    gpus = list(range(count)) if wanted == "all" else _parse(wanted, count)
    if len(gpus) < n_gpus:
        raise ConfigError(
            f"--gpus-per-trial {n_gpus}: --device {wanted} is {len(gpus)} CUDA "
            f"{'device' if len(gpus) == 1 else 'devices'} here; ask for fewer, or name more"
        )
    if wanted != "all" and len(gpus) % n_gpus:
        raise ConfigError(
            f"--device {wanted}: {len(gpus)} devices cannot be shared by workers of {n_gpus}; "
            f"name a multiple of {n_gpus}"
        )
    firsts = range(0, len(gpus) - n_gpus + 1, n_gpus)
    return [name_devices(gpus[first : first + n_gpus]) for first in firsts]


@dataclass(frozen=True)
class Cores:
    """The cores that a process may use. Processes with an equal ``pool`` share them."""

    count: int
    pool: str


@contextlib.contextmanager
def own_device(wanted: str, n_gpus: int = 1) -> Iterator[Device]:
    """Yield the device ``wanted``, or several, locked against other workers of this host.

    The locks are held until the block ends.

    Args:
        wanted: "auto", "cpu", "cuda:N", or several such as "cuda:0,cuda:1".
        n_gpus: how many GPUs "auto" takes.

    Raises:
        ConfigError: a device does not exist, or another worker holds it.
    """
    with contextlib.ExitStack() as stack:
        gpus = _choose(wanted, n_gpus, stack)
        if not gpus:
            note = _explain_cpu() if wanted == "auto" else ""
            yield Device(torch.device("cpu"), cpu_model(), note=note)
        else:
            model = torch.cuda.get_device_name(gpus[0])
            ids = tuple(_identity(gpu) for gpu in gpus)
            yield Device(torch.device("cuda", gpus[0]), model, gpus, ids)


def use_device(device: torch.device) -> None:
    """Make a GPU the current one, for code that says just "cuda". The CPU needs nothing."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _explain_cpu() -> str:
    """Return why "auto" is the CPU although there is a GPU; nothing if there is none.

    Raises:
        ConfigError: there is one for this torch, and it does not start.
    """
    hidden = any(os.environ.get(name, "0").strip() in ("", "-1") for name in VISIBLE)
    nvidia = sorted(DEVICES.glob("nvidia[0-9]*"))
    amd = [DEVICES / "kfd"] if (DEVICES / "kfd").exists() else []
    if hidden:
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        if not nvidia:
            return ""
        return f"{nvidia[0]} is a GPU, and this torch is built for CPUs: training on the CPU"
    gpus = nvidia if torch.version.hip is None else amd
    if not gpus:
        return ""
    raise ConfigError(
        f"--device auto: there is a GPU ({gpus[0]}), and torch cannot use it: {_explain_start()}; "
        "mend that, or train on the CPU with --device cpu"
    )


def _explain_start() -> str:
    """Return the first line of what torch says when it is to use a GPU."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return "it finds no device"


def _choose(wanted: str, n_gpus: int, stack: contextlib.ExitStack) -> tuple[int, ...]:
    """Lock the GPUs, and return their numbers; none for the CPU."""
    if wanted == "cpu":
        return ()
    count = count_gpus()
    if wanted == "auto":
        free = (index for index in range(count) if _lock(index, stack))
        found = tuple(itertools.islice(free, n_gpus))
        if n_gpus > 1 and not count:
            raise ConfigError(
                f"--gpus-per-trial {n_gpus}: this machine has no CUDA device; leave it out to "
                "train on the CPU"
            )
        if n_gpus > 1 and len(found) < n_gpus:
            raise ConfigError(
                f"--gpus-per-trial {n_gpus}: {len(found)} of this machine's {count} CUDA devices "
                "are free; stop other workers, or ask for fewer"
            )
        if count and not found:
            raise ConfigError(
                f"--device auto: other workers of this host hold "
                f"{'its CUDA device' if count == 1 else f'all of its {count} CUDA devices'}; stop "
                "one, or use --device cpu"
            )
        return found
    gpus = _parse(wanted, count)
    for gpu in gpus:
        if not _lock(gpu, stack):
            it = "it" if len(gpus) == 1 else f"cuda:{gpu}"
            raise ConfigError(
                f"--device {wanted}: another worker of this host holds {it}; stop that one, or "
                "use auto"
            )
    return tuple(gpus)


def _parse(wanted: str, count: int) -> list[int]:
    """Return the numbers of the GPUs in ``cuda:N`` or ``cuda:0,cuda:1``.

    Raises:
        ConfigError: one is no device, does not exist, or is named twice.
    """
    gpus = list[int]()
    for number in split_devices(wanted):
        if number >= count:
            raise ConfigError(
                f"--device {wanted}: this machine has {count} CUDA devices; use "
                f"{'cuda:0' if count else 'cpu'} or auto"
            )
        if number in gpus:
            raise ConfigError(f"--device {wanted}: names cuda:{number} twice; name it once")
        gpus.append(number)
    return gpus


def _lock(index: int, stack: contextlib.ExitStack) -> bool:
    """Lock a CUDA device for the rest of ``stack``. Return False if another worker holds it."""
    name = _identity(index).replace("/", "-")  # the id of a slice may be a path
    lock = FileLock(LOCKS / f"coarsefine-{name}.lock", everyones=True)
    stack.callback(lock.close)
    return lock.try_exclusive()


def _identity(index: int) -> str:
    """Return the device's own id, because CUDA_VISIBLE_DEVICES renumbers the indices.

    Of a slice, torch may know the id of the whole GPU alone.
    """
    seen = [one.strip() for one in os.environ.get(VISIBLE[0], "").split(",")]
    if index < len(seen) and seen[index].startswith(SLICE):
        return seen[index]
    return str(getattr(torch.cuda.get_device_properties(index), "uuid", f"cuda{index}"))


def cpu_model() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def own_cores(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> Cores:
    """Return the cores that this process may use, at least one.

    They are limited by the CPU affinity, which a cpuset sets, and by the quotas of the cgroups that
    the process is in. The pool is equal for processes with the same affinity under the same quota.

    Args:
        root: Where the cgroups are mounted.
        own: The file with the cgroups of this process.
    """
    affinity = os.sched_getaffinity(0)
    count, pool = len(affinity), f"{sum(1 << core for core in affinity):x}"
    limits = [
        (cores, folder)
        for folder in _cpu_groups(root, own)
        if (cores := _read_quota(folder)) is not None
    ]
    if limits:
        cores, folder = min(limits, key=lambda limit: limit[0])
        # The number of its inode is the same in every container; its path is not.
        count, pool = min(count, cores), f"{pool} of {folder.stat().st_ino}"
    return Cores(max(1, count), pool)


def _cpu_groups(root: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of the cgroups that may limit this process, the innermost first."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if names and "cpu" not in names.split(","):
            continue
        # Version 2 has one tree without a name; of version 1 each controller has its own.
        base = next((at for name in (names, "cpu") if name and (at := root / name).is_dir()), root)
        # In a container the path may be that of the host, of which only the root is there.
        inner = base.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(base))


def _read_quota(folder: Path) -> int | None:
    """Return the number of cores that a cgroup's quota amounts to; None without a quota."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        if (folder / "cpu.max").exists():
            words = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            files = (folder / name for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
            words = [file.read_text(encoding="ascii").strip() for file in files]
        quota, period = [*words, "100000"][:2]
        if quota not in ("max", "-1"):
            return math.ceil(int(quota) / int(period))
    return None


def thread_share(
    workers: Sequence[WorkerInfo], machine: str, cores: Cores, together: int = 1
) -> int:
    """Return a worker's share of its cores.

    Cores are first divided among processes. What is left over becomes threads. Jobs of a scheduler
    that have cores of their own do not share them.

    Args:
        workers: all known workers, with or without this one.
        machine: this worker's machine id.
        cores: the cores that this process may use.
        together: how many workers were started at once on these cores. Not all of them may be
            known yet.
    """
    beside = [
        w
        for w in workers
        if w.machine == machine
        and w.device == "cpu"
        and w.state != "lost"
        and w.cores in ("", cores.pool)  # an older worker does not say which
    ]
    return max(1, cores.count // max(1, together, len(beside)))
