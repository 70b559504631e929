"""Messages of a launch that a signal ends: what is done, what is missing, and how to go on."""

from __future__ import annotations

from collections.abc import Callable

from common.errors import QueueError
from common.shell_command import shell_command

NOTHING_BEGAN = "interrupted; nothing was queued"
ALL_ENDED = "interrupted; every trial that was queued has ended"


class HowFar:
    """Progress of a launch.

    Args:
        unfinished: asks Redis how many trials wait or run.
    """

    def __init__(self, unfinished: Callable[[], int]) -> None:
        self._unfinished = unfinished
        self._to_train: str | None = None
        self._to_rank: list[str] = []
        self._to_draw: list[str] = []
        self._is_known = False
        self._began = False

    def training(self, stage: str) -> None:
        """Note that the trials of this stage are being queued, or train."""
        self._began, self._is_known, self._to_train = True, False, stage

    def note_ended(self, stage: str, following: str | None) -> None:
        """Note that all trials of ``stage`` have ended; ``following`` is the stage to queue."""
        self._is_known, self._to_train = following is None, following
        self._to_rank.append(stage)

    def note_ranked(self, stage: str) -> None:
        """Note that the ranking of ``stage`` is written and printed."""
        self._to_rank.remove(stage)
        self._to_draw.append(stage)

    def note_drawn(self) -> None:
        """Note that the reports of all ranked stages are being drawn."""
        self._to_draw.clear()

    def describe(self) -> str:
        """Return one or two sentences that are true at this moment."""
        if not self._began:
            return NOTHING_BEGAN
        if not self._is_known and self._goes_on():
            return describe_trials_that_go_on()
        if self._to_train is not None:
            return f"{ALL_ENDED}. The same launch command goes on with stage {self._to_train!r}"
        if self._to_rank:
            return (
                f"{ALL_ENDED}. `{shell_command('master rank')}` ranks them; the same launch "
                "command prints the outcome, and draws the report"
            )
        if self._to_draw:
            options = [word for stage in self._to_draw for word in ("--stage", stage)]
            return (
                f"{ALL_ENDED} and is ranked. `{shell_command('master report', *options)}` draws "
                "the report, which is missing"
            )
        return f"{ALL_ENDED} and is ranked; nothing is missing"

    def _goes_on(self) -> bool:
        try:
            return self._unfinished() > 0
        except QueueError:
            return True  # nobody can tell while Redis is away


def describe_trials_that_go_on() -> str:
    """Return what to do about trials that were queued and have not ended."""
    return (
        f"interrupted; the trials go on. `{shell_command('master status')}` shows them, the same "
        f"launch command attaches again, `{shell_command('master kill --stage NAME')}` ends them"
    )
