"""Calls the commands of a scheduler."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from common.errors import ConfigError
from master.launchers.cluster import ClusterError

CALL_S = 60.0  # for an answer of the scheduler, which may be busy
OWNER_ONLY = 0o600
OWNER_ONLY_MASK = 0o077


def check_programs(programs: Collection[str], remedy: str) -> None:
    """Check that programs are on the PATH.

    Args:
        programs: Their names.
        remedy: What to do where one is missing, as a sentence goes on after a colon.

    Raises:
        ConfigError: one of them is not.
    """
    for program in programs:
        if shutil.which(program) is None:
            raise _missing(program, remedy)


def call(command: Sequence[str], what: str, remedy: str, text: str = "") -> str:
    """Run a command of a scheduler and return what it prints.

    Files that it creates are for their owner alone.

    Args:
        command: The command.
        what: What it is asked for, as in "refused the job".
        remedy: What to do where its program is missing.
        text: Its standard input.

    Raises:
        ClusterError: it refuses, or does not answer.
        ConfigError: there is no such program.
    """
    program = command[0]
    # Slurm copies the environment of sbatch into the job and keeps it in files of its own.
    environ = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    try:
        done = subprocess.run(
            command,
            env=environ,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CALL_S,
            check=False,
            umask=OWNER_ONLY_MASK,
        )
    except FileNotFoundError:
        raise _missing(program, remedy) from None
    except OSError as error:
        raise ClusterError(f"{program} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{program} has not answered for {CALL_S:g} s") from None
    if done.returncode:
        said = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise ClusterError(f"{program} refused {what}: {said or f'exit status {done.returncode}'}")
    return done.stdout


def _missing(program: str, remedy: str) -> ConfigError:
    return ConfigError(f"there is no {program} on the PATH: {remedy}")


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its owner alone may read."""
    path.unlink(missing_ok=True)
    path.touch(OWNER_ONLY)
    path.write_bytes(content)
