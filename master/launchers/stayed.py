"""Local workers that stay after their launch has ended.

The next command finds them with everything imported and the data loaded. A launch writes down which
workers stay, with a key of all that determines them: their command, environment and code. The next
launch takes them over if its own workers would have the same key, and ends them otherwise.

They leave by themselves when for a minute they have had no trial and heard from no master
(``worker/run/loop.py``), when the folder of their search goes, or when a file of the user's that
they have imported changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from common import safe_read
from master.launchers.processes import Elsewhere, beginning

if TYPE_CHECKING:
    from common.search.trial import WorkerInfo

NAME = "stayed.json"  # in the logs of a search
FOLDER = "logs"
MAX_FILE_BYTES = 1 << 16
OUR_PACKAGES = ("common", "worker")
CODE = (".py", ".lua")
# Variables that differ between terminals, shell levels or tests, and that no worker reads.
UNREAD = (
    "PWD",
    "OLDPWD",
    "SHLVL",
    "_",
    "COLUMNS",
    "LINES",
    "TERM",
    "WINDOWID",
    "TMUX",
    "TMUX_PANE",
    "PYTEST_CURRENT_TEST",
)
UNREAD_PREFIXES = ("SSH_", "XDG_", "VSCODE_")


def key_of(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return the key of workers that are alike.

    Such workers have the same command, folder, environment, Python version and code.
    """
    read = {
        k: v for k, v in environ.items() if k not in UNREAD and not k.startswith(UNREAD_PREFIXES)
    }
    parts = [list(command), str(Path.cwd()), sorted(read.items()), sys.version, _code()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _code() -> list[tuple[str, int, int]]:
    """Return path, size and modification time of each of the program's own files."""
    found = []
    for package in OUR_PACKAGES:
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for folder, _, names in os.walk(place):
                paths = (Path(folder, name) for name in names if name.endswith(CODE))
                found += [
                    (str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths
                ]
    return sorted(found)


def write_down(logs: Path, key: str, pids: Sequence[int]) -> None:
    """Write down which workers stay, in place of what was written before.

    Raises:
        OSError: The file cannot be written.
    """
    known = {
        "host": socket.gethostname(),
        "key": key,
        "workers": [[pid, beginning(pid)] for pid in pids],
    }
    # Not synced to disk: after a power cut no worker has stayed.
    temporary = logs / f".tmp-{os.getpid()}-{NAME}"
    temporary.write_text(json.dumps(known))
    temporary.replace(logs / NAME)


@dataclass(frozen=True)
class Stayed:
    """The workers that stayed and are still alive."""

    file: Path
    key: str = ""
    processes: Sequence[Elsewhere] = ()

    @classmethod
    def read(cls, logs: Path) -> Stayed:
        """Read which workers stayed, and keep those that live.

        There are none if the file is missing, damaged, or of another host.
        """
        file = logs / NAME
        try:
            known = json.loads(safe_read.read_bytes(file, MAX_FILE_BYTES))
            if known["host"] != socket.gethostname():
                return cls(file)
            found = [Elsewhere(int(pid), str(began)) for pid, began in known["workers"]]
            return cls(
                file, str(known["key"]), [process for process in found if process.poll() is None]
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return cls(file)

    def fit(self, key: str, known: Sequence[WorkerInfo]) -> list[Elsewhere]:
        """Return the workers that equal those of a launch and are known to Redis.

        Args:
            key: The key of the workers that the launch would start.
            known: The workers of its Redis.
        """
        told = {info.pid: info for info in here(known)}
        return [
            p
            for p in self.processes
            if key == self.key and p.pid in told and told[p.pid].state not in ("lost", "quitting")
        ]

    def idle(self, known: Sequence[WorkerInfo], holders: Collection[str]) -> list[Elsewhere]:
        """Return the workers that hold no trial.

        Args:
            known: The workers of Redis.
            holders: The workers that hold trials by Redis. What a worker reports of itself may be a
                second old.
        """
        busy = {info.pid for info in here(known) if info.worker in holders}
        return [process for process in self.processes if process.pid not in busy]

    def dismiss(
        self,
        known: Sequence[WorkerInfo],
        holders: Collection[str],
        but: Sequence[Elsewhere] = (),
        forget: bool = True,
    ) -> None:
        """End the workers that hold no trial, except some.

        Args:
            known: The workers of Redis.
            holders: Those of them that hold trials.
            but: The workers that go on.
            forget: Whether to remove what was written down, so that no second launch takes them
                over as well.
        """
        if forget:
            self.file.unlink(missing_ok=True)
        for process in self.idle(known, holders):
            if process not in but:
                process.terminate()


def here(known: Sequence[WorkerInfo]) -> list[WorkerInfo]:
    """Return the workers of this host."""
    return [info for info in known if info.host == socket.gethostname()]


def any_stayed(root: Path) -> bool:
    """Return whether local workers of any search in the folder have stayed."""
    return any(Stayed.read(file.parent).processes for file in root.glob(f"*/{FOLDER}/{NAME}"))
