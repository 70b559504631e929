"""Jobs of a search in Kubernetes from their submission to their end, with a kubectl for tests."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.folder.records import SearchFolder
from master.launchers.cluster import ClusterError, Demand
from master.launchers.endings import MAX_QUICK_DEATHS
from master.launchers.kubernetes.launcher import check
from master.run.jobs import cancel_jobs, describe_jobs
from tests.unit.launchers.kubernetes_fake import (
    Fake,
    disrupted,
    ended,
    job,
    unscheduled,
    waiting,
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return Fake(tmp_path)


def test_a_start_submits_a_job_for_each_worker_and_notes_it(fake: Fake) -> None:
    workers = fake.workers().start()
    assert fake.cluster.jobs() == [job(1, 1), job(1, 2)]
    assert list(fake.notes.read()) == [job(1, 1), job(1, 2)]
    assert fake.said == [f"2 jobs submitted to Kubernetes: {job(1, 1)}, {job(1, 2)}"]
    assert not workers.gone and workers.absence == "2 jobs in the queue of Kubernetes"


def test_a_worker_says_its_job_as_the_launcher_knows_it(fake: Fake) -> None:
    fake.workers("1", "namespace=research").start()
    (pod,) = fake.cluster.pods(f"research/{job(1, 1)}")
    (container,) = pod["spec"]["containers"]
    id = f"research/{job(1, 1)}"
    assert {"name": "COARSEFINE_JOB", "value": id} in container["env"]
    assert list(fake.notes.read()) == [id]


def test_the_pods_run_as_who_launches_them(fake: Fake) -> None:
    fake.workers("1").start()
    (pod,) = fake.cluster.pods(job(1, 1))
    context = pod["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (os.geteuid(), os.getegid())
    assert context["runAsNonRoot"] is (os.geteuid() != 0)


def test_a_second_launch_finds_the_jobs_of_the_first(fake: Fake) -> None:
    fake.workers("2").start().leave()
    fake.said.clear()
    fake.workers("3").start()
    assert fake.said == [
        "2 jobs of this search found in Kubernetes",
        f"1 job submitted to Kubernetes: {job(2, 1)}",
    ]


def test_jobs_are_added_while_trials_wait_and_not_for_idle_workers(fake: Fake) -> None:
    fake.demand = Demand(1, 0)
    workers = fake.workers("4").start()
    fake.cluster.turn(job(1, 1), phase="Running")
    fake.demand = Demand(2, 30, busy=frozenset({job(1, 1)}))
    fake.pass_time(workers)
    assert fake.cluster.jobs() == [job(1, 1), job(2, 1), job(2, 2)]
    fake.demand = Demand(1, 30, busy=frozenset({job(1, 1)}), idle=frozenset({job(2, 1), job(2, 2)}))
    fake.pass_time(workers)
    assert len(fake.cluster.jobs()) == 3


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (
            ended(137, "OOMKilled"),
            "on node-1 was killed because it used more memory than it had asked for; "
            "--job-option memory=16Gi",
        ),
        (ended(1), "on node-1 ended with exit status 1"),
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, "on node-1 reached its time limit; "),
        ({"phase": "Failed", "reason": "NodeLost"}, "on node-1 was ended by its node (NodeLost)"),
        (ended(143), "on node-1 left before its end, as it was told to"),
    ],
)
def test_a_job_that_is_lost_is_told_once_and_replaced(
    fake: Fake, status: dict[str, Any], told: str
) -> None:
    workers = fake.workers().start()
    fake.cluster.turn(job(1, 1), **status)
    for _ in range(3):
        fake.pass_time(workers)
    assert sum(f"Kubernetes job {job(1, 1)} {told}" in text for text in fake.said) == 1
    assert fake.cluster.jobs() == [job(1, 1), job(1, 2), job(2, 1)]
    assert workers.how_ended(0, job(1, 1)).startswith(f"its last worker's job, {job(1, 1)}, {told}")


def test_an_evicted_pod_begins_again_and_its_job_has_not_failed(fake: Fake) -> None:
    workers = fake.workers("1").start()
    for time in range(1, MAX_QUICK_DEATHS + 3):
        fake.cluster.turn(job(1, 1), phase="Running")
        fake.pass_time(workers)
        fake.cluster.turn(job(1, 1), **disrupted("PreemptionByScheduler"))
        fake.pass_time(workers)
        times = f" (the {time}. time)" if time > 1 else ""
        assert fake.said[-1] == (
            f"Kubernetes job {job(1, 1)} on node-1 was preempted by a pod of higher priority"
            f"{times}; it begins again"
        )
    assert fake.cluster.jobs() == [job(1, 1)] and len(fake.cluster.pods(job(1, 1))) == time + 1
    assert not workers.given_up and workers.absence == "1 job in the queue of Kubernetes"
    (line,) = describe_jobs(fake.root)[1:]
    assert line.startswith(f"job {job(1, 1)} on node-1 was preempted by a pod of higher priority")
    assert line.endswith(", and was begun again")


def test_a_pod_that_the_kubelet_evicts_is_told_with_its_words(fake: Fake) -> None:
    workers = fake.workers("1").start()
    fake.pass_time(workers)
    message = "The node was low on resource: memory."
    status = disrupted("TerminationByKubelet", 137, reason="Evicted", message=message)
    fake.cluster.turn(job(1, 1), **status)
    fake.pass_time(workers)
    assert "was evicted by its node (The node was low on resource: memory);" in fake.said[-1]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            waiting("ImagePullBackOff", 'Back-off pulling image "coarsefine:1"'),
            'waits (ImagePullBackOff: Back-off pulling image "coarsefine:1"): its image cannot be '
            "pulled; correct --job-option image=",
        ),
        (
            waiting("CreateContainerConfigError", 'secret "of-mine" not found'),
            'waits (CreateContainerConfigError: secret "of-mine" not found)',
        ),
        (
            unscheduled(
                "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes "
                "are available: 3 No preemption victims found for incoming pod."
            ),
            "waits (Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu): it "
            "begins when there is room",
        ),
        (
            unscheduled('persistentvolumeclaim "checkpoints" not found'),
            'waits (Unschedulable: persistentvolumeclaim "checkpoints" not found): correct '
            "--job-option claim=",
        ),
    ],
)
def test_a_job_that_waits_in_vain_is_told_with_the_remedy(
    fake: Fake, status: dict[str, Any], words: str
) -> None:
    workers = fake.workers("1").start()
    fake.cluster.turn(job(1, 1), **status)
    fake.pass_time(workers)
    assert workers.absence.startswith(f"1 job in the queue of Kubernetes; {words}")
    assert fake.cluster.jobs() == [job(1, 1)]


def test_a_job_whose_pod_is_refused_is_told_with_the_words_of_the_event(fake: Fake) -> None:
    workers = fake.workers("1").start()
    message = 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'
    fake.cluster.refuse_pods(job(1, 1), message)
    fake.pass_time(workers)
    assert workers.absence.endswith(f"; waits (its pod cannot be created: {message})")


def test_a_job_that_somebody_deletes_is_not_replaced_and_a_second_launch_submits_another(
    fake: Fake,
) -> None:
    workers = fake.workers().start()
    for task in (1, 2):
        fake.cluster.delete(job(1, task))
    fake.pass_time(workers)
    fake.pass_time(workers)
    assert fake.cluster.jobs() == []
    assert [text for text in fake.said if f"{job(1, 1)} (likewise {job(1, 2)}) was deleted" in text]
    assert workers.absence == "its jobs were cancelled; launch again for new ones"
    fake.workers().start()
    assert len(fake.cluster.jobs()) == 2


def test_a_job_that_was_removed_after_its_end_is_no_loss(fake: Fake) -> None:
    """A Job that has ended is removed after a day, when a launch attaches again."""
    fake.workers().start()
    for task in (1, 2):
        fake.cluster.delete(job(1, task))
    fake.said.clear()
    fake.workers().start()
    assert fake.said == [f"2 jobs submitted to Kubernetes: {job(1, 1)}, {job(1, 2)}"]


def test_jobs_that_fail_in_a_row_are_given_up_with_the_end_of_a_log(fake: Fake) -> None:
    workers = fake.workers("1").start()
    for number in range(1, 1 + MAX_QUICK_DEATHS):
        assert not workers.given_up
        log = "ModuleNotFoundError: coarsefine\n"
        fake.cluster.turn(job(number, 1), **ended(1, message=log))
        fake.pass_time(workers)
    assert workers.given_up and len(fake.cluster.jobs()) == MAX_QUICK_DEATHS
    assert fake.said[-1] == (
        f"5 jobs have failed in a row; submitting no more. The log of {job(5, 1)} ends with\n"
        "    ModuleNotFoundError: coarsefine"
    )
    kept = fake.notes.folder / f"{job(5, 1)}.log"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_refused_job_is_an_error_with_the_words_of_kubectl(fake: Fake) -> None:
    (fake.cluster.folder / "refuse").write_text('strict decoding error: unknown field "spec.cpu"')
    with pytest.raises(ClusterError, match=r'kubectl refused the jobs: strict.*"spec.cpu"'):
        fake.workers().start()


def test_jobs_beyond_a_quota_are_not_lost_sight_of(fake: Fake) -> None:
    (fake.cluster.folder / "quota").write_text("1")
    workers = fake.workers("3").start()
    assert fake.cluster.jobs() == [job(1, 1)] == list(fake.notes.read())
    fake.pass_time(workers)
    assert "exceeded quota" in workers.absence and fake.said[-1].endswith("; trying again")
    (fake.cluster.folder / "quota").unlink()
    fake.pass_time(workers)
    assert fake.cluster.jobs() == [job(1, 1), job(2, 1), job(2, 2)]


def test_jobs_of_another_search_of_the_same_name_are_left_alone(fake: Fake) -> None:
    """As where two people launch `digits` from their own folders into one namespace."""
    fake.workers("1").start()
    (fake.path / "other").mkdir()
    other = Fake(fake.path / "other")
    other.cluster = fake.cluster
    (fake.cluster.folder / "blind").touch()  # both ask before one of them has submitted
    with pytest.raises(ClusterError, match="already exists"):
        other.workers("1").start()
    assert not other.notes.read()
    (fake.cluster.folder / "blind").unlink()
    other.workers("1").start()
    assert fake.cluster.jobs() == [job(1, 1), job(2, 1)]
    assert cancel_jobs(SearchFolder(other.root, "digits")) == 1
    assert fake.cluster.jobs() == [job(1, 1)]


def test_kubernetes_may_be_away_for_a_while(fake: Fake) -> None:
    workers = fake.workers().start()
    told = "Unable to connect to the server: dial tcp: i/o timeout"
    (fake.cluster.folder / "away").write_text(told)
    fake.pass_time(workers)
    fake.pass_time(workers)
    assert fake.said[1:] == [f"kubectl refused the question: {told}; trying again"]
    (fake.cluster.folder / "away").unlink()
    fake.pass_time(workers)
    assert workers.absence == "2 jobs in the queue of Kubernetes"


def test_a_launch_that_ends_cancels_only_what_has_not_begun_and_only_if_no_trial_is_left(
    fake: Fake,
) -> None:
    workers = fake.workers().start()
    fake.cluster.turn(job(1, 1), phase="Running")
    fake.pass_time(workers)
    workers.leave()
    assert len(fake.cluster.jobs()) == 2
    fake.demand = Demand(0, 0)
    workers.leave()
    assert fake.cluster.jobs() == [job(1, 1)]


def test_a_kill_of_the_stage_cancels_the_jobs_of_each_namespace(fake: Fake) -> None:
    fake.workers("1").start()
    fake.workers("3", "namespace=research").start()
    assert fake.cluster.jobs() == [job(1, 1), f"research/{job(2, 1)}", f"research/{job(2, 2)}"]
    assert cancel_jobs(SearchFolder(fake.root, "digits")) == 3
    assert fake.cluster.jobs() == []
    assert cancel_jobs(SearchFolder(fake.root, "digits")) == 0


def test_jobs_are_described_for_everybody_who_asks(fake: Fake) -> None:
    workers = fake.workers("3").start()
    fake.cluster.turn(job(1, 1), phase="Running")
    fake.cluster.turn(job(1, 2), **waiting("ErrImagePull"))
    fake.cluster.turn(job(1, 3), **ended(137, "OOMKilled"))
    fake.demand = Demand(0, 0)
    fake.pass_time(workers)
    first, *lines = describe_jobs(fake.root)
    assert first == (
        "search 'digits' has 1 running and 1 queued jobs in Kubernetes, with logs by `kubectl "
        "logs job/NAME`"
    )
    assert [line.split(":")[0].split("because")[0] for line in lines] == [
        f"job {job(1, 2)} waits (ErrImagePull)",
        f"job {job(1, 3)} on node-1 was killed ",
    ]


def test_the_address_of_redis_and_its_files_are_for_the_owner_alone(fake: Fake) -> None:
    password = fake.path / "password"
    password.write_text("hush\n")
    variables = {"REDIS_URL": "redis://me@head/0", "REDIS_PASSWORD_FILE": str(password)}
    fake.workers("1", variables=variables).start()
    folder = fake.notes.folder
    assert (folder / "environment").read_text() == (
        f"export REDIS_URL=redis://me@head/0\nexport REDIS_PASSWORD_FILE={folder}/"
        "redis_password_file\n"
    )
    assert (folder / "redis_password_file").read_text() == "hush\n"
    for name in ("environment", "redis_password_file"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    told = [folder / "jobs.json", *fake.cluster.folder.iterdir()]
    assert not [file for file in told if "hush" in file.read_text()]


def test_a_file_of_the_pod_is_merged_by_kubectl(fake: Fake) -> None:
    file = fake.path / "pod.json"
    file.write_text('{"spec": {"nodeSelector": {"gpu": "h100"}}}')
    fake.workers("1", f"pod={file}").start()
    (pod,) = fake.cluster.pods(job(1, 1))
    assert pod["spec"]["nodeSelector"] == {"gpu": "h100"}
    assert pod["spec"]["containers"][0]["image"] == "coarsefine:1"


def test_a_file_of_the_pod_that_cannot_be_read_is_refused_before_anything_is_queued(
    fake: Fake,
) -> None:
    options = {"image": "coarsefine:1", "pod": str(fake.path / "pod.yaml")}
    with pytest.raises(ConfigError, match=r"pod=.*pod.yaml cannot be read: No such file"):
        check(options)
    (fake.path / "pod.yaml").write_text("a: [b")
    with pytest.raises(ClusterError, match=r"kubectl refused pod=.*: error: unable to parse"):
        check(options)


def test_a_missing_kubectl_is_named_with_the_remedy(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    check({})
    monkeypatch.setenv("PATH", str(fake.path))
    with pytest.raises(ConfigError, match=r"no kubectl on the PATH.*kubectl get jobs"):
        check({})
    with pytest.raises(ConfigError, match="no kubectl on the PATH"):
        fake.workers().start()
