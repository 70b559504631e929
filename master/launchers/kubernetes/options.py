"""The options of a launch whose workers are Jobs of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import ConfigError
from master.launchers.job_plan import parse_words

OPTION = re.compile(r"[a-z]+", re.ASCII)
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTP]i?|Ki)?", re.ASCII)
# As sbatch reads it: minutes, minutes:seconds, hours:minutes:seconds, with or without days-.
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
GPUS = re.compile(r"(?:([a-z0-9.-]+/[A-Za-z0-9._-]+):)?([1-9][0-9]{0,3})", re.ASCII)
GPU_RESOURCE = "nvidia.com/gpu"
DEFAULTS = {"cpu": "1", "memory": "4Gi"}
# The keys, and what their values look like.
EXAMPLES = {
    "image": "image=registry.example.com/coarsefine:1",
    "claim": "claim=checkpoints, or claim=shared:/shared where it is mounted at /shared",
    "namespace": "namespace=research",
    "cpu": "cpu=4",
    "memory": "memory=16Gi",
    "gpus": "gpus=1, or gpus=amd.com/gpu:1",
    "time": "time=4:00:00",
    "pod": "pod=pod.yaml",
}
PATTERNS = {"namespace": NAMESPACE, "cpu": QUANTITY, "memory": QUANTITY, "gpus": GPUS, "time": TIME}


def parse_options(words: Sequence[str]) -> dict[str, str]:
    """Read options of Jobs: ``key=value``.

    Returns:
        The values by key. A later one replaces an earlier one.

    Raises:
        ConfigError: one is no option, or one is missing.
    """
    keys = ", ".join(EXAMPLES)
    found = parse_words(
        words, OPTION, "--job-option", f"Kubernetes jobs; use {keys}, such as memory=16Gi"
    )
    for key, value in found.items():
        if key not in EXAMPLES:
            raise ConfigError(
                f"--job-option {key}={value}: not an option of Kubernetes jobs; use one of {keys}. "
                "Whatever else a pod has is in a file, named by pod=FILE"
            )
        pattern = PATTERNS.get(key)
        if not value or (pattern and not pattern.fullmatch(value)):
            raise _wrong(key, value)
    if "time" in found and not read_seconds(found):
        raise _wrong("time", found["time"])
    if "claim" in found:
        split_claim(found["claim"], Path("/"))
    if "image" not in found:
        raise ConfigError(
            "--launcher kubernetes: no image; name the one of the workers with --job-option "
            f"{EXAMPLES['image']}"
        )
    if "claim" not in found and "pod" not in found:
        raise ConfigError(
            "--launcher kubernetes: the workers need the checkpoint folder; name its "
            f"PersistentVolumeClaim with --job-option {EXAMPLES['claim']}"
        )
    return found


def _wrong(key: str, value: str) -> ConfigError:
    return ConfigError(f"--job-option {key}={value}: not a value of {key}; use {EXAMPLES[key]}")


def split_claim(value: str, root: Path) -> tuple[str, Path]:
    """Return the name of the claim, and where it is mounted: at the checkpoint root by default.

    Raises:
        ConfigError: the name or the path is none.
    """
    name, colon, path = value.partition(":")
    if not NAME.fullmatch(name) or (colon and not Path(path).is_absolute()):
        raise _wrong("claim", value)
    return name, Path(path) if colon else root


def read_gpus(options: Mapping[str, str]) -> dict[str, str]:
    """Return the GPUs of a job by the name of their resource."""
    found = GPUS.fullmatch(options.get("gpus", ""))
    return {found[1] or GPU_RESOURCE: found[2]} if found else {}


def count_gpus(options: Mapping[str, str]) -> int:
    """Return how many GPUs the options ask for in one job."""
    return sum(map(int, read_gpus(options).values()))


def request_gpus(n: int) -> str:
    """Return the option with which a job has ``n`` GPUs."""
    return f"--job-option gpus={n}"


def read_seconds(options: Mapping[str, str]) -> int:
    """Return the time limit of a pod in seconds; 0 for none."""
    found = TIME.fullmatch(options.get("time", ""))
    if not found:
        return 0
    days, *rest = (int(part) if part else 0 for part in found.groups())
    first, second, third = rest
    if found[4] is not None or found[1] is not None:  # hours:minutes:seconds, or days-hours
        return ((days * 24 + first) * 60 + second) * 60 + third
    return first * 60 + second
