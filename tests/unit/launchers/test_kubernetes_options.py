"""The options of Jobs of Kubernetes, and the manifest that comes of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.folder.records import SearchFolder
from common.search.stage import Resources
from master.launchers.job_plan import JobPlan, render_variables
from master.launchers.kubernetes.manifest import User, name_jobs, render_pod
from master.launchers.kubernetes.options import (
    count_gpus,
    parse_options,
    read_gpus,
    read_seconds,
    split_claim,
)
from master.run.jobs import dry_run, read_job_options

NEEDED = ["image=coarsefine:1", "claim=checkpoints"]
ROOT = Path("/shared/checkpoints")


def pod(*options: str, secrets: Path | None = None, uid: int = 1000, **plan: Any) -> dict[str, Any]:
    own = parse_options([*NEEDED, *options])
    jobs = JobPlan("digits", ROOT, Path("/data"), own, **plan)
    return render_pod(jobs, secrets, User(uid, 100, (27,)))


def container(*options: str, **plan: Any) -> dict[str, Any]:
    found: dict[str, Any] = pod(*options, **plan)["spec"]["containers"][0]
    return found


def script(*options: str, **plan: Any) -> str:
    text: str = container(*options, **plan)["command"][2]
    return text


def test_options_are_words_with_values_and_the_last_counts() -> None:
    found = parse_options([*NEEDED, "memory=8Gi", "--memory=16Gi"])
    assert found == {"image": "coarsefine:1", "claim": "checkpoints", "memory": "16Gi"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["Image=x"], "not an option of Kubernetes jobs; use image, claim"),
        (["partition=gpu"], "not an option of Kubernetes jobs.*pod=FILE"),
        ([*NEEDED, "memory=lots"], "memory=lots: not a value of memory; use memory=16Gi"),
        ([*NEEDED, "cpu="], "cpu=: not a value of cpu; use cpu=4"),
        ([*NEEDED, "gpus=0"], "gpus=0: not a value of gpus; use gpus=1"),
        ([*NEEDED, "time=0"], "time=0: not a value of time"),
        ([*NEEDED, "namespace=My_Own"], "namespace=My_Own: not a value"),
        (["image=x", "claim=a:b"], "claim=a:b: not a value of claim"),
        (["image=x", "claim=A"], "claim=A: not a value of claim"),
        (["claim=x"], "no image; name the one of the workers with --job-option image="),
        (["image=x"], "name its PersistentVolumeClaim with --job-option claim="),
    ],
)
def test_what_is_no_option_or_is_missing_is_told_with_an_example(
    words: list[str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_options(words)


def test_a_file_of_the_pod_may_bring_the_folder_in_place_of_a_claim() -> None:
    assert parse_options(["image=x", "pod=pod.yaml"]) == {"image": "x", "pod": "pod.yaml"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("4:00:00", 14400),
        ("1-12", 129_600),
        ("2-0:30:10", 174_610),
    ],
)
def test_a_time_limit_is_written_as_for_slurm(text: str, seconds: int) -> None:
    assert read_seconds({"time": text}) == seconds


def test_gpus_are_those_of_nvidia_unless_another_resource_is_named() -> None:
    assert read_gpus({"gpus": "2"}) == {"nvidia.com/gpu": "2"}
    assert read_gpus({"gpus": "amd.com/gpu:4"}) == {"amd.com/gpu": "4"} and read_gpus({}) == {}
    assert count_gpus({"gpus": "amd.com/gpu:4"}) == 4 and count_gpus({}) == 0


def test_a_claim_is_mounted_at_the_checkpoint_folder_or_where_it_says() -> None:
    assert split_claim("a", ROOT) == ("a", ROOT)
    assert split_claim("a:/shared", ROOT) == ("a", Path("/shared"))
    mounts = container("claim=a:/shared")["volumeMounts"]
    assert {"name": "checkpoints", "mountPath": "/shared"} in mounts


def test_the_worker_takes_the_place_of_the_shell_and_leaves_when_idle() -> None:
    *_, last = script("time=2:00:00", "gpus=2", gpus_per_trial=2).splitlines()
    assert last == (
        "exec worker start --search digits --checkpoints /shared/checkpoints --data-dir /data "
        "--device all --idle-exit 60 --stop-grace 25 --gpus-per-trial 2 --max-hours 2"
    )
    spec = pod("time=2:00:00")["spec"]
    assert spec["activeDeadlineSeconds"] == 7200
    assert spec["terminationGracePeriodSeconds"] > 25


def test_a_shell_runs_the_setup_and_the_address_of_the_pod_comes_first(tmp_path: Path) -> None:
    secrets = tmp_path / "environment"
    secrets.write_text(render_variables({"REDIS_URL": "redis://:a'b $c@head:6379/0"}))
    text = script(setup="A='set up'", secrets=secrets, folder=tmp_path, umask=0o027)
    lines = text.splitlines()
    shown = "\n".join([*lines[:-1], 'echo "$A $REDIS_URL $(pwd) $(umask)"'])
    for environ, url in (({}, "redis://:a'b $c@head:6379/0"), ({"REDIS_URL": "own"}, "own")):
        done = subprocess.run(
            ["sh", "-c", shown], env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"set up {url} {tmp_path} 0027\n"


def test_where_the_folder_of_the_launch_is_not_there_the_worker_runs_in_tmp() -> None:
    lines = script(folder=Path("/not/there")).splitlines()
    done = subprocess.run(
        ["sh", "-c", "\n".join([*lines[:-1], "pwd"])], capture_output=True, text=True, check=True
    )
    assert done.stdout == "/tmp\n"


def test_a_pod_has_no_rights_that_it_does_not_need() -> None:
    spec, own = pod()["spec"], container()
    assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
    assert own["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in own["volumeMounts"]} == {
        "/tmp",
        "/dev/shm",
        "/shared/checkpoints",
    }


def test_a_pod_has_what_it_asks_for_and_no_more() -> None:
    own = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    asked = container("cpu=4", "memory=16Gi", "gpus=1")["resources"]
    assert asked == {"requests": own, "limits": own}
    assert container()["resources"]["requests"] == {"cpu": "1", "memory": "4Gi"}


def test_names_are_those_that_kubernetes_allows() -> None:
    assert name_jobs("My_Digits.v2", 3, 2) == [
        "coarsefine-my-digits-v2-3-1",
        "coarsefine-my-digits-v2-3-2",
    ]
    assert len(name_jobs("x" * 64, 999_999, 1)[0]) <= 63


def test_a_dry_run_prints_the_manifest_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = read_job_options("kubernetes", "2", NEEDED, None, True)
    assert job is not None
    folder, told = SearchFolder(tmp_path, "digits"), list[str]()
    assert dry_run(folder, Path("data"), job, "redis://:hush@head/0", told.append) == 0
    out = capsys.readouterr().out
    names = [item["metadata"]["name"] for item in json.loads(out)["items"]]
    assert names == ["coarsefine-digits-1-1", "coarsefine-digits-1-2"] and "hush" not in out
    file = f"{tmp_path}/digits/logs/kubernetes/jobs.json"
    assert f"kubectl --request-timeout=30s create -f {file} -o name" in told[0]
    assert list(tmp_path.iterdir()) == []


def test_a_job_has_the_gpus_that_a_trial_needs(tmp_path: Path) -> None:
    job = read_job_options("kubernetes", "2", [*NEEDED, "gpus=1"], None, True)
    assert job is not None
    with pytest.raises(ConfigError, match="a job has 1 GPU; add --job-option gpus=2"):
        dry_run(SearchFolder(tmp_path, "digits"), Path("data"), job, None, print, Resources(gpus=2))
