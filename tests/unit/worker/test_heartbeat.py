"""The heartbeat against stand-ins for Redis: what it hears, and what it does when it cannot hear."""

from __future__ import annotations

from typing import Any

import pytest

import worker.heartbeat as module
from common import wire
from common.errors import QueueError
from common.trial import Claim, Fence, Progress, Trial, WorkerInfo
from worker.heartbeat import EXIT_STUCK, Heartbeat, Position


class Redis:
    """Plays the registry and the queue."""

    def __init__(self) -> None:
        self.away = False
        self.orders: list[str] = []
        self.stale: dict[str, str] = {}
        self.announced: list[WorkerInfo] = []
        self.renewed: list[list[Progress]] = []
        self.curves: list[dict[str, str]] = []
        self.released: list[str] = []

    def announce(self, info: WorkerInfo) -> list[str]:
        if self.away:
            raise QueueError("Redis at nowhere: refused")
        self.announced.append(info)
        return self.orders

    def renew(self, worker: str, progress: list[Progress], curves: dict[str, str]) -> dict[str, str]:
        self.renewed.append(progress)
        self.curves.append(curves)
        return self.stale

    def release(self, fences: list[Fence]) -> None:
        self.released += [fence.trial_id for fence in fences]

    def leave(self, worker: str) -> None:
        self.announced.append(None)  # type: ignore[arg-type]


@pytest.fixture
def redis() -> Redis:
    return Redis()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def exits() -> list[int]:
    return []


@pytest.fixture
def heart(redis: Redis, said: list[str], exits: list[int]) -> Heartbeat:
    info = WorkerInfo("me", "host", 1, "cpu", "model")
    heart = Heartbeat(info, redis, said.append, exit_hard=exits.append)  # type: ignore[arg-type]
    heart.serve(redis, 30.0)  # type: ignore[arg-type]
    return heart


def claim(trial_id: str = "coarse-0001", attempt: int = 1) -> Claim:
    return Claim(Trial(trial_id, "coarse", 1, 1, 1.0, {}, "{}"), Fence(trial_id, attempt, "token"))


def test_it_renews_what_it_holds_and_says_where_that_stands(heart: Heartbeat, redis: Redis) -> None:
    heart.hold([claim("coarse-0001"), claim("coarse-0002")])
    heart.beat("training")
    heart.at_boundary({"coarse-0001": Position(3.0, 0.5, 8, 0.9, waiting=False)})
    heart.once()
    first, second = redis.renewed[0]
    assert (first.epoch, first.last_epoch_s, first.array_width, first.val_acc, first.phase) == (3.0, 0.5, 8, 0.9, "training")
    assert second.phase == "waiting" and first.beat == second.beat == 1  # one that waits follows its worker's beat
    assert (redis.announced[0].state, redis.announced[0].trials, redis.announced[0].array_width) == ("training", 2, 8)
    heart.drop(["coarse-0001", "coarse-0002"])
    heart.once()
    assert len(redis.renewed) == 1 or redis.renewed[-1] == []
    assert redis.announced[-1].state == "idle"


def test_curves_are_sent_when_they_have_grown(heart: Heartbeat, redis: Redis) -> None:
    curves: dict[str, list[float | None]] = {"epoch": [1.0], "val_acc": [0.51234567], "update_ratio.0": [0.001]}
    heart.hold([claim("coarse-0001")])
    heart.at_boundary({"coarse-0001": Position(1.0, curves=curves, waiting=False)})
    heart.once()
    heart.once()
    curves["epoch"].append(2.0)
    curves["val_acc"].append(0.6)
    heart.once()
    first, none, second = redis.curves
    assert wire.curves_in(first["coarse-0001"]) == {"epoch": [1.0], "val_acc": [0.51235]}
    assert none == {}
    assert wire.curves_in(second["coarse-0001"])["val_acc"] == [0.51235, 0.6]


def test_a_beat_without_movement_does_not_grow(heart: Heartbeat, redis: Redis) -> None:
    heart.hold([claim()])
    heart.beat()
    for _ in range(3):
        heart.once()
    assert {p[0].beat for p in redis.renewed} == {1}  # liveness is progress, not a thread that still runs


def test_what_it_hears_is_lost_for_that_trial_alone(heart: Heartbeat, redis: Redis, said: list[str]) -> None:
    heart.hold([claim("coarse-0001"), claim("coarse-0002")])
    redis.stale = {"coarse-0001": "killed"}
    heart.once()
    heart.once()
    assert set(heart.lost()) == {"coarse-0001"}
    assert not heart.holds(claim("coarse-0001").fence) and heart.holds(claim("coarse-0002").fence)
    assert len(said) == 1 and "coarse-0001" in said[0] and "killed" in said[0]
    redis.stale = {}
    heart.hold([claim("coarse-0001", attempt=3)])  # retried, and claimed again by the same worker
    assert not heart.lost() and heart.holds(claim("coarse-0001", attempt=3).fence)


def test_an_outage_is_said_once_and_its_end_once(heart: Heartbeat, redis: Redis, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BACKOFF_S", 0.02)
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    heart.serve(redis, 0.05)  # type: ignore[arg-type]
    heart.hold([claim()])
    redis.away = True
    heart.start()
    _until(lambda: said)
    for _ in range(5):
        seen = len(said)
        _until(lambda: True)
    redis.away = False
    _until(lambda: len(redis.renewed) > 2)
    heart.close()
    assert seen == 1 and len(said) == 2 and "Training goes on" in said[0] and "back" in said[1]


class Waits(list[float]):
    """Stands for the event that ends the thread: notes how long it waits, and ends after some rounds."""

    def wait(self, seconds: float) -> bool:
        self.append(seconds)
        return len(self) > 12


@pytest.mark.parametrize("lease_s", [1.0, 3600.0])
def test_in_an_outage_it_tries_again_within_half_a_lease(heart: Heartbeat, redis: Redis, lease_s: float) -> None:
    heart.serve(redis, lease_s)  # type: ignore[arg-type]
    heart._closed = waits = Waits()  # type: ignore[assignment]
    redis.away = True
    heart._run()
    assert max(waits) <= min(lease_s / 2, module.MAX_BACKOFF_S)


def test_a_stuck_worker_that_cannot_move_exits_hard(
    heart: Heartbeat, redis: Redis, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STUCK_GRACE_S", 0.0)
    heart.hold([claim("coarse-0001"), claim("coarse-0002")])
    redis.stale = {"coarse-0001": "stuck"}
    heart.once()
    heart._check_deadlines()
    assert exits == [EXIT_STUCK] and redis.released == ["coarse-0002"]


def test_a_stuck_worker_that_moves_again_stays(heart: Heartbeat, redis: Redis, exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STUCK_GRACE_S", 0.0)
    heart.hold([claim()])
    redis.stale = {"coarse-0001": "stuck"}
    heart.once()
    heart.beat()
    heart._check_deadlines()
    heart._check_deadlines()
    assert exits == []


def test_a_worker_that_hears_sigterm_but_cannot_move_gives_back_and_leaves(
    heart: Heartbeat, redis: Redis, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    heart.hold([claim()])
    heart.stop(143)
    heart._check_deadlines()
    assert exits == [] and heart.stopping()
    monkeypatch.setattr(module, "STOP_GRACE_S", -1.0)
    heart._check_deadlines()
    assert exits == [143] and redis.released == ["coarse-0001"]


def test_an_order_to_quit_is_heard_and_leaves_no_more_time_than_sigterm(
    heart: Heartbeat, redis: Redis, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    last: list[tuple[float, int]] = []
    monkeypatch.setattr(module.threading, "Timer", lambda after_s, exit_hard, codes: last.append((after_s, *codes)) or Never())
    heart.hold([claim()])
    redis.orders = ["quit"]
    heart.once()
    heart.once()
    assert heart.stopping() and heart.exit_code == 0
    assert len(last) == 1 and last[0][0] + module.BEAT_S < 10 and last[0][1] == 0  # heard a beat late, gone within ten seconds
    heart._check_deadlines()
    assert exits == []
    monkeypatch.setattr(module, "STOP_GRACE_S", -1.0)
    heart._check_deadlines()
    assert exits == [0] and redis.released == ["coarse-0001"]


class Never:
    """Stands for a timer that is not run down to."""

    daemon = False

    def start(self) -> None:
        pass


def _until(condition: Any, deadline_s: float = 10.0) -> None:
    import time

    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
