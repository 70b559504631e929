"""What the launcher of local workers decides."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from common.ending import EXIT_POISONED
from common.errors import ConfigError
from common.search.protocol import PROTOCOL
from common.search.search_file import Search, parse_search
from common.search.stage import Resources
from common.search.trial import WorkerInfo
from master.launchers import gpus
from master.launchers.commands import worker_command, worker_environment
from master.launchers.endings import Action, after_end, ending, how_ended
from master.launchers.gpus import (
    auto_count,
    check_gpus,
    count_usable_gpus,
    local_device,
    visible_gpus,
)


def test_one_that_left_by_itself_is_not_started_again() -> None:
    assert after_end(0, lived_s=1.0, quick_deaths=3).action is Action.LEAVE


def test_one_that_left_with_trials_has_died() -> None:
    assert after_end(0, lived_s=100.0, quick_deaths=0, held=True).action is Action.RESTART
    assert after_end(0, lived_s=1.0, quick_deaths=4, held=True).action is Action.GIVE_UP


@pytest.mark.parametrize("exit_code", [1, 70, 143, -9, -11])
def test_one_that_died_is_started_again(exit_code: int) -> None:
    assert after_end(exit_code, lived_s=100.0, quick_deaths=0).action is Action.RESTART


def test_quick_deaths_wait_longer_each_time_until_it_is_given_up() -> None:
    waits, quick = [], 0
    while (then := after_end(1, lived_s=0.5, quick_deaths=quick)).action is Action.RESTART:
        waits.append(then.wait_s)
        quick = then.quick_deaths
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert then.action is Action.GIVE_UP


def test_a_worker_whose_device_serves_it_no_more_is_always_started_again() -> None:
    then = after_end(EXIT_POISONED, lived_s=1.0, quick_deaths=4)
    assert (then.action, then.quick_deaths, then.wait_s) == (Action.RESTART, 4, 1.0)


def test_a_long_life_makes_up_for_quick_deaths() -> None:
    then = after_end(1, lived_s=10.0, quick_deaths=4)
    assert (then.action, then.quick_deaths, then.wait_s) == (Action.RESTART, 0, 1.0)


@pytest.mark.parametrize(
    ("exit_code", "text"),
    [(1, "exit status 1"), (-9, "SIGKILL"), (-11, "SIGSEGV"), (-250, "signal 250")],
)
def test_how_it_ended(exit_code: int, text: str) -> None:
    assert (
        ending(exit_code) == text
        and how_ended(exit_code) == f"{'ended with' if exit_code > 0 else 'was ended by'} {text}"
    )


def test_the_command_has_all_but_the_url() -> None:
    command = worker_command("digits", Path("/data/checkpoints"), together=2)
    assert command[:5] == [sys.executable, "-P", "-m", "worker", "start"]
    assert (
        " ".join(command[5:])
        == "--device auto --search digits --checkpoints /data/checkpoints --local 2"
    )


def test_the_command_asks_for_several_gpus_where_a_trial_does() -> None:
    command = worker_command("digits", Path("/data/checkpoints"), 2, "auto", 2)
    assert command[-2:] == ["--gpus-per-trial", "2"]


def test_the_url_travels_in_the_environment() -> None:
    environ = {"PATH": "/bin", "REDIS_URL": "redis://elsewhere"}
    assert (
        worker_environment("redis://:s3cret@here", environ)["REDIS_URL"] == "redis://:s3cret@here"
    )
    assert worker_environment("redis://here", environ)["PATH"] == "/bin"


def test_workers_of_an_embedded_server_are_told_of_no_other() -> None:
    assert "REDIS_URL" not in worker_environment(None, {"REDIS_URL": "redis://elsewhere"})


@pytest.mark.parametrize(
    ("installed", "visible", "count"),
    [
        (4, None, 4),
        (4, "", 0),
        (4, "-1", 0),
        (4, "0, 2", 2),
        (4, "1,-1,2", 1),
        (2, "0,1,2,3", 2),
        (2, "GPU-8f6a,GPU-1b2c", 2),
        (1, "MIG-5c6d", 1),
        (2, "MIG-5c6d,MIG-7e8f", 1),
        (0, "GPU-8f6a", 0),
        (0, "0", 0),
        (0, None, 0),
    ],
)
def test_gpus_that_a_process_sees(installed: int, visible: str | None, count: int) -> None:
    assert visible_gpus(installed, visible) == count


def nvidia_smi(folder: Path, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "cores", "count"),
    [
        (
            (
                "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'; echo 'GPU 1: NVIDIA H200 (UUID: "
                "GPU-2)'; echo '  MIG 1g.18gb Device 0:'"
            ),
            8,
            2,
        ),
        ("echo 'NVIDIA-SMI has failed'; exit 9", 8, 2),
        ("exit 0", 1, 1),
    ],
)
def test_auto_is_one_a_gpu_else_two_where_there_are_two_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, cores: int, count: int
) -> None:
    nvidia_smi(tmp_path, script)
    monkeypatch.setattr(gpus, "_find_torch", lambda: "2.13.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert auto_count(Resources()) == count


def test_gpus_are_counted_without_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "GPU_FOLDER", tmp_path)
    monkeypatch.setattr(gpus, "_find_torch", lambda: "2.13.0+cu130")
    assert auto_count(Resources()) == 3
    monkeypatch.setattr(gpus, "_find_torch", lambda: "2.13.0+cpu")
    assert count_usable_gpus() == 0, "this torch uses none of them"


def test_amds_gpus_are_counted_where_torch_is_built_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for number, units in enumerate((0, 304, 304)):  # a processor and two GPUs
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "properties").write_text(
            f"cpu_cores_count {0 if units else 64}\nsimd_count {units}\nmem_banks_count 1\n"
        )
    (tmp_path / "3").mkdir()  # another user's, which cannot be read
    monkeypatch.setattr(gpus, "AMD_FOLDER", tmp_path)
    monkeypatch.setattr(gpus, "_find_torch", lambda: "2.13.0+rocm7.0")
    assert auto_count(Resources()) == count_usable_gpus() == 2
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert count_usable_gpus() == 1
    monkeypatch.setattr(gpus, "AMD_FOLDER", tmp_path / "none")
    assert count_usable_gpus() == 0


def install(monkeypatch: pytest.MonkeyPatch, count: int, cores: int = 8) -> None:
    """Make the master count so many GPUs, and so many cores."""
    monkeypatch.setattr(gpus, "_count_gpus", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)


TWO, STAND_IN = Resources(gpus=2), Resources(gpus=2, on_cpu=True)


@pytest.mark.parametrize(
    ("resources", "installed", "cores", "workers", "options"),
    [
        (TWO, 4, 8, 2, ("auto", 2)),
        (TWO, 5, 8, 2, ("auto", 2)),
        (TWO, 1, 8, 0, ("auto", 2)),
        (TWO, 0, 8, 0, ("auto", 2)),
        (STAND_IN, 4, 8, 2, ("auto", 2)),
        (STAND_IN, 1, 8, 2, ("cpu", 1)),
        (STAND_IN, 0, 3, 1, ("cpu", 1)),
        (STAND_IN, 0, 1, 1, ("cpu", 1)),
        (Resources(on_cpu=False), 0, 8, 0, ("auto", 1)),
    ],
)
def test_local_workers_have_gpus_of_their_own_or_the_cpu_stands_in(
    monkeypatch: pytest.MonkeyPatch,
    resources: Resources,
    installed: int,
    cores: int,
    workers: int,
    options: tuple[str, int],
) -> None:
    install(monkeypatch, installed, cores)
    assert auto_count(resources) == workers and local_device(resources) == options


def test_only_the_gpus_that_are_visible_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f6a,GPU-1b2c,7,2,-1,5")
    assert auto_count(TWO) == 2


def asking(resources: str) -> Search:
    return parse_search(
        'name = "s"\ntask = { command = "true" }\n[space]\nx = { uniform = [0, 1] }\n'
        f"[stages.coarse]\ntrials = 1\nepochs = 1\n[resources]\n{resources}\n"
    )


def connected(device: str) -> list[WorkerInfo]:
    return [WorkerInfo("w", "elsewhere", 1, device, protocol=PROTOCOL)]


@pytest.mark.parametrize(
    ("asked", "resources", "installed", "device", "reason"),
    [
        (None, "gpus = 2", 0, "cpu", "[resources] gpus = 2: this machine has no GPUs, and no"),
        (None, "gpus = 2", 1, "cuda:0", "this machine has 1 GPU, and no connected worker has"),
        (1, "gpus = 2", 1, "cuda:0,cuda:1", "start `worker start --device all --gpus-per-trial 2`"),
        (3, "gpus = 2", 4, "cpu", "--workers 3: with [resources] gpus = 2 they need 6 GPUs, and"),
        (3, "gpus = 2\non_cpu = true", 4, "cpu", "this machine has 4; use --workers 2"),
        (3, "gpus = 1", 1, "cpu", "--workers 3: each local worker takes a GPU, and this machine"),
        (None, "on_cpu = false", 0, "cpu", "[resources] gpus = 1: this machine has no GPUs"),
    ],
)
def test_a_launch_on_a_machine_with_too_few_gpus_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    asked: int | None,
    resources: str,
    installed: int,
    device: str,
    reason: str,
) -> None:
    install(monkeypatch, installed)
    with pytest.raises(ConfigError) as told:
        check_gpus(asked, asking(resources), lambda: connected(device))
    assert reason in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("asked", "resources", "installed", "device"),
    [
        (0, "gpus = 2", 0, "cpu"),
        (None, "gpus = 2", 0, "cuda:0,cuda:1"),
        (None, "gpus = 2", 2, "cpu"),
        (2, "gpus = 2", 4, "cpu"),
        (9, "gpus = 2\non_cpu = true", 0, "cpu"),
        (9, "gpus = 1", 0, "cpu"),
        (None, "gpus = 1", 2, "cpu"),
        (2, "gpus = 1", 2, "cpu"),
    ],
)
def test_a_launch_goes_on_where_somebody_can_train(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, resources: str, installed: int, device: str
) -> None:
    install(monkeypatch, installed)
    check_gpus(asked, asking(resources), lambda: connected(device))
