"""What Ray says of an actor, and what the actor has noted, in words and for the next job."""

from __future__ import annotations

from dataclasses import dataclass

from common.shell_command import shell_command
from master.launchers.cluster import Ending, Phase
from master.launchers.job_exits import GO_ON, NO_OTHER, describe_exit
from master.launchers.ray.actor import Ended

KILLED = "ray.kill"  # how Ray says that somebody ended an actor on purpose
NOT_BEGUN = "creation task"  # and that the actor raised before it was one
CANCELLED = Ending.CANCELLED, f"was cancelled, and {NO_OTHER}"


@dataclass(frozen=True)
class Seen:
    """What the process that speaks to Ray has seen of an actor."""

    state: str  # "waiting", "running" or "gone"
    node: str = ""
    again: str = ""  # when Ray started it again, if it did
    cause: str = ""  # of its death, in the words of Ray


def describe(seen: Seen, ended: Ended | None, lacking: str = "") -> tuple[Phase, str, Ending, str]:
    """Return the phase of a job, words about it, what its end says, and why it began again.

    Args:
        seen: What was seen of the actor.
        ended: How its worker ended, as far as that is noted.
        lacking: What no node of the cluster has, of all that the job asks for.
    """
    if seen.state == "running":
        moved = f"lost its process, and got another on {seen.node} at {seen.again}"
        return Phase.RUNNING, "", Ending.LEFT, moved if seen.again else ""
    if seen.state == "waiting":
        words = (
            f"waits: no node of the cluster has {lacking}; cancel it with "
            f"`{shell_command('master kill --stage')}`, "
            "and launch again with other --job-option values"
        )
        return Phase.QUEUED, words if lacking else "", Ending.LEFT, ""
    ending, words = _describe_death(seen.cause) if ended is None else _describe_end(ended)
    return Phase.ENDED, words, ending, ""


def _describe_end(ended: Ended) -> tuple[Ending, str]:
    code = ended.exit_code
    if ended.cancelled:
        return CANCELLED
    if code == 0:
        return Ending.LEFT, ""
    ending, words = describe_exit(max(code, 0), max(-code, 0), "--job-option memory=16G")
    return ending, f"on {ended.node} {words}"


def _describe_death(cause: str) -> tuple[Ending, str]:
    last = next((line.strip() for line in reversed(cause.splitlines()) if line.strip()), "")
    if NOT_BEGUN in cause:
        remedy = "; install coarsefine into the Python of Ray" if "NotFoundError" in cause else ""
        return Ending.FAILED, f"could not begin: {last.partition(': ')[2] or last}{remedy}"
    if KILLED in cause:
        return CANCELLED
    return Ending.LOST, f"is gone from Ray{f' ({last})' if last else ''}; {GO_ON}"
