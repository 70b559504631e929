from __future__ import annotations

import pytest

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
