"""Files planted in a stage's folder as a writer leaves them, to test the janitor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from master.run.janitor import ORPHAN_S

if TYPE_CHECKING:
    from tests.chaos.arena import Arena


@dataclass
class Planted:
    """Temporary files of a live writer and of a dead writer.

    The live writer's file has to stay. The dead writer's file is planted again after each removal.
    """

    planted: int = 0

    @property
    def removed(self) -> int:
        """How often a janitor has removed the latter."""
        return max(self.planted - 1, 0)

    def look(self, arena: Arena) -> None:
        young, old = (arena.stages[0] / "trials" / f".tmp-0-{name}" for name in ("young", "old"))
        if self.planted == 0 or not young.exists():
            arena.require(self.planted == 0, "the janitor has removed a file of a writer at work")
            young.touch()
        if not old.exists():
            self.planted += 1
            old.touch()
            os.utime(old, (old.stat().st_mtime - 2 * ORPHAN_S,) * 2)
