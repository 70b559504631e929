from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.errors import ConfigError
from common.trial import WorkerInfo
from worker.device import owned, thread_share, usable_cores


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
def test_cores_are_bounded_by_affinity_and_quota(affinity: int, cpu_max: str, cores: int) -> None:
    assert usable_cores(affinity, cpu_max) == cores


def worker(machine: str = "here", device: str = "cpu", state: str = "idle") -> WorkerInfo:
    return WorkerInfo("w", "host", 1, device, state=state, machine=machine)


def test_workers_of_one_machine_share_its_cores() -> None:
    assert thread_share([], "here", 4) == 4
    assert thread_share([worker(), worker()], "here", 4) == 2
    assert thread_share([worker()] * 9, "here", 4) == 1
    others = [worker("there"), worker(device="cuda:0"), worker(state="lost")]
    assert thread_share([worker(), *others], "here", 4) == 4
    assert thread_share([worker()], "here", 4, together=2) == 2  # the other has been started, but has not announced itself yet


@pytest.mark.parametrize("wanted", ["tpu", "cuda", "cuda:x", "cuda:99", "all"])
def test_a_device_that_is_not_there_is_named(wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted), owned(wanted):
        pass


def test_the_cpu_is_there_for_all() -> None:
    with owned("cpu") as one, owned("cpu") as two:
        assert one.name == two.name == "cpu" and one.model


def test_workers_of_one_host_take_different_gpus_and_then_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}"))
    with owned("auto") as first, owned("auto") as second, owned("auto") as third:
        assert [d.name for d in (first, second, third)] == ["cuda:0", "cuda:1", "cpu"]
        with pytest.raises(ConfigError, match="another worker"), owned("cuda:1"):
            pass
    with owned("cuda:1") as again:
        assert again.name == "cuda:1" and again.model == "a GPU"  # given back
