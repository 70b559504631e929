"""A search whose workers are Jobs, and what a real kubectl makes of the files and manifests.

No API server is at hand: the Jobs are those of `tests/fake_kubectl.py`, which runs their containers
as processes. `kubectl kustomize` and `kubectl patch --local` need no server.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from common.errors import ConfigError
from master.launchers.cluster import ClusterError
from master.launchers.job_plan import JobPlan
from master.launchers.kubernetes.launcher import Kubernetes, check
from master.launchers.noted import Notes
from tests.fake_kubectl import Cluster
from tests.integration.commands import Place, wait_for
from tests.kubernetes_files import BASE, ROOT, VERSIONS, Json, find_mistakes, find_pods

LAUNCH = ("master", "launch", "--launcher", "kubernetes", "--stage", "all", "--workers", "2")
OPTIONS = ("--job-option", "image=coarsefine:1", "--job-option", "claim=checkpoints")
KUBECTL = shutil.which("kubectl")
PATH = os.environ["PATH"]

# A trial says that it has begun, and trains while there is a file `wait`.
LOOP = """
import time
from pathlib import Path

def train(trial):
    folder = Path(trial.hp["folder"])
    (folder / "begun").mkdir(exist_ok=True)
    (folder / "begun" / trial.id).touch()
    while (folder / "wait").exists():
        trial.beat()
        time.sleep(0.1)
    trial.report(1, val_loss=trial.hp["x"], state={})
"""
SEARCH = """
name = "digits"
task = "loop.py:train"
metric = "val_loss"
mode = "min"
[space]
x = {{ uniform = [0.0, 1.0] }}
folder = "{folder}"
[stages.coarse]
trials = 6
epochs = 1
[stragglers]
lease_s = 6
"""


class Site(Place):
    """A place with a Redis for several hosts, and a cluster of Kubernetes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.cluster = Cluster(path / "cluster")
        self.cluster.install(path / "bin")
        self.cluster.add_node()
        programs = path / "image"  # what is on the PATH of a container
        programs.mkdir()
        worker = programs / "worker"
        worker.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m worker "$@"\n')
        worker.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.path}/bin:{self.path}/image:{PATH}"
        return super().environment | {"PATH": path, "CHECKPOINT_DIR": str(self.root)}

    def command(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    here = Site(tmp_path)
    here.command("master", "redis", "start", "--host", "127.0.0.1")
    try:
        yield here
    finally:
        here.cluster.stop()
        here.stop()
        here.run("master", "redis", "stop")
        for pid in here.left_pids():
            os.kill(pid, 9)


def test_a_search_runs_in_jobs_from_its_launch_to_its_ranking(site: Site) -> None:
    site.write_search(trials=16, epochs=2)
    said = site.command(*LAUNCH, *OPTIONS)
    assert "2 jobs submitted to Kubernetes: coarsefine-digits-1-1, coarsefine-digits-1-2" in said
    assert "coarse: 16/16 trials done" in said and "fine: 8/8 trials done" in said
    assert len(site.rank("coarse")) == 16 and len(site.rank("fine")) == 8
    workers = json.loads(site.command("master", "workers", "--json"))
    assert {row["job"] for row in workers} == {"coarsefine-digits-1-1", "coarsefine-digits-1-2"}
    told = site.command("master", "workers")
    assert "search 'digits' has 2 running and 0 queued jobs in Kubernetes, with logs by" in told
    killed = site.command("master", "kill", "--stage", "coarse", "--yes")
    assert "killed 0 trials; cancelled 2 jobs" in killed
    wait_for(lambda: not site.left_pids(), "the workers to hear SIGTERM and to leave")
    assert site.cluster.jobs() == []


@pytest.mark.faults
def test_a_launch_that_is_killed_leaves_its_jobs_and_the_same_command_attaches_again(
    site: Site,
) -> None:
    """And a pod that is evicted meanwhile begins again, while its trials go on elsewhere."""
    (site.path / "loop.py").write_text(LOOP)
    (site.path / "search.toml").write_text(SEARCH.format(folder=site.path))
    (site.path / "wait").touch()
    launch = site.start(*LAUNCH, *OPTIONS, log="launch.log")
    wait_for(lambda: len(list((site.path / "begun").glob("*"))) >= 2, "two trials that train")
    launch.kill()
    evict(site, "coarsefine-digits-1-1")
    again = site.start(*LAUNCH, *OPTIONS, log="again.log")
    moved = "job coarsefine-digits-1-1 on node-1 was evicted, as when a node is drained"
    wait_for(lambda: len(site.cluster.pods("coarsefine-digits-1-1")) == 2, "another pod")
    wait_for(lambda: moved in site.command("master", "workers"), "the sentence")
    (site.path / "wait").unlink()
    assert again.wait(120) == 0
    said = site.output("again.log")
    assert "2 jobs of this search found in Kubernetes" in said and "submitted" not in said
    assert "coarse: 6/6 trials done" in said
    assert sorted(row["trial"] for row in site.rank()) == [f"coarse-000{n}" for n in range(6)]


def evict(site: Site, job: str) -> None:
    """End the worker of a job as an eviction does."""
    (pod,) = site.cluster.pods(job)
    process = pod["status"]["process"]
    os.kill(int(Path(f"{process}.pid").read_text()), 15)
    wait_for(Path(f"{process}.exit").exists, "the end of the worker")
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    site.cluster.turn(job, phase="Failed", conditions=[condition])


@pytest.mark.faults
def test_a_worker_that_cannot_begin_is_told_with_the_end_of_its_log(site: Site) -> None:
    site.write_search()
    (site.path / "image" / "worker").write_text("#!/bin/sh\necho no torch here >&2; exit 3\n")
    launch = site.start(*LAUNCH, *OPTIONS, log="launch.log")
    wait_for(
        lambda: "5 jobs have failed in a row" in site.output("launch.log"),
        "the launch to give up",
    )
    said = site.output("launch.log")
    assert "ended with exit status 3; its log is " in said
    assert re.search(r"The log of coarsefine-digits-\d-\d ends with\n    no torch here", said)
    launch.kill()


# -- a real kubectl, without a server --------------------------------------------------------------


@pytest.fixture
def real() -> str:
    """A kubectl whose kustomize knows components."""
    if KUBECTL is None:  # Debian's is too old for components, so CI cannot install one
        pytest.skip("no kubectl; install it to render deploy/kubernetes")
    return KUBECTL


def render(kubectl: str, folder: Path) -> list[Json]:
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("version", VERSIONS)
def test_kubectl_renders_the_base(real: str, version: str) -> None:
    rendered = render(real, BASE)
    assert len(rendered) == 8
    for resource in rendered:
        assert find_mistakes(resource, version) == ""
        assert resource["metadata"].get("namespace", "coarsefine") == "coarsefine"


def read_overlay() -> str:
    """The overlay of docs/clusters.md."""
    page = (ROOT / "docs" / "clusters.md").read_text()
    (text,) = re.findall(r"```yaml\n(# my-cluster/kustomization.yaml.*?)```", page, re.DOTALL)
    return str(text)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubectl_renders_the_overlay_of_the_page(real: str, version: str, tmp_path: Path) -> None:
    mine = tmp_path / "my-cluster"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(read_overlay())
    shutil.copytree(BASE.parent, tmp_path / "deploy")
    rendered = render(real, mine)
    assert not [mistake for each in rendered if (mistake := find_mistakes(each, version))]
    kinds = {each["kind"]: each for each in rendered}
    assert kinds["PersistentVolumeClaim"]["spec"]["storageClassName"] == "nfs"
    (trigger,) = kinds["ScaledJob"]["spec"]["triggers"]
    assert re.fullmatch(r"cf:\{[0-9a-f]{16}\}:pending", trigger["metadata"]["listName"])
    assert set(trigger["metadata"]["listName"]) != set("cf:{0}:pending")
    images = [
        container["image"]
        for _, pod in find_pods(rendered)
        for container in [*pod["containers"], *pod.get("initContainers", [])]
    ]
    assert "coarsefine:latest" not in images and len(set(images)) == 2


def launcher(root: Path, pod: Path) -> Kubernetes:
    options = {"image": "coarsefine:1", "claim": "checkpoints", "pod": str(pod)}
    plan = JobPlan("digits", root, Path("data"), options)
    return Kubernetes(Notes(root / "digits", "kubernetes"), plan)


POD = """
metadata:
  annotations: {team: mine}
spec:
  nodeSelector: {gpu: h100}
  tolerations:
    - {key: gpu, operator: Exists, effect: NoSchedule}
  containers:
    - name: worker
      env: [{name: REDIS_URL, value: "redis://worker@coarsefine-redis:6379/0"}]
      resources: {limits: {memory: 64Gi}}
      volumeMounts: [{name: data, mountPath: /data}]
  volumes:
    - {name: data, nfs: {server: files, path: /data}}
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_kubectl_merges_the_file_of_a_pod(real: str, version: str, tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(POD)
    check({"image": "coarsefine:1", "pod": str(tmp_path / "pod.yaml")})
    text, _ = launcher(tmp_path, tmp_path / "pod.yaml").preview(2)
    for job in json.loads(text)["items"]:
        assert find_mistakes(job, version) == ""
        template = job["spec"]["template"]
        (container,) = template["spec"]["containers"]
        assert template["metadata"]["annotations"] == {"team": "mine"}
        assert template["metadata"]["labels"]["app.kubernetes.io/instance"] == "digits"
        assert container["resources"]["limits"] == {"cpu": "1", "memory": "64Gi"}
        names = {each["name"]: each.get("value") for each in container["env"]}
        assert names["COARSEFINE_JOB"] == job["metadata"]["name"] and "HOME" in names
        volumes = {each["name"] for each in template["spec"]["volumes"]}
        assert volumes == {"data", "scratch", "shared-memory", "checkpoints"}


def test_kubectl_refuses_a_file_that_is_no_pod(real: str, tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    for text in ("spec: [b", "- a"):
        file.write_text(text)
        with pytest.raises(ClusterError, match=r"kubectl refused pod=.*pod\.yaml: "):
            check({"image": "coarsefine:1", "pod": str(file)})
    for text in ("spec: {containers: 3}", "metadata: 3", "spec: null", "spec: {containers: [{}]}"):
        file.write_text(text)
        with pytest.raises(ClusterError, match=r"no longer a pod with a container 'worker'|merge"):
            check({"image": "coarsefine:1", "pod": str(file)})
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        check({"image": "coarsefine:1", "pod": str(tmp_path / "other.yaml")})
