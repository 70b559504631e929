"""What the launcher of local workers decides."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from master.launchers import local
from master.launchers.local import Action, after_end, auto_count, ending, visible_gpus, worker_command, worker_environment


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


def test_a_long_life_makes_up_for_quick_deaths() -> None:
    then = after_end(1, lived_s=10.0, quick_deaths=4)
    assert (then.action, then.quick_deaths, then.wait_s) == (Action.RESTART, 0, 1.0)


@pytest.mark.parametrize(("exit_code", "text"), [(1, "exit status 1"), (-9, "SIGKILL"), (-11, "SIGSEGV"), (-250, "signal 250")])
def test_how_it_ended(exit_code: int, text: str) -> None:
    assert ending(exit_code) == text


def test_the_command_has_all_but_the_url() -> None:
    command = worker_command("digits", Path("/data/checkpoints"), together=2)
    assert command[:5] == [sys.executable, "-P", "-m", "worker", "start"]
    assert " ".join(command[5:]) == "--device auto --search digits --checkpoints /data/checkpoints --local 2"


def test_the_url_travels_in_the_environment() -> None:
    environ = {"PATH": "/bin", "REDIS_URL": "redis://elsewhere"}
    assert worker_environment("redis://:s3cret@here", environ)["REDIS_URL"] == "redis://:s3cret@here"
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
            "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'; echo 'GPU 1: NVIDIA H200 (UUID: GPU-2)'; echo '  MIG 1g.18gb Device 0:'",
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
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert auto_count() == count


def test_gpus_are_counted_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local, "GPU_FOLDER", tmp_path)
    assert auto_count() == 3
