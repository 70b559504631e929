"""Decide whether an idle local worker may stay for the next command.

It may as long as the command would start the same worker: the same code and the same folder.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from worker.tasks.importing import find_users_file


class Staying:
    """The reasons why one worker should not stay."""

    def __init__(self, folder: Path | None) -> None:
        """Initialise.

        Args:
            folder: folder of the only search that the worker works for, or None.
        """
        self._folder = folder
        self._held: int | None = None  # descriptor of the folder, from when it is first there
        self._hold()
        self._since_s = time.time()
        self._looked_at: set[str] = set()  # names of modules
        self._own: list[Path] = []

    def over(self) -> str | None:
        """Return why the worker should leave now, or None if it may stay."""
        if (gone := self.is_gone()) is not None:
            return gone
        changed = next(
            (path for path in self.own_sources() if _read_mtime(path) > self._since_s), None
        )
        return f"{changed} has changed since" if changed is not None else None

    def is_gone(self) -> str | None:
        """Return that the folder is gone; None while it is there, or while that is unknown."""
        self._hold()
        if self._folder is None or self._held is None:
            return None
        try:
            if os.path.samestat(self._folder.stat(), os.fstat(self._held)):
                return None
        except FileNotFoundError:
            pass
        except OSError:  # such as a network that is away
            return None
        return f"{self._folder} is gone"

    def _hold(self) -> None:
        """Open the folder if it is there. While it is open, no other folder gets its number."""
        if self._folder is not None and self._held is None:
            with suppress(OSError):
                self._held = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def own_sources(self) -> list[Path]:
        """Return the user's own source files that are imported here.

        Examples are libraries of theirs that a task imports. What was shipped with the task is not
        included, since its digest is compared instead.
        """
        for name in sys.modules.keys() - self._looked_at:
            file = find_users_file(sys.modules.get(name))
            if file is not None:
                self._own.append(file)
        self._looked_at = set(sys.modules)
        return self._own


def _read_mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
