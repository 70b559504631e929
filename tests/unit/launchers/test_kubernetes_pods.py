"""What Kubernetes says of Jobs and pods, put into words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from master.launchers.cluster import ClusterError, Ending, Phase
from master.launchers.kubernetes import pods as kubernetes_pods
from master.launchers.kubernetes.launcher import parse_answer, parse_refusals
from master.launchers.kubernetes.pods import PATIENCE_S, find_tail
from tests.unit.launchers.kubernetes_fake import disrupted, ended, unscheduled, waiting

RUNNING = {"phase": "Running"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def describe(job: Any, pods: list[Any], now: datetime = NOW) -> tuple[Phase, str, Ending, str]:
    found = kubernetes_pods.describe("a-1-1", job, pods, now.timestamp())
    return found.phase, found.words, found.ending, found.moved


def pod(status: dict[str, Any], node: str = "n1", second: int = 0, **metadata: Any) -> Any:
    created = {"creationTimestamp": f"2026-01-01T00:00:{second:02d}Z"}
    return {"metadata": created | metadata, "spec": {"nodeName": node}, "status": status}


def job(kind: str = "", reason: str = "BackoffLimitExceeded", **more: Any) -> Any:
    conditions = [{"type": kind, "status": "True", "reason": reason}] if kind else []
    return {"status": {"conditions": conditions}, **more}


@pytest.mark.parametrize("status", [RUNNING, waiting("ContainerCreating"), {"phase": "Pending"}])
def test_a_job_that_is_well_needs_no_words(status: dict[str, Any]) -> None:
    phase, *words, _ = describe(job(), [pod(status)])
    assert phase is not Phase.ENDED and words == ["", Ending.LEFT]


def test_a_job_is_queued_until_its_container_runs() -> None:
    assert describe(job(), [])[0] is Phase.QUEUED
    assert describe(job(), [pod(waiting("ContainerCreating"))])[0] is Phase.QUEUED
    assert describe(job(), [pod(RUNNING)])[0] is Phase.RUNNING


def test_a_job_whose_worker_left_by_itself_has_ended_well() -> None:
    for kind in ("Complete", "SuccessCriteriaMet"):
        assert describe(job(kind), [pod(ended(0, "Completed"))])[:3] == (
            Phase.ENDED,
            "",
            Ending.LEFT,
        )


@pytest.mark.parametrize(
    ("status", "words", "ending"),
    [
        (ended(1), "on n1 ended with exit status 1", Ending.FAILED),
        (ended(1, "Strange"), "on n1 ended with exit status 1 (Strange)", Ending.FAILED),
        (ended(137, "OOMKilled"), "on n1 was killed because it used more memory", Ending.FAILED),
        (ended(137), "on n1 was killed (SIGKILL), perhaps because memory", Ending.FAILED),
        (ended(139), "on n1 was ended by SIGSEGV", Ending.FAILED),
        (ended(255), "on n1 ended with exit status 255", Ending.FAILED),
        (
            ended(128, "StartError", message='exec: "/bin/sh": not found'),
            'on n1 could not begin (exec: "/bin/sh": not found)',
            Ending.FAILED,
        ),
        (ended(138), "on n1 left before its end, as it was told to", Ending.LOST),
        (
            {"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough cpu"},
            "on n1 was ended by its node (Node didn't have enough cpu)",
            Ending.LOST,
        ),
        (
            {"phase": "Failed", "reason": "UnexpectedAdmissionError"},
            "on n1 was ended by its node (UnexpectedAdmissionError)",
            Ending.LOST,
        ),
        ({"phase": "Failed"}, "on n1 failed without having begun", Ending.FAILED),
        (disrupted("DeletionByPodGC"), "on n1 lost its node; its trials go on", Ending.LOST),
        (disrupted("SomethingNew"), "on n1 had to go (SomethingNew); ", Ending.LOST),
    ],
)
def test_each_end_is_a_sentence_and_says_what_comes_next(
    status: dict[str, Any], words: str, ending: Ending
) -> None:
    phase, told, found, _ = describe(job("Failed"), [pod(status)])
    assert (phase, found) == (Phase.ENDED, ending) and told.startswith(words)


def test_the_end_of_a_job_is_known_while_its_pod_is_still_leaving() -> None:
    phase, words, ending, _ = describe(job("FailureTarget"), [pod(ended(2))])
    assert (phase, words, ending) == (
        Phase.ENDED,
        "on n1 ended with exit status 2",
        Ending.FAILED,
    )


def test_the_time_limit_of_a_job_or_of_its_pod_is_no_failure() -> None:
    for one in (
        describe(job("Failed", "DeadlineExceeded"), []),
        describe(job("Failed"), [pod({"phase": "Failed", "reason": "DeadlineExceeded"})]),
    ):
        assert one[2] is Ending.LOST and "--job-option time=" in one[1]


def test_a_job_that_failed_without_a_pod_says_what_there_is_to_say() -> None:
    assert describe(job("Failed"), [])[1:3] == (
        "failed, and its pod is gone (BackoffLimitExceeded)",
        Ending.FAILED,
    )


def test_a_job_that_is_being_deleted_was_cancelled() -> None:
    gone = job(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    phase, words, ending, _ = describe(gone, [pod(RUNNING)])
    assert (phase, ending) == (Phase.ENDED, Ending.CANCELLED) and "no other takes its" in words


def test_a_suspended_job_waits() -> None:
    phase, words, *_ = describe(job(spec={"suspend": True}), [])
    assert phase is Phase.QUEUED and words.startswith("waits (it is suspended, as by Kueue")


def test_the_newest_pod_counts_and_the_one_before_says_why_it_was_begun_again() -> None:
    pods = [pod(RUNNING, "n2", 9), pod(disrupted("EvictionByEvictionAPI"), "n1", 3)]
    assert describe(job(), pods) == (
        Phase.RUNNING,
        "",
        Ending.LEFT,
        "on n1 was evicted, as when a node is drained",
    )
    phase, words, *_ = describe(job(), pods[1:])
    assert (phase, words) == (Phase.QUEUED, "waits to begin again")


def test_a_pod_that_does_not_leave_in_time_has_lost_its_node() -> None:
    """Its Job waits until Kubernetes gives the node up; the launch does not."""
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    leaving = pod(RUNNING | {"conditions": [condition]}, deletionTimestamp="2026-01-01T00:00:30Z")
    until = NOW + timedelta(seconds=30)
    phase, words, _, moved = describe(job(), [leaving], until)
    assert phase is Phase.RUNNING and words.startswith("has been told to leave")
    assert moved == "on n1 had to go, since its node does not answer or is tainted"
    phase, words, ending, _ = describe(job(), [leaving], until + timedelta(seconds=PATIENCE_S + 1))
    assert (phase, ending) == (Phase.ENDED, Ending.LOST)
    assert words.startswith("on n1 lost its node, which does not answer; its trials go on")


def test_a_time_that_cannot_be_read_is_no_loss() -> None:
    assert describe(job(), [pod(RUNNING, deletionTimestamp="soon")])[0] is Phase.RUNNING


def test_a_long_message_is_shortened() -> None:
    words = describe(job(), [pod(unscheduled("no room. " * 200))])[1]
    assert len(words) < 400 and "..." in words


def test_the_end_of_the_log_is_that_of_the_newest_pod() -> None:
    pods = [pod(ended(1, message="new"), second=2), pod(ended(1, message="old"), second=1)]
    assert find_tail(pods) == "new"
    assert find_tail([]) == find_tail([pod(RUNNING)]) == ""


def test_words_of_other_containers_count_after_those_of_the_worker() -> None:
    status = waiting("ImagePullBackOff", "no such image")
    status["containerStatuses"].insert(
        0, {"name": "side", "state": {"waiting": {"reason": "ContainerCreating"}}}
    )
    assert "its image cannot be pulled" in describe(job(), [pod(status)])[1]


def test_pods_belong_to_jobs_by_their_label_the_old_one_too() -> None:
    answer = """{"items": [
        {"kind": "Job", "metadata": {"name": "a-1-1"}},
        {"kind": "Pod", "metadata": {"labels": {"batch.kubernetes.io/job-name": "a-1-1"}}},
        {"kind": "Pod", "metadata": {"labels": {"job-name": "a-1-1"}}},
        {"kind": "Event"}]}"""
    jobs, pods = parse_answer(answer)
    assert list(jobs) == ["a-1-1"] and len(pods["a-1-1"]) == 2


@pytest.mark.parametrize("answer", ["", "No resources found", "[]", '{"items": 3}'])
def test_an_answer_that_is_no_list_is_refused(answer: str) -> None:
    with pytest.raises(ClusterError, match="instead of a list as JSON"):
        parse_answer(answer)
    with pytest.raises(ClusterError, match="instead of a list as JSON"):
        parse_refusals(answer)
