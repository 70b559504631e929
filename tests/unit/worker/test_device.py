from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.errors import ConfigError
from common.search.trial import WorkerInfo
from worker.training.compute.device import (
    Cores,
    own_cores,
    own_device,
    share_devices,
    thread_share,
)


def cgroup(root: Path, *limits: tuple[str, str, str]) -> tuple[Path, Path]:
    """Fake cgroup folders: lines of /proc/self/cgroup, and the quotas by folder and file."""
    for folder, file, text in limits:
        (root / "fs" / folder).mkdir(parents=True, exist_ok=True)
        (root / "fs" / folder / file).write_text(f"{text}\n")
    return root / "fs", root / "own"


@pytest.mark.parametrize(
    ("affinity", "cpu_max", "cores"),
    [
        (8, "max 100000", 8),
        (8, "200000 100000", 2),
        (8, "150000 100000", 2),
        (8, "50000 100000", 1),
        (1, "400000 100000", 1),
        (4, "max", 4),
    ],
)
def test_cores_are_bounded_by_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, affinity: int, cpu_max: str, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(affinity)))
    root, own = cgroup(tmp_path, (".", "cpu.max", cpu_max))
    own.write_text("0::/\n")
    assert own_cores(root, own).count == cores


V1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


@pytest.mark.parametrize(
    ("line", "limits", "cores"),
    [
        ("0::/a/b", [("a", "cpu.max", "300000 100000"), ("a/b", "cpu.max", "max 100000")], 3),
        ("0::/a/b", [("a", "cpu.max", "600000 100000"), ("a/b", "cpu.max", "200000 100000")], 2),
        ("0::/of/the/host", [(".", "cpu.max", "400000 100000")], 4),
        ("0::/../../x", [(".", "cpu.max", "400000 100000")], 4),
        (
            "4:cpu,cpuacct:/j",
            [("cpu,cpuacct/j", V1[0], "500000"), ("cpu,cpuacct/j", V1[1], "100000")],
            5,
        ),
        ("4:cpu:/j", [("cpu/j", V1[0], "-1"), ("cpu/j", V1[1], "100000")], 8),
        ("5:cpuset:/j", [("cpuset/j", "cpu.max", "100000 100000")], 8),
        ("nonsense", [(".", "cpu.max", "? ?")], 8),
        ("0::/", [(".", "cpu.max", "100000 0")], 8),
    ],
)
def test_a_quota_counts_wherever_above_the_process_it_is(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    line: str,
    limits: list[tuple[str, str, str]],
    cores: int,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    root, own = cgroup(tmp_path, *limits)
    own.write_text(f"1:name=systemd:/\n{line}\n")
    assert own_cores(root, own).count == cores
    assert own_cores(root, tmp_path / "none").count == 8


def test_eight_jobs_with_cores_of_their_own_use_all_of_these(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By cpusets, as Slurm gives them, and by quotas, as Kubernetes does."""
    pinned = []
    for job in range(8):
        cores = set(range(8 * job, 8 * job + 8))
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: cores)
        pinned.append(own_cores(tmp_path, tmp_path / "none"))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    limited = []
    for job in range(8):
        root, own = cgroup(tmp_path, (f"pod{job}", "cpu.max", "800000 100000"))
        own.write_text(f"0::/pod{job}\n")
        limited.append(own_cores(root, own))
    for jobs in (pinned, limited):
        beside = [worker(cores=one.pool) for one in jobs]
        assert [thread_share(beside, "here", one) for one in jobs] == [8] * 8
        assert thread_share([*beside, beside[0]], "here", jobs[0]) == 4
    whole = own_cores(tmp_path, tmp_path / "none")
    assert thread_share([worker(cores=whole.pool)] * 8, "here", whole) == 8


def worker(
    machine: str = "here", device: str = "cpu", state: str = "idle", cores: str = ""
) -> WorkerInfo:
    return WorkerInfo("w", "host", 1, device, state=state, machine=machine, cores=cores)


FOUR = Cores(4, "f")


def test_workers_of_one_machine_share_its_cores() -> None:
    assert thread_share([], "here", FOUR) == 4
    assert thread_share([worker(), worker()], "here", FOUR) == 2
    assert thread_share([worker()] * 9, "here", FOUR) == 1
    others = [worker("there"), worker(device="cuda:0"), worker(state="lost")]
    assert thread_share([worker(), *others], "here", FOUR) == 4
    assert (
        thread_share([worker()], "here", FOUR, together=2) == 2
    )  # the other has been started, but has not announced itself yet


@pytest.mark.parametrize("wanted", ["tpu", "cuda", "cuda:x", "cuda:99", "all"])
def test_a_device_that_is_not_there_is_named(wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted), own_device(wanted):
        pass


def test_the_cpu_is_there_for_all() -> None:
    with own_device("cpu") as one, own_device("cpu") as two:
        assert one.name == two.name == "cpu" and one.model


def install_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int) -> None:
    """Make torch say that there are GPUs, and keep their locks in a folder of the test."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}")
    )


def test_workers_of_one_host_take_different_gpus_and_then_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_gpus(monkeypatch, tmp_path, 2)
    with own_device("auto") as first, own_device("auto") as second, own_device("auto") as third:
        assert [d.name for d in (first, second, third)] == ["cuda:0", "cuda:1", "cpu"]
        with pytest.raises(ConfigError, match="another worker"), own_device("cuda:1"):
            pass
    with own_device("cuda:1") as again:
        assert again.name == "cuda:1" and again.model == "a GPU"  # given back


def test_workers_with_several_gpus_each_share_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_gpus(monkeypatch, tmp_path, 5)
    with own_device("cuda:1") as one, own_device("auto", 2) as two, own_device("auto", 2) as three:
        assert [d.name for d in (one, two, three)] == ["cuda:1", "cuda:0,cuda:2", "cuda:3,cuda:4"]
        assert two.gpus == (0, 2) and two.torch_device == torch.device("cuda", 0)
        with pytest.raises(ConfigError, match="0 of this machine's 5 CUDA devices are free"):
            own_device("auto", 2).__enter__()
    with own_device("cuda:4, cuda:0") as named:
        assert named.gpus == (4, 0)
        with pytest.raises(ConfigError, match="another worker of this host holds cuda:4"):
            own_device("cuda:3,cuda:4").__enter__()
        with own_device("cuda:3") as again:
            assert again.gpus == (3,)  # a worker that did not get all of its GPUs keeps none


@pytest.mark.parametrize(
    ("wanted", "n_gpus", "shares"),
    [
        ("auto", 1, ["auto"]),
        ("auto", 2, ["auto"]),
        ("cpu", 1, ["cpu"]),
        ("cuda:2", 1, ["cuda:2"]),
        ("all", 1, ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4"]),
        ("all", 2, ["cuda:0,cuda:1", "cuda:2,cuda:3"]),
        ("all", 5, ["cuda:0,cuda:1,cuda:2,cuda:3,cuda:4"]),
        ("cuda:1,cuda:4", 1, ["cuda:1", "cuda:4"]),
        ("cuda:4,cuda:0", 2, ["cuda:4,cuda:0"]),
        ("cuda:0,cuda:1,cuda:2,cuda:3", 2, ["cuda:0,cuda:1", "cuda:2,cuda:3"]),
    ],
)
def test_the_devices_are_shared_by_as_many_workers_as_they_suffice_for(
    wanted: str, n_gpus: int, shares: list[str]
) -> None:
    assert share_devices(wanted, n_gpus, 5) == shares


@pytest.mark.parametrize(
    ("wanted", "n_gpus", "count", "reason"),
    [
        ("cpu", 2, 4, "--gpus-per-trial 2: --device cpu has none; leave it out"),
        ("all", 1, 0, "--device all: this machine has no CUDA device"),
        ("all", 2, 1, "--gpus-per-trial 2: --device all is 1 CUDA device here"),
        ("cuda:0", 2, 4, "--gpus-per-trial 2: --device cuda:0 is 1 CUDA device here"),
        ("cuda:0,cuda:1,cuda:2", 2, 4, "3 devices cannot be shared by workers of 2"),
        ("cuda:0,cuda:0", 2, 4, "names cuda:0 twice"),
        ("cuda:0,cuda:4", 2, 4, "this machine has 4 CUDA devices"),
        ("cuda:0,cpu", 1, 4, "not a device; use auto, cpu, cuda:N, all, or several"),
        ("cuda:0,", 1, 4, "not a device"),
    ],
)
def test_devices_that_are_not_there_or_too_few_are_refused(
    wanted: str, n_gpus: int, count: int, reason: str
) -> None:
    with pytest.raises(ConfigError) as told:
        share_devices(wanted, n_gpus, count)
    assert reason in str(told.value) and "\n" not in str(told.value)


def test_several_gpus_are_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="--gpus-per-trial 2: this machine has no CUDA device"):
        own_device("auto", 2).__enter__()
