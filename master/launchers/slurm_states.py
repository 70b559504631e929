"""What a state of a job in Slurm means, in words, and for the next job."""

from __future__ import annotations

from master.launchers.cluster import Ending, Phase
from master.launchers.job_exits import (
    GO_ON,
    KILLED_FOR_MEMORY,
    NO_OTHER,
    describe_exit,
    more_memory,
)

QUEUED = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"}
    | {"SPECIAL_EXIT"}
)
RUNNING = frozenset(
    {"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
)
MEMORY_OPTION = "--slurm-option mem=16G"
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
        f"was cancelled, and {NO_OTHER}",
    ),
    "OUT_OF_MEMORY": (
        Ending.FAILED,
        f"{KILLED_FOR_MEMORY}; {more_memory(MEMORY_OPTION)}",
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
        because = "" if reason in (*ORDINARY, "NonZeroExitCode") else reason
        ending, words = describe_exit(exit_status, killed_by, MEMORY_OPTION, because)
    else:
        ending, words = ENDED.get(state, (Ending.FAILED, f"ended as {state}"))
    if words and node and ending in (Ending.LOST, Ending.FAILED):
        words = f"on {node} {words}"
    return Phase.ENDED, words, ending
