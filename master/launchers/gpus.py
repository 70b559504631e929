"""The GPUs of this machine, and how many local workers share them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common.errors import ConfigError
from common.search.protocol import PROTOCOL
from common.search.search_file import Search
from common.search.stage import Resources
from common.search.trial import WorkerInfo

CPU_WORKERS = 2  # with `--workers auto` and no GPU
GPU_FOLDER = Path("/proc/driver/nvidia/gpus")
AMD_FOLDER = Path("/sys/class/kfd/kfd/topology/nodes")  # a folder for each processor and GPU
GPU_LIST_S = 20.0  # nvidia-smi wakes sleeping devices


def visible_gpus(installed: int, visible: str | None) -> int:
    """Return how many GPUs a process sees.

    Args:
        installed: The number of GPUs in the machine.
        visible: The value of ``CUDA_VISIBLE_DEVICES``, None if not set. CUDA reads it up to the
            first entry that is not a device. Of slices (``MIG-...``) a process sees only one.
    """
    if visible is None:
        return installed
    count = 0
    for entry in visible.split(","):
        named = entry.strip().startswith(("GPU-", "MIG-"))
        if not installed or not (named or (entry.strip().isdecimal() and int(entry) < installed)):
            break
        count += 1
        if entry.strip().startswith("MIG-"):
            break
    return count


def auto_count(resources: Resources) -> int:
    """Return how many workers ``--workers auto`` starts.

    It is one for the GPUs of each trial. Without enough of them it is two on the CPU, or one where
    the cores are few, or none if the trials need GPUs.
    """
    workers = count_usable_gpus() // resources.gpus
    if workers or not resources.fits(0):
        return workers
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(CPU_WORKERS, cores // resources.gpus))


def local_device(resources: Resources) -> tuple[str, int]:
    """Return ``--device`` and ``--gpus-per-trial`` of local workers."""
    if resources.gpus > 1 and resources.fits(0) and count_usable_gpus() < resources.gpus:
        return "cpu", 1
    return "auto", resources.gpus


def select_able(found: Sequence[WorkerInfo], name: str, resources: Resources) -> list[WorkerInfo]:
    """Return the workers that take trials of a search.

    Args:
        found: the workers of its Redis.
        name: the name of the search.
        resources: what its trials need.
    """
    return [
        info
        for info in found
        if info.state != "lost"
        and info.search in ("", name)
        and info.protocol == PROTOCOL
        and resources.fits(info.n_gpus)
    ]


def check_gpus(
    asked: int | None, search: Search, find_workers: Callable[[], Sequence[WorkerInfo]]
) -> None:
    """Check that this machine has the GPUs which local workers need.

    Args:
        asked: the number of local workers; None for auto, which starts none where others are able.
        search: the search.
        find_workers: returns the workers of its Redis.

    Raises:
        ConfigError: it has too few.
    """
    resources = search.resources
    plain = resources.gpus == 1 and resources.fits(0)
    if asked == 0 or (plain and asked in (None, 1)):
        return
    gpus = count_usable_gpus()
    if plain:
        if asked is not None and 0 < gpus < asked:
            raise ConfigError(
                f"--workers {asked}: each local worker takes a GPU, and this machine has {gpus}; "
                f"use --workers {gpus}, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on "
                "the CPU"
            )
        return
    n_workers = gpus // resources.gpus
    place = f"[resources] gpus = {resources.gpus}"
    if n_workers and asked is not None and asked > n_workers:
        raise ConfigError(
            f"--workers {asked}: with {place} they need {asked * resources.gpus} GPUs, and this "
            f"machine has {gpus}; use --workers {n_workers}"
        )
    if n_workers or resources.fits(0):
        return
    if asked is None and select_able(find_workers(), search.name, resources):
        return
    raise ConfigError(
        f"{place}: this machine has {gpus or 'no'} {'GPU' if gpus == 1 else 'GPUs'}, and no "
        f"connected worker has enough; start `{resources.start_command}` where there are, and "
        "launch with --workers 0, or let the CPU stand in with on_cpu = true"
    )


def count_usable_gpus() -> int:
    """Return how many GPUs of this machine a process sees."""
    seen = _count_gpus()
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        seen = visible_gpus(seen, os.environ.get(name))
    return seen


def _count_gpus() -> int:
    """Count the GPUs that torch can use, without importing it, which would take seconds."""
    built = _find_torch()
    if "+rocm" in built:
        return _count_amd()
    if "+cpu" in built:
        return 0
    program = shutil.which("nvidia-smi")
    if program:
        try:
            answer = subprocess.run(
                [program, "-L"], capture_output=True, text=True, timeout=GPU_LIST_S, check=False
            )
            return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
        except (OSError, subprocess.TimeoutExpired):
            return 0  # the driver does not answer, so CUDA would not either
    return len(list(GPU_FOLDER.iterdir())) if GPU_FOLDER.is_dir() else 0


def _find_torch() -> str:
    """Return torch's version, whose end says what it is built for: ``2.13.0+cpu``."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _count_amd() -> int:
    """Count the nodes of AMD's driver that compute as a GPU does: processors have no SIMD units."""
    count = 0
    for node in AMD_FOLDER.iterdir() if AMD_FOLDER.is_dir() else ():
        with contextlib.suppress(OSError):
            units = re.search(
                r"^simd_count (\d+)$", (node / "properties").read_text(), re.MULTILINE
            )
            count += units is not None and int(units[1]) > 0
    return count
