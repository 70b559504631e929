"""A launch whose workers are Jobs of a cluster that is a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from master.launchers.cluster import POLL_S, Bounds, ClusterWorkers, Demand
from master.launchers.job_plan import JobPlan
from master.launchers.kubernetes.launcher import Kubernetes
from master.launchers.kubernetes.options import parse_options
from master.launchers.noted import Notes
from tests.fake_kubectl import Cluster

OPTIONS = ("image=coarsefine:1", "claim=checkpoints")
PLENTY = Demand(200, 0)


class Fake:
    """The cluster, and the workers of a launch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cluster = Cluster(path / "cluster")
        self.cluster.install(path / "bin")
        self.root = path / "checkpoints"
        self.notes = Notes(self.root / "digits", "kubernetes")
        self.said: list[str] = []
        self.now = 0.0
        self.demand = PLENTY

    def launcher(self, *options: str, **plan: Any) -> Kubernetes:
        own = parse_options([*OPTIONS, *options])
        return Kubernetes(self.notes, JobPlan("digits", self.root, Path("data"), own, **plan))

    def workers(self, bounds: str = "2", *options: str, **plan: Any) -> ClusterWorkers:
        return ClusterWorkers(
            self.launcher(*options, **plan),
            Bounds.parse(bounds, "kubernetes"),
            self.notes,
            lambda: self.demand,
            self._lock,
            self.said.append,
            lambda: self.now,
        )

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        yield True

    def pass_time(self, workers: ClusterWorkers) -> None:
        self.now += POLL_S
        workers.poll()


def job(number: int, task: int) -> str:
    return f"coarsefine-digits-{number}-{task}"


def ended(code: int, reason: str = "Error", **more: Any) -> dict[str, Any]:
    """The status of a pod whose worker has ended."""
    terminated = {"exitCode": code, "reason": reason, **more}
    container = {"name": "worker", "state": {"terminated": terminated}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container]}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    """The status of a pod whose container cannot begin."""
    state = {"waiting": {"reason": reason, "message": message}}
    container = {"name": "worker", "state": state}
    return {"phase": "Pending", "containerStatuses": [container]}


def unscheduled(message: str) -> dict[str, Any]:
    """The status of a pod that no node takes."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {"phase": "Pending", "conditions": [condition | {"message": message}]}


def disrupted(why: str, code: int = 143, **more: Any) -> dict[str, Any]:
    """The status of a pod that had to go."""
    condition = {"type": "DisruptionTarget", "status": "True", "reason": why}
    return ended(code) | {"conditions": [condition], **more}
