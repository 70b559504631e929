"""What a supervisor needs of the workers that a launch looks after, wherever they run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, Self


class Workers(Protocol):
    """The workers of a launch: local ones, or jobs of a cluster."""

    @property
    def noun(self) -> str:
        """How messages call them, in the plural."""

    @property
    def pids(self) -> list[int]:
        """Process ids of those that run on this machine, as of the last ``poll``."""

    @property
    def gone(self) -> bool:
        """Whether all have left, by themselves or because they were told to."""

    @property
    def given_up(self) -> bool:
        """Whether none is left and none will be started, because they died too often."""

    @property
    def absence(self) -> str:
        """Say why no worker takes trials, and what to do; empty if that is not known."""

    def start(self) -> Self:
        """Start those that are missing."""

    def poll(self, holders: Collection[int] = (), blameless: bool = False) -> None:
        """Look how they are, and start others where that is due. Call this once a second."""

    def how_ended(self, pid: int, job: str = "") -> str:
        """Describe how a worker that died ended; empty if that is not known."""

    def leave(self) -> None:
        """Stop looking after them, and let them go on."""
