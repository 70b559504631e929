"""The manifests of the Jobs: pure functions.

Each worker is a Job of its own, not an index of one Job. So each can be cancelled by itself, a
worker that fails does not end the others, and workers are added while others run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from master.launchers.job_plan import JOB_VARIABLE, JobPlan, render_shell
from master.launchers.kubernetes.options import (
    DEFAULTS,
    count_gpus,
    read_gpus,
    read_seconds,
    split_claim,
)

Json = dict[str, Any]

CONTAINER = "worker"
VOLUME = "checkpoints"
LONGEST_SEARCH = 30  # letters of its name in the names of Jobs, which have 63 at most
GRACE_S = 30  # between SIGTERM and SIGKILL; JobPlan has the worker leave some seconds sooner
KEEP_S = 86_400  # a Job that has ended is removed after a day
HOUR_S = 3600.0
SCRATCH = "/tmp"
# Tells the Jobs of searches of the same name apart, such as those of two people.
FOLDER = "coarsefine/folder"


def name_search(search: str) -> str:
    """Return the name of a search as it is part of the names of Jobs."""
    return re.sub(r"[^a-z0-9]+", "-", search.lower())[:LONGEST_SEARCH].strip("-")


def labels(search: str) -> dict[str, str]:
    """Return the labels of the Jobs and pods of a search."""
    return {
        "app.kubernetes.io/name": "coarsefine",
        "app.kubernetes.io/component": "worker",
        "app.kubernetes.io/instance": name_search(search),
    }


def name_jobs(search: str, number: int, n: int) -> list[str]:
    """Return the names of the Jobs of a submission: coarsefine-digits-17-1 and so on."""
    return [f"coarsefine-{name_search(search)}-{number}-{task}" for task in range(1, n + 1)]


@dataclass(frozen=True)
class User:
    """Who a worker runs as: who launches it, as in Slurm."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()  # others, which may give access to the checkpoint folder

    @classmethod
    def find(cls) -> User:
        """Return the user of this process."""
        uid, gid = os.geteuid(), os.getegid()
        return cls(uid, gid, tuple(sorted(set(os.getgroups()) - {0, gid})))


def render_pod(plan: JobPlan, secrets: Path | None, user: User) -> Json:
    """Return labels and specification of the pods of a search, as a Pod without a name.

    Args:
        plan: The jobs of the search.
        secrets: A file of shell with the address of Redis; None where the worker finds it.
        user: Who the worker runs as.
    """
    spec: Json = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsUser": user.uid,
            "runAsGroup": user.gid,
            "runAsNonRoot": user.uid != 0,
            "supplementalGroups": list(user.groups),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_render_container(plan, secrets)],
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            # Kubernetes gives 64 MB, and processes that load data need more. It counts as memory.
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    seconds = read_seconds(plan.options)
    if seconds:
        spec["activeDeadlineSeconds"] = seconds
    claim = plan.options.get("claim")
    if claim:
        name, path = split_claim(claim, plan.root.absolute())
        spec["volumes"].append({"name": VOLUME, "persistentVolumeClaim": {"claimName": name}})
        mount = {"name": VOLUME, "mountPath": str(path)}
        spec["containers"][0]["volumeMounts"].append(mount)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": labels(plan.search)},
        "spec": spec,
    }


def _render_container(plan: JobPlan, secrets: Path | None) -> Json:
    options = DEFAULTS | dict(plan.options)
    own = {"cpu": options["cpu"], "memory": options["memory"], **read_gpus(options)}
    command = ["worker", *plan.words(count_gpus(options))]
    seconds = read_seconds(options)
    if seconds:
        command += ["--max-hours", f"{seconds / HOUR_S:g}"]
    # The folder of the launch may be part of what is mounted.
    place = [f"cd {shlex.quote(str(plan.folder))} 2>/dev/null || cd {SCRATCH}"]
    if secrets:  # the pod may have an address of its own, where the launch has another
        place.append(f'[ -n "${{REDIS_URL:-}}" ] || . {shlex.quote(str(secrets))}')
    shell = render_shell(plan.umask, place, plan.setup, None, command)
    return {
        "name": CONTAINER,
        "image": options["image"],
        "command": ["/bin/sh", "-c", "\n".join(shell)],
        # The user id has no name in the image and no home.
        "env": [
            {"name": "HOME", "value": SCRATCH},
            {"name": "USER", "value": "coarsefine"},
            {"name": "LOGNAME", "value": "coarsefine"},
        ],
        "resources": {"requests": own, "limits": dict(own)},
        # The end of the log of a worker that fails is in the status of its pod.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "scratch", "mountPath": SCRATCH},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }


def render_jobs(folder: Path, names: Sequence[str], namespace: str, pod: Json) -> Json:
    """Return a list of Jobs, each of which is a worker.

    Args:
        folder: The folder of the search.
        names: The names of the Jobs.
        namespace: The namespace; empty for the current one of kubectl.
        pod: The pod, as ``render_pod`` returns it.
    """
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [_render_job(folder, name, namespace, pod) for name in names],
    }


def _render_job(folder: Path, name: str, namespace: str, pod: Json) -> Json:
    own: Json = json.loads(json.dumps(pod))
    # Whatever a file has changed, the Jobs and pods are found by these.
    own["metadata"]["labels"] = (own["metadata"].get("labels") or {}) | labels(folder.name)
    for container in own["spec"]["containers"]:
        if container.get("name") == CONTAINER:
            job = {"name": JOB_VARIABLE, "value": identify(namespace, name)}
            container.setdefault("env", []).append(job)
    metadata: Json = {
        "name": name,
        "labels": labels(folder.name),
        "annotations": {FOLDER: str(folder)},
    }
    if namespace:
        metadata["namespace"] = namespace
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completions": 1,
            "parallelism": 1,
            # A worker that fails is told to the launch, which decides about the next one.
            "backoffLimit": 0,
            # An evicted or preempted pod has not failed: Kubernetes begins it again elsewhere.
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    }
                ]
            },
            "ttlSecondsAfterFinished": KEEP_S,
            "template": {"metadata": own["metadata"], "spec": own["spec"]},
        },
    }


def identify(namespace: str, name: str) -> str:
    """Return the id of a job: its name, after the namespace where one was named."""
    return f"{namespace}/{name}" if namespace else name


def split_id(id: str) -> tuple[str, str]:
    """Return namespace and name of a job; the namespace is empty where none was named."""
    namespace, _, name = id.rpartition("/")
    return namespace, name


def render_text(manifest: Json) -> str:
    """Return a manifest as text."""
    return json.dumps(manifest, indent=1) + "\n"


def select(search: str) -> str:
    """Return the selector of the Jobs and pods of a search."""
    return ",".join(f"{key}={value}" for key, value in labels(search).items())
