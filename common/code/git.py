"""What git knows about the files of a folder."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from common.code.locate import find_checkout

PATIENCE_S = 60.0  # for one command of git, on a network file system
# A hook of git sets these, and they would make git look at another checkout.
ELSEWHERE = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"})


@dataclass(frozen=True)
class Checkout:
    """The part of a git checkout that lies in one folder."""

    files: tuple[str, ...]  # tracked files, and untracked ones that are not ignored
    commit: str | None  # None before the first commit
    changed: frozenset[str]  # files that differ from the commit, and untracked ones


def look(folder: Path) -> Checkout | None:
    """Return what git knows of a folder.

    Names are relative to ``folder``. Return None if it is in no checkout, or git cannot be run.
    """
    if find_checkout(folder) is None:
        return None
    tracked = _run(folder, "ls-files", "-z", "--recurse-submodules")
    untracked = _run(folder, "ls-files", "-z", "--others", "--exclude-standard")
    if tracked is None or untracked is None:
        return None
    commit = _run(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    changed = (
        _run(folder, "diff", "--name-only", "-z", "--relative", "HEAD", "--", ".")
        if commit
        else tracked
    )
    return Checkout(
        tuple(dict.fromkeys(_names(tracked) + _names(untracked))),
        commit.decode().strip() if commit else None,
        frozenset(_names(changed or b"") + _names(untracked)),
    )


def _names(output: bytes) -> list[str]:
    return [os.fsdecode(name) for name in output.split(b"\0") if name]


def _run(folder: Path, *words: str) -> bytes | None:
    """Return what git prints; None if it fails. It writes nothing, not even its index."""
    environ = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *words],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
