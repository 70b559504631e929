"""What a state of a job in Slurm means, in words, and for the next job."""

from __future__ import annotations

import signal

from common.ending import BY_SIGNAL
from master.launchers.cluster import Ending, Phase

QUEUED = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"}
    | {"SPECIAL_EXIT"}
)
RUNNING = frozenset(
    {"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
)
# A worker leaves when it gets one of these: from Slurm before the time limit, or by hand. If it is
# still starting, they end it.
TOLD = frozenset({signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP})
GO_ON = "its trials go on elsewhere from their saved states"
ENDED = {
    "COMPLETED": (Ending.LEFT, ""),
    "TIMEOUT": (
        Ending.LOST,
        f"reached its time limit; {GO_ON}. --slurm-option time=HH:MM:SS gives the next ones more",
    ),
    "DEADLINE": (Ending.LOST, f"reached its deadline; {GO_ON}"),
    "PREEMPTED": (Ending.LOST, f"was preempted; {GO_ON}"),
    "NODE_FAIL": (Ending.LOST, f"lost its node; {GO_ON}"),
    "BOOT_FAIL": (Ending.LOST, "did not begin, since its node did not boot"),
    "CANCELLED": (
        Ending.CANCELLED,
        "was cancelled, and no other takes its place; the same launch command, given again, "
        "submits new ones",
    ),
    "OUT_OF_MEMORY": (
        Ending.FAILED,
        "was killed because it used more memory than it had asked for; --slurm-option mem=16G, or "
        "what your models need, gives the next ones more",
    ),
}
# Reasons for waiting that do not pass by themselves, by how they begin.
STUCK = {
    "PartitionTimeLimit": "its time limit is above that of the partition; cancel it, and launch "
    "again with a smaller --slurm-option time=HH:MM:SS",
    "PartitionNodeLimit": "it asks for more nodes than the partition has; cancel it, and launch "
    "again with other options",
    "BadConstraints": "no node has what it asks for; cancel it, and launch again with other "
    "options",
    "JobHeld": "it is held; `scontrol release` with its number lets it go",
    "launch failed requeued held": "its node could not begin it; `scontrol release` with its "
    "number tries again",
    "QOS": "a limit of your QOS; it begins when others of your jobs have ended",
    "Assoc": "a limit of your account; it begins when others of your jobs have ended",
    "ReqNodeNotAvail": "its nodes are down, drained or reserved",
    "BeginTime": "Slurm begins it again in a moment",
}
ORDINARY = ("", "None", "Priority", "Resources")


def describe(
    state: str, reason: str = "", node: str = "", exit_status: int = 0, killed_by: int = 0
) -> tuple[Phase, str, Ending]:
    """Return the phase of a job, words about it, and what its end says about the next job.

    Args:
        state: The state, as ``squeue -o %T`` prints it.
        reason: The reason, as ``squeue -o %r`` prints it.
        node: The node on which it runs or ran.
        exit_status: The exit status of a job that FAILED.
        killed_by: The signal that killed it, 0 for none.
    """
    if state in QUEUED:
        if reason in ORDINARY:
            return Phase.QUEUED, "", Ending.LEFT
        told = next((text for begin, text in STUCK.items() if reason.startswith(begin)), "")
        return Phase.QUEUED, f"waits ({reason}){f': {told}' if told else ''}", Ending.LEFT
    if state in RUNNING:
        return Phase.RUNNING, "is suspended" if state == "SUSPENDED" else "", Ending.LEFT
    if state == "FAILED":
        ending, words = _describe_failure(reason, exit_status, killed_by)
    else:
        ending, words = ENDED.get(state, (Ending.FAILED, f"ended as {state}"))
    if words and node and ending in (Ending.LOST, Ending.FAILED):
        words = f"on {node} {words}"
    return Phase.ENDED, words, ending


def _describe_failure(reason: str, exit_status: int, killed_by: int) -> tuple[Ending, str]:
    if exit_status - BY_SIGNAL in TOLD or killed_by in TOLD:
        return Ending.LOST, f"left before its end, as it was told to; {GO_ON}"
    if killed_by == signal.SIGKILL or exit_status == BY_SIGNAL + signal.SIGKILL:
        return Ending.FAILED, (
            "was killed (SIGKILL), perhaps because memory ran out; --slurm-option mem=16G, or what "
            "your models need, gives the next ones more"
        )
    if killed_by:
        return Ending.FAILED, f"was ended by {_name(killed_by)}"
    because = "" if reason in (*ORDINARY, "NonZeroExitCode") else f" ({reason})"
    return Ending.FAILED, f"ended with exit status {exit_status}{because}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
