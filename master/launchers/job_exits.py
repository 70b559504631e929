"""What the exit of a job's worker says, in words, and for the next job."""

from __future__ import annotations

import signal

from common.ending import BY_SIGNAL
from master.launchers.cluster import Ending
from master.launchers.endings import how_ended

# A worker leaves when it gets one of these: from the scheduler before the time limit, or by hand.
# If it is still starting, they end it.
TOLD = frozenset({signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP})
GO_ON = "its trials go on elsewhere from their saved states"
NO_OTHER = "no other takes its place; the same launch command, given again, submits new ones"
KILLED_FOR_MEMORY = "was killed because it used more memory than it had asked for"


def describe_exit(
    exit_status: int, killed_by: int, memory_option: str, reason: str = ""
) -> tuple[Ending, str]:
    """Return what an exit says about the next job, and words about it.

    Args:
        exit_status: The exit status; that of a shell is 128 more than a signal's number.
        killed_by: The signal that killed it, 0 for none.
        memory_option: The option of a launch that gives the next jobs more memory.
        reason: What the scheduler says besides; may be empty.
    """
    if exit_status - BY_SIGNAL in TOLD or killed_by in TOLD:
        return Ending.LOST, f"left before its end, as it was told to; {GO_ON}"
    if killed_by == signal.SIGKILL or exit_status == BY_SIGNAL + signal.SIGKILL:
        return Ending.FAILED, (
            f"was killed (SIGKILL), perhaps because memory ran out; {more_memory(memory_option)}"
        )
    if killed_by:
        return Ending.FAILED, how_ended(-killed_by)
    return Ending.FAILED, how_ended(exit_status) + (f" ({reason})" if reason else "")


def more_memory(memory_option: str) -> str:
    """Return the remedy for a job whose memory ran out."""
    return f"{memory_option}, or what your models need, gives the next ones more"
