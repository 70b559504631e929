"""The heartbeat with stand-ins for Redis: what it hears, and what it does without an answer."""

from __future__ import annotations

from typing import Any

import pytest

import worker.run.heartbeat as module
from common.errors import QueueError
from common.queue import wire
from common.search.trial import Claim, Fence, Progress, Trial, WorkerInfo
from worker.run.heartbeat import EXIT_STUCK, Heartbeat
from worker.training.types import View


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
        self.left: list[str] = []  # what the registry and the queue are told

    def announce(self, info: WorkerInfo) -> list[str]:
        if self.away:
            raise QueueError("Redis at nowhere: refused")
        self.announced.append(info)
        return self.orders

    def renew(
        self, worker: str, progress: list[Progress], curves: dict[str, str]
    ) -> dict[str, str]:
        self.renewed.append(progress)
        self.curves.append(curves)
        return self.stale

    def release(self, fences: list[Fence]) -> None:
        self.released += [fence.trial_id for fence in fences]

    def leave(self, worker: str) -> None:
        self.left.append(worker)


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


def view(epoch: float, last_epoch_s: float | None = None, width: int = 1, **more: Any) -> View:
    return View(claim(), epoch, last_epoch_s, width, lambda: b"", **more)


def test_it_renews_what_it_holds_and_says_where_that_stands(heart: Heartbeat, redis: Redis) -> None:
    heart.hold([claim("coarse-0001"), claim("coarse-0002")])
    heart.beat("training")
    heart.at_boundary([view(3.0, 0.5, 8, metrics={"val_acc": 0.9})])
    heart.once()
    first, second = redis.renewed[0]
    assert (first.epoch, first.last_epoch_s, first.array_width, first.val_acc, first.phase) == (
        3.0,
        0.5,
        8,
        0.9,
        "training",
    )
    assert (
        second.phase == "waiting" and first.beat == second.beat == 1
    )  # one that waits follows its worker's beat
    assert (
        redis.announced[0].state,
        redis.announced[0].trials,
        redis.announced[0].array_width,
    ) == ("training", 2, 8)
    heart.drop(["coarse-0001", "coarse-0002"])
    heart.once()
    assert len(redis.renewed) == 1 or redis.renewed[-1] == []
    assert redis.announced[-1].state == "idle"


def test_curves_are_sent_when_they_have_grown(heart: Heartbeat, redis: Redis) -> None:
    curves: dict[str, list[float | None]] = {
        "epoch": [1.0],
        "val_acc": [0.51234567],
        "update_ratio.0": [0.001],
    }
    heart.hold([claim("coarse-0001")])
    heart.at_boundary([view(1.0, curves=curves)])
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
    assert {p[0].beat for p in redis.renewed} == {
        1
    }  # liveness is progress, not a thread that still runs


@pytest.mark.parametrize("phase", ["compiling", "measuring", "evaluating", "recording", "loading"])
def test_what_is_no_training_is_no_part_of_an_epochs_pace(
    heart: Heartbeat, redis: Redis, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    heart.hold([claim()])
    heart.at_boundary([view(3.0, 0.5)])
    for phase_now, seconds in (
        ("training", 2.0),
        (phase, 30.0),
        ("training", 1.0),
        (phase, 40.0),
        ("training", 0.0),
    ):
        heart.beat(phase_now)
        clock[0] += seconds
    heart.once()
    assert [(one.phase, one.epoch_elapsed_s) for one in redis.renewed[-1]] == [("training", 3.0)]
    clock[0] += 5.0
    heart.beat("recording")  # the epoch is over: what is written belongs to no epoch
    clock[0] += 60.0
    heart.at_boundary([view(4.0, 0.5)])
    clock[0] += 1.0
    heart.beat("training")
    clock[0] += 2.0
    heart.once()
    assert redis.renewed[-1][0].epoch_elapsed_s == 2.0


def test_what_it_hears_is_lost_for_that_trial_alone(
    heart: Heartbeat, redis: Redis, said: list[str]
) -> None:
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


def test_an_outage_is_said_once_and_its_end_once(
    heart: Heartbeat, redis: Redis, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    """Stand-in for the event that ends the thread.

    It notes how long it waits and ends after some rounds.
    """

    def wait(self, seconds: float) -> bool:
        self.append(seconds)
        return len(self) > 12


@pytest.mark.parametrize("lease_s", [1.0, 3600.0])
def test_in_an_outage_it_tries_again_within_half_a_lease(
    heart: Heartbeat, redis: Redis, lease_s: float
) -> None:
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


def test_a_stuck_worker_that_moves_again_stays(
    heart: Heartbeat, redis: Redis, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STUCK_GRACE_S", 0.0)
    heart.hold([claim()])
    redis.stale = {"coarse-0001": "stuck"}
    heart.once()
    heart.beat()
    heart._check_deadlines()
    heart._check_deadlines()
    assert exits == []


def test_a_worker_that_hears_sigterm_but_cannot_move_gives_back_and_leaves(
    heart: Heartbeat, redis: Redis, exits: list[int]
) -> None:
    heart.hold([claim()])
    heart.stop(143)
    heart._check_deadlines()
    assert exits == [] and heart.stopping()
    heart._stop_grace_s = -1.0
    heart._check_deadlines()
    assert exits == [143] and redis.released == ["coarse-0001"]


def test_an_order_to_quit_is_heard_and_leaves_no_more_time_than_sigterm(
    heart: Heartbeat, redis: Redis, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    last: list[tuple[float, int]] = []
    monkeypatch.setattr(
        module.threading,
        "Timer",
        lambda after_s, exit_hard, codes: last.append((after_s, *codes)) or Never(),
    )
    heart.hold([claim()])
    redis.orders = ["quit"]
    heart.once()
    heart.once()
    assert heart.stopping() and heart.exit_code == 0
    assert (
        len(last) == 1 and last[0][0] + module.BEAT_S < 10 and last[0][1] == 0
    )  # heard a beat late, gone within ten seconds
    heart._check_deadlines()
    assert exits == []
    heart._stop_grace_s = -1.0
    heart._check_deadlines()
    assert exits == [0] and redis.released == ["coarse-0001"]


def test_every_exit_that_can_still_speak_says_goodbye(
    heart: Heartbeat, redis: Redis, exits: list[int]
) -> None:
    heart.close()
    assert redis.left == ["me", "me"]  # the registry and the queue, though the thread never ran
    heart.stop(143)
    heart._stop_grace_s = -1.0
    heart._check_deadlines()
    assert exits == [143] and redis.left == ["me"] * 4


@pytest.mark.parametrize(
    ("phase", "views", "leaves"),
    [("loading", [], True), ("loading", [1.0], False), ("training", [], False)],
)
def test_told_to_stop_while_a_task_loads_it_leaves_at_once_if_nothing_was_trained(
    heart: Heartbeat,
    redis: Redis,
    exits: list[int],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    views: list[float],
    leaves: bool,
) -> None:
    monkeypatch.setattr(module, "LOADING_GRACE_S", -1.0)
    heart.hold([claim()])
    heart.at_boundary([view(epoch) for epoch in views])
    heart.beat(phase, 600.0)
    heart.stop(138)
    heart._check_deadlines()
    assert (exits, redis.released) == (([138], ["coarse-0001"]) if leaves else ([], []))
    assert ("gave back 1 unfinished trials" in said) is leaves


def test_before_the_end_of_its_time_it_stops_by_itself(
    redis: Redis, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    info = WorkerInfo("me", "host", 1, "cpu", "model")
    exits: list[int] = []
    heart = Heartbeat(info, redis, said.append, exit_hard=exits.append, leave_at=1010.0)  # type: ignore[arg-type]
    heart._check_deadlines()
    assert not heart.stopping()
    now[0] = 1010.5
    heart._check_deadlines()
    heart._check_deadlines()
    assert heart.stopping() and heart.exit_code == 0
    assert said == ["its time is nearly over: saving, giving back, leaving"]


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


def test_curves_of_a_wide_array_are_sent_over_several_beats(
    heart: Heartbeat, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CURVES_A_BEAT", 3)
    names = [f"coarse-{number:04d}" for number in range(8)]
    claims = [claim(name) for name in names]
    curves = {"epoch": [1.0], "val_acc": [0.5], "dead.0": [0.1]}
    views = [View(one, 1.0, 1.0, 8, lambda: b"", curves=curves) for one in claims]
    heart.hold(claims)
    heart.at_boundary(views)
    for _ in range(4):
        heart.once()
    sent = [sorted(beat) for beat in redis.curves]
    assert [len(beat) for beat in sent] == [3, 3, 2, 0], "none twice, and none is left out"
    assert sorted(name for beat in sent for name in beat) == names
    curves["epoch"].append(2.0)
    curves["val_acc"].append(0.6)
    heart.once()
    assert len(redis.curves[-1]) == 3
