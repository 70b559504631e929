"""Messages of a launch that a signal ends: what is done, what is missing, and how to go on."""

from __future__ import annotations

from collections.abc import Callable

from common.errors import QueueError

NOTHING_BEGAN = "interrupted; nothing was queued"
TRIALS_GO_ON = (
    "interrupted; the trials go on. `master status` shows them, the same launch command attaches "
    "again, `master kill --stage NAME` ends them"
)
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
            return TRIALS_GO_ON
        if self._to_train is not None:
            return f"{ALL_ENDED}. The same launch command goes on with stage {self._to_train!r}"
        if self._to_rank:
            return (
                f"{ALL_ENDED}. `master rank` ranks them; the same launch command prints the "
                "outcome, and draws the report"
            )
        if self._to_draw:
            options = " ".join(f"--stage {stage}" for stage in self._to_draw)
            return (
                f"{ALL_ENDED} and is ranked. `master report {options}` draws the report, which is "
                "missing"
            )
        return f"{ALL_ENDED} and is ranked; nothing is missing"

    def _goes_on(self) -> bool:
        try:
            return self._unfinished() > 0
        except QueueError:
            return True  # nobody can tell while Redis is away
