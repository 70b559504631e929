from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.errors import ConfigError
from common.search.trial import WorkerInfo
from worker.run.start import refuse_shared
from worker.training.compute import device
from worker.training.compute.device import (
    Cores,
    own_cores,
    own_device,
    share_devices,
    thread_share,
    use_device,
)
from worker.training.math.noise import seed_generators


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
    monkeypatch.setattr(device, "LOCKS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}")
    )


def test_workers_of_one_host_take_different_gpus_and_none_falls_back_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_gpus(monkeypatch, tmp_path, 2)
    with own_device("auto") as first, own_device("auto") as second:
        assert [d.name for d in (first, second)] == ["cuda:0", "cuda:1"]
        with pytest.raises(ConfigError) as told:
            own_device("auto").__enter__()
        assert str(told.value) == (
            "--device auto: other workers of this host hold all of its 2 CUDA devices; stop one, "
            "or use --device cpu"
        )
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


def install_driver(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *nodes: str, cuda: str | None, hip: str | None
) -> None:
    """Make it a machine whose torch, built for CUDA or HIP or neither, finds no device."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for node in nodes:
        (folder / node).touch()

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\nand more")

    monkeypatch.setattr(device, "DEVICES", folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)


@pytest.mark.parametrize(
    ("nodes", "cuda", "hip", "gpu"),
    [
        (["nvidia0", "nvidiactl"], "12.8", None, "nvidia0"),
        (["kfd"], None, "6.4", "kfd"),
    ],
)
def test_a_gpu_that_does_not_start_is_refused_with_torchs_reason(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    nodes: list[str],
    cuda: str | None,
    hip: str | None,
    gpu: str,
) -> None:
    install_driver(monkeypatch, tmp_path, *nodes, cuda=cuda, hip=hip)
    with pytest.raises(ConfigError) as told:
        own_device("auto").__enter__()
    assert str(told.value) == (
        f"--device auto: there is a GPU ({tmp_path / gpu}), and torch cannot use it: The NVIDIA "
        "driver on your system is too old; mend that, or train on the CPU with --device cpu"
    )
    with own_device("cpu") as chosen:
        assert chosen.name == "cpu", "it was asked for"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with own_device("auto") as hidden:
        assert hidden.name == "cpu" and not hidden.note, "the user hides the GPUs"


@pytest.mark.parametrize(
    ("nodes", "cuda", "note"),
    [
        (["nvidia0"], None, "is a GPU, and this torch is built for CPUs: training on the CPU"),
        (["kfd"], "12.8", ""),
        ([], "12.8", ""),
        (["kfd"], None, ""),
        (["nvidiactl"], "12.8", ""),
    ],
)
def test_without_a_gpu_that_this_torch_could_use_the_cpu_trains(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: list[str], cuda: str | None, note: str
) -> None:
    install_driver(monkeypatch, tmp_path, *nodes, cuda=cuda, hip=None)
    with own_device("auto") as chosen:
        assert chosen.name == "cpu" and note in chosen.note and bool(note) == bool(chosen.note)


def test_locks_are_those_of_all_users_whatever_their_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Path("/tmp") == device.LOCKS, "one folder of the host, and no variable of a user"
    install_gpus(monkeypatch, tmp_path, 1)
    before = os.umask(0o077)
    try:
        with own_device("cuda:0"):
            (lock,) = tmp_path.iterdir()
            assert lock.name == "coarsefine-GPU-0.lock" and lock.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)
    lock.chmod(0o444)  # as of another user
    with own_device("cuda:0"), pytest.raises(ConfigError, match="another worker of this host"):
        own_device("cuda:0").__enter__()


def test_slices_of_one_gpu_are_owned_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_gpus(monkeypatch, tmp_path, 1)  # torch sees one, and knows the id of the whole GPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-8f6a/1/0")
    with own_device("auto") as one:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-8f6a/2/0")
        with own_device("auto") as two:
            assert one.ids == ("MIG-GPU-8f6a/1/0",) and two.ids == ("MIG-GPU-8f6a/2/0",)
            with pytest.raises(ConfigError, match="hold its CUDA device"):
                own_device("auto").__enter__()


def install_two_generators(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Make torch have two GPUs, each with a generator; the seeds by device."""
    seeds, current = dict[int, int](), [0]

    class Current:
        def __init__(self, one: torch.device) -> None:
            self.index = one.index

        def __enter__(self) -> None:
            self.before, current[0] = current[0], self.index

        def __exit__(self, *_: object) -> None:
            current[0] = self.before

    def choose(one: torch.device) -> None:
        current[0] = one.index

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "set_device", choose)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeds.__setitem__(current[0], seed))
    return seeds


def test_the_generator_of_the_device_in_use_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = install_two_generators(monkeypatch)
    seed_generators(7, torch.device("cuda", 1))
    assert seeds == {1: 7}
    seed_generators(8, torch.device("cpu"))
    assert seeds == {1: 7}


def test_code_that_says_just_cuda_gets_the_workers_own_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds = install_two_generators(monkeypatch)
    use_device(torch.device("cpu"))
    use_device(torch.device("cuda", 1))
    torch.cuda.manual_seed(9)  # as a task does
    assert seeds == {1: 9}


def held(worker: str, host: str, gpus: str, seen_s: float = 0.5, **more: str) -> WorkerInfo:
    return WorkerInfo(
        worker, host, 1, "cuda:0", machine="boot", gpus=gpus, last_seen_s=seen_s, **more
    )


def test_a_worker_in_another_container_that_holds_the_gpu_is_named() -> None:
    own = held("me", "here", "GPU-1,MIG-2")
    slept = list[float]()
    for others in (
        [own],
        [own, held("w", "there", "GPU-3")],
        [own, held("w", "there", "")],
        [own, held("w", "there", "GPU-1", state="lost")],
        [own, replace(held("w", "there", "GPU-1"), machine="another")],
        [own, held("w", "there", "GPU-1", seen_s=4.0)],
    ):
        refuse_shared(lambda others=others: others, own, slept.append)
    refuse_shared(lambda: [held("w", "there", "")], held("me", "here", ""), slept.append)
    assert slept == [], "nobody is waited for in vain"

    ages = iter([2.0, 2.5, 3.1])
    refuse_shared(lambda: [held("w", "there", "GPU-1", next(ages))], own, slept.append)
    assert len(slept) == 2, "it was dead, as was seen after a moment"


def test_a_live_worker_in_another_container_keeps_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    other = held("w", "there", "MIG-2")
    with pytest.raises(ConfigError) as told:
        refuse_shared(lambda: [other], held("me", "here", "GPU-1,MIG-2"), sleep)
    assert str(told.value) == (
        "--device cuda:0: worker w, in another container of this machine, holds MIG-2; stop that "
        "one, or name another device"
    )
