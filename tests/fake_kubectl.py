"""A `kubectl` for tests, with a cluster that is a folder: run as a program, it stands in for it.

The cluster holds Jobs, pods and events as the API has them, and does what the Job controller does:
it makes a pod for a Job, another one for a pod that was disrupted, and ends the Job with its pod.
Tests change the states of pods with `Cluster`. If the cluster has a node, pods run as processes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Json = dict[str, Any]
NODE = "node-1"
CURRENT_NAMESPACE = "default"


class Cluster:
    """The folder of a cluster.

    ``refuse`` and ``away`` are files with what kubectl then says. ``quota`` has the most Jobs that
    there may be, and an empty ``blind`` lets the next `get` see nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, programs: Path) -> None:
        """Write a program `kubectl` that uses this cluster."""
        self.folder.mkdir(exist_ok=True)
        programs.mkdir(exist_ok=True)
        program = programs / "kubectl"
        words = (sys.executable, "-I", "-S", __file__, str(self.folder))
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        program.chmod(0o755)

    def add_node(self) -> None:
        """Let pods run from now on, as processes of this machine."""
        (self.folder / "node").touch()

    @property
    def node(self) -> Path | None:
        """The folder of the processes of pods; None where there is no node."""
        return self.folder if (self.folder / "node").exists() else None

    @contextmanager
    def change(self) -> Iterator[Json]:
        """Read everything, and write it when the block ends."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self.folder / "cluster.json"
            state = json.loads(file.read_text()) if file.exists() else {}
            state = {"jobs": {}, "pods": {}, "events": [], "made": 0} | state
            yield state
            file.write_text(json.dumps(state))

    def jobs(self) -> list[str]:
        """The names of the Jobs, behind their namespace if it is not the current one."""
        with self.change() as state:
            return [name.removeprefix(f"{CURRENT_NAMESPACE}/") for name in state["jobs"]]

    def pods(self, job: str) -> list[Json]:
        """The pods of a Job, from the oldest to the newest."""
        with self.change() as state:
            return [pod for pod in state["pods"].values() if _owner(pod) == _full(job)]

    def turn(self, job: str, **status: Any) -> None:
        """Give the newest pod of a Job another status, on the node. The next `get` acts on it."""
        with self.change() as state:
            pod = [pod for pod in state["pods"].values() if _owner(pod) == _full(job)][-1]
            if status.get("phase") != "Pending" or "containerStatuses" in status:
                pod["spec"]["nodeName"] = NODE
            pod["status"] = status

    def refuse_pods(self, job: str, message: str) -> None:
        """Let a Job have no pod, as where a quota is used up."""
        with self.change() as state:
            kept = {name: pod for name, pod in state["pods"].items() if _owner(pod) != _full(job)}
            state["pods"] = kept
            involved = {"kind": "Job", "name": job}
            event = {"kind": "Event", "reason": "FailedCreate", "message": message}
            state["events"].append(event | {"involvedObject": involved})

    def delete(self, job: str) -> None:
        """Remove a Job and its pods, as `kubectl delete job` does."""
        with self.change() as state:
            _delete(state, _full(job))

    def stop(self) -> None:
        """End the processes of all pods."""
        with self.change() as state:
            for pod in state["pods"].values():
                _end(pod, signal.SIGKILL)


def _full(name: str) -> str:
    return name if "/" in name else f"{CURRENT_NAMESPACE}/{name}"


def _owner(pod: Json) -> str:
    metadata = pod["metadata"]
    return f"{metadata['namespace']}/{metadata['labels']['batch.kubernetes.io/job-name']}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _holds(thing: Json, kind: str) -> bool:
    conditions = thing.get("status", {}).get("conditions", [])
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)


def _control(state: Json, node: Path | None) -> None:
    """Do what the Job controller does, and on a node what the kubelet does."""
    for pod in state["pods"].values():
        _watch(pod)
    for name, job in state["jobs"].items():
        if _holds(job, "Complete") or _holds(job, "Failed") or job["spec"].get("suspend"):
            continue
        pods = [pod for pod in state["pods"].values() if _owner(pod) == name]
        last = pods[-1] if pods else None
        refused = any(each["involvedObject"]["name"] in name for each in state["events"])
        if (last is None and not refused) or (last and _is_ignored(job, last)):
            _make_pod(state, name, job, node)
        elif last and last["status"]["phase"] == "Succeeded":
            _finish(job, "Complete", "CompletionsReached")
        elif last and last["status"]["phase"] == "Failed":
            _finish(job, "Failed", "BackoffLimitExceeded")


def _is_ignored(job: Json, pod: Json) -> bool:
    """Whether the failure of a pod does not count, by the policy of its Job."""
    if pod["status"]["phase"] != "Failed":
        return False
    rules = job["spec"].get("podFailurePolicy", {}).get("rules", [])
    return any(
        rule["action"] == "Ignore" and _holds(pod, condition["type"])
        for rule in rules
        for condition in rule.get("onPodConditions", [])
    )


def _finish(job: Json, kind: str, reason: str) -> None:
    message = "Job has reached the specified backoff limit" if kind == "Failed" else ""
    condition = {"type": kind, "status": "True", "reason": reason, "message": message}
    job.setdefault("status", {}).setdefault("conditions", []).append(condition)


def _make_pod(state: Json, name: str, job: Json, node: Path | None) -> None:
    template = job["spec"]["template"]
    state["made"] += 1
    own = name.partition("/")[2]
    pod: Json = json.loads(json.dumps(template)) | {"apiVersion": "v1", "kind": "Pod"}
    pod["metadata"] |= {
        "name": f"{own}-{state['made']:05d}",
        "namespace": name.partition("/")[0],
        # Each is a second younger than the one before, as where a pod needs a moment to end.
        "creationTimestamp": f"2026-01-01T00:{state['made'] // 60:02d}:{state['made'] % 60:02d}Z",
    }
    pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] = own
    pod["status"] = {"phase": "Pending"}
    state["pods"][f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"] = pod
    if node is not None:
        _run(pod, node)


def _run(pod: Json, node: Path) -> None:
    """Start the container of a pod as a process, whose exit status goes into a file."""
    container = pod["spec"]["containers"][0]
    environ = {each["name"]: each["value"] for each in container.get("env", [])}
    path = node / pod["metadata"]["name"]
    # The shell between must outlive the signal that the container gets.
    command = f"trap : TERM; {shlex.join(container['command'])} & echo $! >{path}.pid; "
    command += f"while wait $!; s=$?; kill -0 $! 2>/dev/null; do :; done; echo $s >{path}.exit"
    with Path(f"{path}.log").open("w") as log:
        subprocess.Popen(
            ["bash", "-c", command],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
            | environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    pod["spec"]["nodeName"] = NODE
    pod["status"] = {"phase": "Running", "process": str(path)}


def _watch(pod: Json) -> None:
    """Note the exit of a process."""
    process = pod["status"].get("process")
    if not process or pod["status"]["phase"] != "Running" or not Path(f"{process}.exit").exists():
        return
    code = int(Path(f"{process}.exit").read_text() or 0)
    terminated: Json = {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}
    if code:
        terminated["message"] = Path(f"{process}.log").read_text()[-2048:]
    container = {"name": pod["spec"]["containers"][0]["name"], "state": {"terminated": terminated}}
    pod["status"] |= {
        "phase": "Failed" if code else "Succeeded",
        "containerStatuses": [container],
    }


def _end(pod: Json, number: int) -> None:
    process = pod["status"].get("process")
    if process and not Path(f"{process}.exit").exists():
        with suppress(OSError, ValueError):
            os.kill(int(Path(f"{process}.pid").read_text()), number)


def _delete(state: Json, name: str) -> bool:
    for key, pod in list(state["pods"].items()):
        if _owner(pod) == name:
            _end(pod, signal.SIGTERM)
            del state["pods"][key]
    return state["jobs"].pop(name, None) is not None


def _merge(one: Any, other: Any) -> Any:
    """Merge as `kubectl patch` does: tables by key, and lists by the names of their entries."""
    if isinstance(one, dict) and isinstance(other, dict):
        both = {key: _merge(one[key], value) for key, value in other.items() if key in one}
        return one | other | both
    if isinstance(one, list) and isinstance(other, list):
        if not all(isinstance(each, dict) and "name" in each for each in [*one, *other]):
            return other
        names = {each["name"]: each for each in other}
        merged = [_merge(each, names.pop(each["name"], {})) for each in one]
        return [*names.values(), *merged]
    return other


def _fail(message: str) -> None:
    print(message.strip(), file=sys.stderr)
    sys.exit(1)


def _create(cluster: Cluster, state: Json, namespace: str, file: str) -> None:
    limit = cluster.folder / "quota"
    for job in json.loads(Path(file).read_text())["items"]:
        metadata = job["metadata"]
        if metadata.get("namespace", namespace) != namespace:
            _fail("error: the namespace from the provided object does not match the namespace")
        name = f"{namespace}/{metadata['name']}"
        said = f'Error from server (%s): jobs.batch "{metadata["name"]}" '
        trouble = ""
        if name in state["jobs"]:
            trouble = said % "AlreadyExists" + "already exists"
        elif limit.exists() and len(state["jobs"]) >= int(limit.read_text()):
            trouble = said % "Forbidden" + "is forbidden: exceeded quota: jobs"
        if trouble:
            print(trouble, file=sys.stderr)
            state["failed"] = True
            continue
        metadata |= {"namespace": namespace, "creationTimestamp": _now()}
        state["jobs"][name] = job
        print(f"job.batch/{metadata['name']}")
    _control(state, cluster.node)


def _get(cluster: Cluster, state: Json, namespace: str, words: list[str]) -> None:
    _control(state, cluster.node)
    if words[0] == "events":
        items = state["events"]
    else:
        wanted = dict(pair.split("=") for pair in words[words.index("-l") + 1].split(","))
        everything = [*state["jobs"].values(), *state["pods"].values()]
        items = [
            item
            for item in everything
            if item["metadata"]["namespace"] == namespace
            and wanted.items() <= item["metadata"]["labels"].items()
        ]
    blind = cluster.folder / "blind"
    if blind.exists() and not blind.read_text():  # the first question sees nothing
        blind.write_text("asked")
        items = []
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def main(folder: str, *words: str) -> None:
    cluster, rest = Cluster(Path(folder)), [w for w in words if not w.startswith("--request-")]
    with (cluster.folder / "calls").open("a") as calls:
        calls.write(f"{shlex.join(words)}\n")
    namespace = CURRENT_NAMESPACE
    if "--namespace" in rest:
        at = rest.index("--namespace")
        namespace = rest[at + 1]
        del rest[at : at + 2]
    verb, *rest = rest
    if verb == "patch":
        file = Path(rest[rest.index("--patch-file") + 1])
        try:
            print(json.dumps(_merge(json.load(sys.stdin), json.loads(file.read_text()))))
        except ValueError:
            _fail('error: unable to parse "": yaml: did not find expected node content')
        return
    if (cluster.folder / "away").exists():
        _fail((cluster.folder / "away").read_text())
    with cluster.change() as state:
        if verb == "create":
            if (cluster.folder / "refuse").exists():
                _fail((cluster.folder / "refuse").read_text())
            _create(cluster, state, namespace, rest[rest.index("-f") + 1])
        elif verb == "get":
            _get(cluster, state, namespace, rest)
        elif verb == "delete":
            for name in (word for word in rest[1:] if not word.startswith("-")):
                if not _delete(state, f"{namespace}/{name}") and "--ignore-not-found" not in rest:
                    _fail(f'Error from server (NotFound): jobs.batch "{name}" not found')
        else:
            _fail(f'error: unknown command "{verb}"')
        failed = state.pop("failed", False)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
