"""deploy/kubernetes and the launcher's manifests are what Kubernetes accepts, and fit together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from master.launchers.job_plan import JobPlan
from master.launchers.kubernetes.manifest import User, labels, name_jobs, render_jobs, render_pod
from master.launchers.kubernetes.options import parse_options
from tests.kubernetes_files import (
    BASE,
    KEDA,
    VERSIONS,
    Json,
    find_mistakes,
    find_pods,
    read_kustomization,
    read_resources,
)

OPTIONS = (
    [],
    ["namespace=research", "gpus=2", "cpu=500m", "memory=16Gi", "time=4:00:00"],
    ["claim=shared:/shared", "gpus=amd.com/gpu:1"],
)


def jobs(options: list[str], secrets: Path | None = None) -> list[Json]:
    """The manifests of a launch."""
    own = parse_options(["image=coarsefine:1", "claim=checkpoints", *options])
    plan = JobPlan("My_Digits", Path("/shared/checkpoints"), Path("/data"), own, "module load cuda")
    pod = render_pod(plan, secrets, User(1000, 1000, (27,)))
    names = name_jobs(plan.search, 7, 2)
    found: list[Json] = render_jobs(plan.root / plan.search, names, own.get("namespace", ""), pod)[
        "items"
    ]
    return found


def everything() -> list[Json]:
    return [*read_resources(BASE), *read_resources(KEDA)]


def test_every_file_is_a_resource_of_its_kustomization() -> None:
    for folder in (BASE, KEDA):
        on_disk = {file.name for file in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert set(read_kustomization(folder)["resources"]) == on_disk


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_pass_a_strict_validator(version: str) -> None:
    for resource in everything():
        name = f"{resource['kind']} {resource['metadata']['name']}"
        assert (name, find_mistakes(resource, version)) == (name, "")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_jobs_of_a_launch_pass_a_strict_validator(options: list[str], version: str) -> None:
    for job in jobs(options, Path("/shared/environment")):
        assert find_mistakes(job, version) == ""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_planted_mistake_is_found(version: str) -> None:
    for change in ({"backofLimit": 0}, {"backoffLimit": "0"}, {"podFailurePolicy": {}}):
        (job, _) = jobs([])
        job["spec"] |= change
        assert find_mistakes(job, version)
    (scaled,) = (each for each in everything() if each["kind"] == "ScaledJob")
    scaled["spec"]["jobTargetRef"]["podFailurPolicy"] = {}
    assert "podFailurPolicy" in find_mistakes(scaled, version)


@pytest.mark.parametrize(("kind", "pod"), list(find_pods([*everything(), *jobs([])])))
def test_no_pod_runs_as_root_or_writes_where_it_need_not(kind: str, pod: Json) -> None:
    """As the namespace enforces it: the standard `restricted`, and a root that is only read."""
    context = pod["securityContext"]
    assert context["runAsNonRoot"] and context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]


def test_what_stays_has_probes() -> None:
    kinds = ("Deployment", "StatefulSet")
    staying = dict(find_pods([each for each in everything() if each["kind"] in kinds]))
    assert len(staying) == 2
    for pod in staying.values():
        for container in pod["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= container.keys()


def test_an_evicted_worker_counts_as_no_failure_whoever_started_it() -> None:
    (scaled,) = (each for each in everything() if each["kind"] == "ScaledJob")
    own, (job, _) = scaled["spec"]["jobTargetRef"], jobs([])
    assert own["podFailurePolicy"] == job["spec"]["podFailurePolicy"]
    assert own["backoffLimit"] == job["spec"]["backoffLimit"] == 0


def test_a_worker_has_time_to_save_before_it_is_killed() -> None:
    for _, pod in find_pods([*everything(), *jobs([])]):
        words = " ".join(pod["containers"][0]["command"])
        if "worker start" in words:
            grace = float(words.split("--stop-grace ")[1].split()[0])
            assert grace < pod["terminationGracePeriodSeconds"]


def test_claims_passwords_and_addresses_are_those_of_the_base() -> None:
    resources = everything()
    names = {(each["kind"], each["metadata"]["name"]) for each in resources}
    for kind, pod in find_pods(resources):
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in names, kind
            if "secret" in volume:
                assert volume["secret"]["secretName"] == "coarsefine-redis"
        for container in pod["containers"]:
            for variable in container.get("env", []):
                if variable["name"] == "REDIS_URL":
                    host = variable["value"].partition("@")[2].partition(":")[0]
                    assert ("Service", host) in names, kind


def test_the_network_lets_the_workers_of_a_launch_reach_redis() -> None:
    """The policies choose pods by labels that the launcher's pods have too."""
    policies = [each["spec"] for each in everything() if each["kind"] == "NetworkPolicy"]

    def chosen(selector: dict[str, Any], own: dict[str, str]) -> bool:
        return selector.get("matchLabels", {}).items() <= own.items()

    redis = labels("digits") | {"app.kubernetes.io/component": "redis"}
    to_redis = [
        each for each in policies if "ingress" in each and chosen(each["podSelector"], redis)
    ]
    peers = [peer for each in to_redis for rule in each["ingress"] for peer in rule["from"]]
    assert any(
        chosen(peer["podSelector"], labels("digits")) for peer in peers if "podSelector" in peer
    )
    assert all(
        port == {"port": 6379, "protocol": "TCP"}
        for each in to_redis
        for rule in each["ingress"]
        for port in rule["ports"]
    )


def test_a_manifest_is_json_that_says_no_password() -> None:
    text = json.dumps(jobs([], Path("/shared/environment")))
    assert "/shared/environment" in text and "redis://" not in text
