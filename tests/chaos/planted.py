"""Files laid into a stage's folder as a writer leaves them, to see what the janitor makes of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from master.janitor import ORPHAN_S

if TYPE_CHECKING:
    from tests.chaos.arena import Arena


@dataclass
class Planted:
    """A temporary file of a writer at work, which has to stay, and one of a writer long gone, again each time that it was removed."""

    planted: int = 0

    @property
    def removed(self) -> int:
        """How often a janitor has removed the latter."""
        return max(self.planted - 1, 0)

    def look(self, arena: Arena) -> None:
        young, old = (arena.stage / "trials" / f".tmp-0-{name}" for name in ("young", "old"))
        if self.planted == 0 or not young.exists():
            arena.require(self.planted == 0, "the janitor has removed a file of a writer at work")
            young.touch()
        if not old.exists():
            self.planted += 1
            old.touch()
            os.utime(old, (old.stat().st_mtime - 2 * ORPHAN_S,) * 2)
