"""What the state of a Job and of its pods means, in words, and for the next job."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from common.ending import BY_SIGNAL
from master.launchers.cluster import Ending, Job, Phase
from master.launchers.job_exits import (
    GO_ON,
    KILLED_FOR_MEMORY,
    NO_OTHER,
    describe_exit,
    more_memory,
)
from master.launchers.kubernetes.manifest import CONTAINER

Json = Mapping[str, Any]

MEMORY_OPTION = "--job-option memory=16Gi"
DELETED = f"was deleted, and {NO_OTHER}"
TIME_LIMIT = f"reached its time limit; {GO_ON}. --job-option time=HH:MM:SS gives the next ones more"
# Why a pod had to go although its worker has not failed, by the reason of its DisruptionTarget.
DISRUPTED = {
    "PreemptionByScheduler": "was preempted by a pod of higher priority",
    "DeletionByTaintManager": "had to go, since its node does not answer or is tainted",
    "EvictionByEvictionAPI": "was evicted, as when a node is drained",
    "DeletionByPodGC": "lost its node",
    "TerminationByKubelet": "was evicted by its node",
}
# Why a node ends or refuses a pod, by the pod's own reason, where no disruption is noted.
REFUSED_BY_NODE = ("Evicted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity")
REFUSED_BEGINS = ("OutOf", "UnexpectedAdmission", "Preempt")
NO_IMAGE = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
)
COMING = ("", "ContainerCreating", "PodInitializing")
LONGEST_MESSAGE = 300
# After its grace period a pod is gone within seconds, unless its node does not answer.
PATIENCE_S = 120.0


def describe(id: str, job: Json, pods: Sequence[Json], now_s: float, refused: str = "") -> Job:
    """Describe a job by its Job and pods.

    A job whose node does not answer has ended, although its Job has not: Kubernetes begins it again
    when it has given the node up, which may take for ever.

    Args:
        id: The id of the job.
        job: The Job.
        pods: Its pods, those that have ended too.
        now_s: The time, as ``time.time``.
        refused: Why its pod cannot be created; empty where that is not known.
    """
    pods = sorted(pods, key=_age)
    phase, words, ending = _describe(job, pods[-1] if pods else None, now_s, refused)
    return Job(id, phase, words, ending, moved=_describe_moves(pods))


def _describe(
    job: Json, last: Json | None, now_s: float, refused: str
) -> tuple[Phase, str, Ending]:
    """Describe a Job by itself and by its newest pod."""
    if _condition(job, "Complete") or _condition(job, "SuccessCriteriaMet"):
        return Phase.ENDED, "", Ending.LEFT
    failed = _condition(job, "Failed") or _condition(job, "FailureTarget")
    if failed:
        ending, words = _describe_failure(failed, last)
        return Phase.ENDED, words, ending
    if _get(job, "metadata", "deletionTimestamp"):
        return Phase.ENDED, DELETED, Ending.CANCELLED
    if _get(job, "spec", "suspend"):
        words = "waits (it is suspended, as by Kueue until there is room)"
        return Phase.QUEUED, words, Ending.LEFT
    if last and _is_on_lost_node(last, now_s):
        node = _get(last, "spec", "nodeName")
        words = f"on {node} lost its node, which does not answer; {GO_ON}"
        return Phase.ENDED, words, Ending.LOST
    return (*_describe_pod(last, refused), Ending.LEFT)


def find_tail(pods: Sequence[Json]) -> str:
    """Return the end of the log of a worker that failed; empty where there is none."""
    last = max(pods, key=_age, default=None)
    return str(_terminated(last).get("message") or "") if last else ""


def _is_on_lost_node(pod: Json, now_s: float) -> bool:
    """Return whether a pod should have left long ago; its node cannot be told to end it."""
    until = str(_get(pod, "metadata", "deletionTimestamp") or "")
    if not until or _get(pod, "status", "phase") in ("Failed", "Succeeded"):
        return False
    try:
        return now_s > datetime.fromisoformat(until).timestamp() + PATIENCE_S
    except ValueError:
        return False


def _describe_pod(pod: Json | None, refused: str) -> tuple[Phase, str]:
    """Describe a job that has not ended by its newest pod."""
    if pod is None:
        return Phase.QUEUED, f"waits (its pod cannot be created: {refused})" if refused else ""
    phase = _get(pod, "status", "phase")
    if phase == "Pending":
        return Phase.QUEUED, _describe_waiting(pod)
    if phase == "Failed":  # but its Job has not: it begins again
        return Phase.QUEUED, "waits to begin again"
    if _get(pod, "metadata", "deletionTimestamp"):
        return Phase.RUNNING, "has been told to leave, and begins again when it has"
    return Phase.RUNNING, ""


def _describe_waiting(pod: Json) -> str:
    scheduled = _condition(pod, "PodScheduled", "False")
    if scheduled:
        message = _shorten(str(scheduled.get("message", "")).partition(" preemption:")[0])
        if "persistentvolumeclaim" in message:
            told = "correct --job-option claim=, or create it"
        elif "Insufficient" in message:
            told = (
                "it begins when there is room; with smaller cpu=, memory= or gpus= it may need less"
            )
        else:
            told = "it begins when a node fits"
        return f"waits ({scheduled.get('reason', 'Unschedulable')}: {message}): {told}"
    found = (state.get("waiting") for state in _states(pod))
    waiting: Json = next((each for each in found if isinstance(each, Mapping)), {})
    reason, message = str(waiting.get("reason") or ""), _shorten(str(waiting.get("message") or ""))
    if reason in COMING:
        return ""
    words = f"waits ({reason}{f': {message}' if message else ''})"
    if reason in NO_IMAGE:
        return (
            f"{words}: its image cannot be pulled; correct --job-option image=, or let the nodes "
            "pull it"
        )
    return words


def _describe_failure(condition: Json, pod: Json | None) -> tuple[Ending, str]:
    """Describe the end of a Job that failed, by its last pod."""
    if condition.get("reason") == "DeadlineExceeded":
        return Ending.LOST, TIME_LIMIT
    if pod is None:
        reason = condition.get("message") or condition.get("reason") or "no reason is given"
        return Ending.FAILED, f"failed, and its pod is gone ({_shorten(str(reason))})"
    node = _get(pod, "spec", "nodeName")
    ending, words = _describe_end(pod)
    return ending, f"on {node} {words}" if node else words


def _describe_end(pod: Json) -> tuple[Ending, str]:
    disruption = _disruption(pod)
    if disruption:
        return Ending.LOST, f"{disruption}; {GO_ON}"
    reason = str(_get(pod, "status", "reason") or "")
    if reason == "DeadlineExceeded":
        return Ending.LOST, TIME_LIMIT
    if reason in REFUSED_BY_NODE or reason.startswith(REFUSED_BEGINS):
        message = _shorten(str(_get(pod, "status", "message") or reason))
        return Ending.LOST, f"was ended by its node ({message}); {GO_ON}"
    terminated = _terminated(pod)
    why = str(terminated.get("reason") or "")
    if why == "OOMKilled":
        return Ending.FAILED, f"{KILLED_FOR_MEMORY}; {more_memory(MEMORY_OPTION)}"
    if why in ("StartError", "ContainerCannotRun"):
        return Ending.FAILED, f"could not begin ({_shorten(str(terminated.get('message', '')))})"
    if not terminated:
        return Ending.FAILED, f"failed without having begun{f' ({reason})' if reason else ''}"
    because = "" if why in ("Error", "Completed") else why
    status = int(terminated.get("exitCode") or 0)
    # A runtime tells of a signal as a shell does.
    killed_by = status - BY_SIGNAL if BY_SIGNAL < status <= BY_SIGNAL + signal.SIGRTMAX else 0
    return describe_exit(status, killed_by, MEMORY_OPTION, because)


def _describe_moves(pods: Sequence[Json]) -> str:
    """Say why the last pod that had to go has gone; empty where there is none."""
    told = [(pod, words) for pod in pods if (words := _disruption(pod))]
    if not told:
        return ""
    pod, words = told[-1]
    node = _get(pod, "spec", "nodeName")
    times = f" (the {len(told)}. time)" if len(told) > 1 else ""
    return f"{f'on {node} ' if node else ''}{words}{times}"


def _disruption(pod: Json) -> str:
    condition = _condition(pod, "DisruptionTarget")
    if not condition:
        return ""
    reason = str(condition.get("reason") or "")
    words = DISRUPTED.get(reason, f"had to go ({reason})")
    if reason == "TerminationByKubelet":
        message = _get(pod, "status", "message") or condition.get("message")
        words += f" ({_shorten(str(message))})" if message else ""
    return words


def _terminated(pod: Json) -> Json:
    """Return how the container of the worker ended; empty if it has not."""
    found = (state.get("terminated") for state in _states(pod))
    return next((each for each in found if isinstance(each, Mapping)), {})


def _states(pod: Json) -> list[Json]:
    """Return the states of the worker's container, and after it those of others."""
    found = [
        *(_get(pod, "status", "containerStatuses") or ()),
        *(_get(pod, "status", "initContainerStatuses") or ()),
    ]
    found.sort(key=lambda status: status.get("name") != CONTAINER)
    return [status.get("state") or {} for status in found]


def _condition(thing: Json, kind: str, status: str = "True") -> Json | None:
    """Return a condition that holds, or that does not; None if it is not noted."""
    for condition in _get(thing, "status", "conditions") or ():
        if condition.get("type") == kind and condition.get("status") == status:
            return dict(condition)
    return None


def _get(thing: Json, *path: str) -> Any:
    """Return what is at a path; None if it is not there."""
    found: Any = thing
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _age(pod: Json) -> tuple[str, bool]:
    """Return what sorts pods by their age: times of this form sort as text."""
    created = str(_get(pod, "metadata", "creationTimestamp") or "")
    return created, _get(pod, "status", "phase") != "Failed"


def _shorten(message: str) -> str:
    message = " ".join(message.split()).rstrip(".")
    return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."
