"""What every launcher makes its jobs of: the command of a worker, and the shell around it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ConfigError

IDLE_EXIT_S = 60.0  # the next stage begins sooner than that
# Slurm (KillWait) and Kubernetes wait 30 seconds, unless they are told otherwise.
STOP_GRACE_S = 25.0
JOB_VARIABLE = "COARSEFINE_JOB"  # in which a worker reads the id of its job
SECRETS = "environment"  # a file with the address of Redis, for its owner alone


def read_umask() -> int:
    """Return the umask of this process."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@dataclass(frozen=True)
class JobPlan:
    """The jobs of a search, whatever runs them."""

    search: str
    root: Path  # the checkpoint root
    data: Path  # the folder of built-in data sets
    options: Mapping[str, str] = field(default_factory=dict)  # what the launcher understands
    setup: str = ""  # lines of shell before the worker
    # With these a worker finds a Redis that the user has named. Else it finds it by the root.
    variables: Mapping[str, str] = field(default_factory=dict)
    gpus_per_trial: int = 1
    folder: Path = field(default_factory=Path.cwd)  # where the worker runs
    umask: int = field(default_factory=read_umask)  # that of the launch

    def words(self, gpus: int) -> list[str]:
        """Return the arguments of the program ``worker`` in a job with so many GPUs."""
        words = {
            "--search": self.search,
            "--checkpoints": str(self.root.absolute()),
            "--data-dir": str(self.data.absolute()),
            "--device": choose_device(gpus),
            "--idle-exit": f"{IDLE_EXIT_S:g}",
            "--stop-grace": f"{STOP_GRACE_S:g}",
        }
        if gpus and self.gpus_per_trial > 1:
            words["--gpus-per-trial"] = str(self.gpus_per_trial)
        return ["start", *(word for pair in words.items() for word in pair)]


def find_program() -> tuple[Path, list[str]]:
    """Return the folder of this Python's programs, and the command that is ``worker`` there."""
    programs = Path(sys.executable).parent
    is_there = (programs / "worker").exists()
    return programs, ["worker"] if is_there else [sys.executable, "-P", "-m", "worker"]


def choose_device(gpus: int) -> str:
    """Return the device of a worker in a job with so many GPUs, as for ``worker start``.

    A job that has asked for a GPU does not train on the CPU when it gets none.
    """
    return "auto" if not gpus else "cuda:0" if gpus == 1 else "all"


def parse_words(
    words: Sequence[str], pattern: re.Pattern[str], option: str, remedy: str
) -> dict[str, str]:
    """Read options of jobs: ``key=value``, ``--key=value``, or ``--key`` alone.

    Args:
        words: The options.
        pattern: What a key looks like.
        option: The option of the command line that has them, for the message.
        remedy: Whose options they are and how to write them, for the message.

    Returns:
        The values by key, empty where there is none. A later one replaces an earlier one.

    Raises:
        ConfigError: one is no option.
    """
    found: dict[str, str] = {}
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        if not pattern.fullmatch(key) or not value.isprintable():
            raise ConfigError(f"{option} {word}: not an option of {remedy}")
        found[key] = value
    return found


def render_shell(
    umask: int, place: Sequence[str], setup: str, secrets: Path | None, command: Sequence[str]
) -> list[str]:
    """Return lines of shell that become the worker.

    Args:
        umask: The umask of the worker.
        place: Lines that choose the folder and the programs.
        setup: Lines of the user's; may be empty.
        secrets: A file of shell with the address of Redis; None where the worker finds it.
        command: The worker.
    """
    return [
        f"umask {umask:04o}",
        *place,
        *(setup.rstrip("\n").split("\n") if setup.strip() else ()),
        *([f". {shlex.quote(str(secrets))}"] if secrets else ()),
        "# In place of this shell, so that the signals of the scheduler reach it.",
        f"exec {shlex.join(command)}",
    ]


def render_variables(variables: Mapping[str, str]) -> str:
    """Return a file of shell that sets these variables."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
