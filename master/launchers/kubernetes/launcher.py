"""Workers as Jobs of Kubernetes, by ``kubectl``.

The Python client of Kubernetes takes 126 MB and 4 s to import. ``kubectl`` is there where people
use a cluster, and knows how to log in to it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.folder.durable import replace
from common.safe_read import read_bytes
from master.launchers.calls import call, check_programs, write_private
from master.launchers.cluster import ClusterError, Ending, Job, Phase
from master.launchers.job_plan import SECRETS, JobPlan, render_variables
from master.launchers.kubernetes.manifest import (
    CONTAINER,
    FOLDER,
    User,
    identify,
    name_jobs,
    render_jobs,
    render_pod,
    render_text,
    select,
    split_id,
)
from master.launchers.kubernetes.options import count_gpus, parse_options, request_gpus
from master.launchers.kubernetes.pods import DELETED, describe, find_tail
from master.launchers.noted import Notes, find_number

__all__ = ["NAME", "check", "count_gpus", "make", "parse_options", "request_gpus"]

NAME = "kubernetes"
KUBECTL = ("kubectl", "--request-timeout=30s")
REMEDY = (
    "--launcher kubernetes needs it; install it, and check with `kubectl get jobs` that it reaches "
    "the cluster"
)
MANIFEST = "jobs.json"
JOB_NAME_LABELS = ("batch.kubernetes.io/job-name", "job-name")  # the second before 1.27
MAX_FILE_BYTES = 1 << 20
Json = dict[str, Any]


class Kubernetes:
    """The Jobs of one search in Kubernetes. Implements ``Launcher``."""

    name = "Kubernetes"

    def __init__(self, notes: Notes, plan: JobPlan | None = None) -> None:
        """Prepare the launcher without calling kubectl.

        Args:
            notes: The notes of the search.
            plan: The jobs. None to look at jobs and to cancel them.
        """
        self._notes = notes
        self._plan = plan
        self._folder = notes.folder.parents[1]  # of the search
        self._pod: Json = {}  # once it is needed
        self._live: set[str] = set()  # jobs that this process has seen queued or running

    @property
    def logs(self) -> str:
        """Where the logs of jobs are."""
        return "logs by `kubectl logs job/NAME`"

    def preview(self, n: int) -> tuple[str, str]:
        """Return the manifest of ``n`` Jobs, and the command that would submit it.

        Raises:
            ClusterError: kubectl refuses the file of the pod.
            ConfigError: there is no kubectl, which that file needs.
        """
        names = name_jobs(self._folder.name, self._find_next(()), n)
        return self._render(names), shlex.join(self._submit_command())

    def start(self, n: int) -> list[str]:
        """Submit ``n`` Jobs and return their ids.

        Raises:
            ClusterError: kubectl refuses.
            ConfigError: there is no kubectl.
            CheckpointError: the manifest cannot be written.
        """
        folder = self._notes.make_folder()
        self._write_secrets()
        jobs, _ = self._ask(self._namespace)
        names = name_jobs(self._folder.name, self._find_next(jobs), n)
        replace(folder / MANIFEST, self._render(names).encode())
        try:
            _call(self._submit_command(), "the jobs")
        except ClusterError:
            # Some may have been created before one was refused, as by a quota.
            jobs, _ = self._ask(self._namespace)
            names = [name for name in names if self._is_own(jobs.get(name, {}))]
            if not names:
                raise
        ids = [identify(self._namespace, name) for name in names]
        self._live.update(ids)
        return ids

    def states(self, jobs: Collection[str]) -> dict[str, Job]:
        """Return those of the jobs that Kubernetes still knows, which is a day after their end.

        A job that was there a moment ago and is gone has been deleted by somebody.

        Raises:
            ClusterError: kubectl does not answer.
            ConfigError: there is no kubectl.
        """
        found: dict[str, Job] = {}
        for namespace in sorted({split_id(id)[0] for id in jobs}):
            found |= self._find(namespace, [id for id in jobs if split_id(id)[0] == namespace])
        for id in self._live & set(jobs) - found.keys():
            found[id] = Job(id, Phase.ENDED, DELETED, Ending.CANCELLED)
        self._live -= set(jobs)
        self._live |= {id for id, job in found.items() if job.phase is not Phase.ENDED}
        return found

    def stop(self, jobs: Collection[str]) -> None:
        """Cancel jobs. Those that have ended are left out.

        Raises:
            ClusterError: kubectl refuses.
            ConfigError: there is no kubectl.
        """
        known = self.states(jobs)
        live = [id for id, job in known.items() if job.phase is not Phase.ENDED]
        for namespace in sorted({split_id(id)[0] for id in live}):
            names = [split_id(id)[1] for id in live if split_id(id)[0] == namespace]
            command = (*_kubectl(namespace), "delete", "jobs", *names)
            _call((*command, "--ignore-not-found", "--wait=false"), "to cancel jobs")

    @property
    def _namespace(self) -> str:
        assert self._plan is not None
        return self._plan.options.get("namespace", "")

    def _submit_command(self) -> tuple[str, ...]:
        file = str(self._notes.folder / MANIFEST)
        return (*_kubectl(self._namespace), "create", "-f", file, "-o", "name")

    def _is_own(self, job: Json) -> bool:
        """Return whether a Job belongs to this search, not to another one of its name."""
        annotations = (job.get("metadata") or {}).get("annotations") or {}
        return bool(annotations.get(FOLDER) == str(self._folder))

    def _find_next(self, names: Collection[str]) -> int:
        """Return the number of the next submission, after those that are noted or there."""
        own = name_jobs(self._folder.name, 0, 1)[0].removesuffix("-0-1")
        there = [name for name in names if re.fullmatch(rf"{own}-\d+-\d+", name, re.ASCII)]
        return 1 + max(map(find_number, (*self._notes.read(), *there)), default=0)

    def _render(self, names: Collection[str]) -> str:
        return render_text(
            render_jobs(self._folder, list(names), self._namespace, self._make_pod())
        )

    def _make_pod(self) -> Json:
        """Return the pod of a worker, with what the user's file changes."""
        assert self._plan is not None
        if not self._pod:
            secrets = self._notes.folder / SECRETS if self._plan.variables else None
            pod = render_pod(self._plan, secrets, User.find())
            file = self._plan.options.get("pod", "")
            self._pod = _patch(pod, file) if file else pod
        return self._pod

    def _write_secrets(self) -> None:
        """Write the address of Redis, and copies of the files that it needs, into the folder.

        The folder is there for the workers, while other files of this host are not.
        """
        assert self._plan is not None
        variables = dict(self._plan.variables)
        for name, value in variables.items():
            if name.endswith("_FILE"):
                copy = self._notes.folder / name.lower()
                write_private(copy, _read(Path(value), f"{name}={value}"))
                variables[name] = str(copy)
        if variables:
            write_private(self._notes.folder / SECRETS, render_variables(variables).encode())

    def _find(self, namespace: str, ids: Collection[str]) -> dict[str, Job]:
        jobs, pods = self._ask(namespace)
        own = {id: jobs[name] for id in ids if (name := split_id(id)[1]) in jobs}
        without = {split_id(id)[1] for id in own} - pods.keys()
        refusals = _ask_refusals(namespace) if without else {}
        found: dict[str, Job] = {}
        for id, job in own.items():
            name = split_id(id)[1]
            owned = pods.get(name, [])
            told = describe(id, job, owned, time.time(), refusals.get(name, ""))
            failed = told.ending is Ending.FAILED
            found[id] = dataclasses.replace(
                told, log=self._keep_log(name, owned) if failed else None
            )
        return found

    def _keep_log(self, name: str, pods: list[Json]) -> Path | None:
        """Write the end of a worker's log into the folder, since its pod will be gone."""
        log, tail = self._notes.folder / f"{name}.log", find_tail(pods)
        if tail:
            write_private(log, tail.encode())
        return log if tail else None

    def _ask(self, namespace: str) -> tuple[dict[str, Json], dict[str, list[Json]]]:
        """Return the Jobs of the search, and their pods, by the name of the Job."""
        selector = select(self._folder.name)
        command = (*_kubectl(namespace), "get", "jobs,pods", "-l", selector, "-o", "json")
        return parse_answer(_call(command, "the question"))


def parse_answer(answer: str) -> tuple[dict[str, Json], dict[str, list[Json]]]:
    """Return Jobs and pods from the answer of ``kubectl get jobs,pods``, by the Job's name.

    Raises:
        ClusterError: the answer is something else.
    """
    jobs: dict[str, Json] = {}
    pods: dict[str, list[Json]] = {}
    for item in _read_items(answer):
        metadata = item.get("metadata") or {}
        if item.get("kind") == "Job":
            jobs[str(metadata.get("name"))] = item
        elif item.get("kind") == "Pod":
            labels = metadata.get("labels") or {}
            name = next((labels[label] for label in JOB_NAME_LABELS if label in labels), "")
            pods.setdefault(name, []).append(item)
    return jobs, pods


def parse_refusals(answer: str) -> dict[str, str]:
    """Return why pods could not be created, by the Job, from ``kubectl get events``.

    Raises:
        ClusterError: the answer is something else.
    """
    return {
        str((item.get("involvedObject") or {}).get("name")): str(item.get("message") or "")
        for item in _read_items(answer)
    }


def _read_items(answer: str) -> list[Json]:
    try:
        found = json.loads(answer)["items"]
        return [dict(item) for item in found]
    except (ValueError, TypeError, KeyError) as error:
        shown = " ".join(answer.split())[:100]
        raise ClusterError(f"kubectl answered {shown!r} instead of a list as JSON") from error


def _ask_refusals(namespace: str) -> dict[str, str]:
    field = "reason=FailedCreate,involvedObject.kind=Job"
    command = (*_kubectl(namespace), "get", "events", "--field-selector", field, "-o", "json")
    return parse_refusals(_call(command, "the question"))


def _kubectl(namespace: str) -> tuple[str, ...]:
    return (*KUBECTL, "--namespace", namespace) if namespace else KUBECTL


def _call(command: Collection[str], what: str, text: str = "") -> str:
    return call(list(command), what, REMEDY, text)


def _patch(pod: Json, file: str) -> Json:
    """Return a pod with what a file changes, by the rules of `kubectl patch`."""
    command = ("patch", "--local", "-f", "-", "--patch-file", file, "-o", "json")
    answer = _call(("kubectl", *command), f"pod={file}", render_text(pod))
    try:
        found: Json = json.loads(answer)
        names = [container["name"] for container in found["spec"]["containers"]]
        if CONTAINER in names and isinstance(found["metadata"], dict):
            return found
    except (ValueError, TypeError, KeyError):
        pass
    raise ClusterError(
        f"--job-option pod={file}: with it there is no longer a pod with a container "
        f"{CONTAINER!r}; write only what differs, as `metadata:` and `spec:` of a Pod"
    )


def _read(path: Path, told: str) -> bytes:
    try:
        return read_bytes(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(
            f"{told} cannot be read: {error.strerror}; correct the path, or make it readable"
        ) from error


def check(options: Mapping[str, str]) -> None:
    """Check that kubectl is there, and that it can read the file of the pod.

    Raises:
        ConfigError: it is not, or there is no such file.
        ClusterError: kubectl refuses the file.
    """
    check_programs(["kubectl"], REMEDY)
    if "pod" in options:
        _read(Path(options["pod"]), f"--job-option pod={options['pod']}")
        container = {"name": CONTAINER, "image": options["image"]}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {},
            "spec": {"containers": [container]},
        }
        _patch(pod, options["pod"])


def make(notes: Notes, plan: JobPlan | None = None) -> Kubernetes:
    """Return the launcher of a search; without a plan, one that looks at jobs and cancels them."""
    return Kubernetes(notes, plan)
