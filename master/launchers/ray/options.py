"""What each actor asks Ray for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.errors import ConfigError
from master.launchers.job_plan import parse_words

ADDRESS = "RAY_ADDRESS"  # Ray's own variable, which names the cluster
OPTION = re.compile(r"[a-z_]+", re.ASCII)
REMEDY = "an actor; use num_gpus=1, num_cpus=4, memory=16G or accelerator_type=A100"
COUNTS = ("num_cpus", "num_gpus")
MEMORY = re.compile(r"(\d+)([KMGT]?)", re.ASCII)
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}  # as Ray calls them of nodes


def parse_options(words: Sequence[str]) -> dict[str, str]:
    """Read options of actors: ``num_cpus``, ``num_gpus``, ``memory`` and ``accelerator_type``.

    Raises:
        ConfigError: one is none of these, or has no such value.
    """
    found = {"num_cpus": "1", "num_gpus": "0"}
    found |= parse_words(words, OPTION, "--job-option", REMEDY)
    for key, value in found.items():
        is_right = (
            (key in COUNTS and value.isascii() and value.isdecimal())
            or (key == "memory" and MEMORY.fullmatch(value))
            or (key == "accelerator_type" and value)
        )
        if not is_right:
            raise ConfigError(f"--job-option {key}={value}: not an option of {REMEDY}")
    return found


def count_gpus(options: Mapping[str, str]) -> int:
    """Return how many GPUs an actor has."""
    return int(options["num_gpus"])


def request_gpus(n: int) -> str:
    """Return the option with which an actor has ``n`` GPUs."""
    return f"--job-option num_gpus={n}"


def convert(options: Mapping[str, str]) -> dict[str, Any]:
    """Return options as Ray takes them, with the memory in bytes."""
    found: dict[str, Any] = {**options, **{key: int(options[key]) for key in COUNTS}}
    memory = MEMORY.fullmatch(options.get("memory", ""))
    if memory:
        found["memory"] = int(memory[1]) * UNITS[memory[2]]
    return found


def find_lacking(options: Mapping[str, Any], nodes: Iterable[Mapping[str, Any]]) -> str:
    """Return what an actor asks for that no node has as a whole; empty if some node has it.

    Args:
        options: The options, as ``convert`` returns them.
        nodes: The nodes, as ``ray.nodes()`` returns them.
    """
    wanted = {own: options[key] for key, own in RESOURCES.items() if options.get(key)}
    alive = [node.get("Resources", {}) for node in nodes if node.get("Alive")]
    if not alive or any(all(own.get(k, 0) >= n for k, n in wanted.items()) for own in alive):
        return ""
    return " and ".join(f"{key}={options[key]}" for key in RESOURCES if options.get(key))
