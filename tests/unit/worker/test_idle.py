"""An idle worker: what wakes it, what it looks after meanwhile, and when it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis

from common.errors import QueueError
from worker.run import loop
from worker.run.loop import CROWD, MASTER_GRACE_S, Loop, LoopOptions


class Bell:
    """Rings as it is told, one answer a wait."""

    def __init__(self, *answers: bool | Callable[[], bool]) -> None:
        self.answers = list(answers)
        self.waited: list[float] = []

    def wait(self, timeout_s: float) -> bool:
        self.waited.append(timeout_s)
        answer = self.answers.pop(0)
        return answer if isinstance(answer, bool) else answer()


class Idle:
    """A loop with one search, which has trials when a test says so."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        local: bool = False,
        idle_exit_s: float | None = None,
        folder: Path | None = None,
        workers: int = 1,
        master: bool = True,
    ) -> None:
        self.stopped = False
        self.work: list[str] = []
        self.worked: list[str] = []
        self.naps: list[float] = []
        self.reaped: list[object] = []
        self.said: list[str] = []
        heartbeat = SimpleNamespace(stopping=lambda: self.stopped, info=None)
        queue = SimpleNamespace(
            live_workers=lambda: {f"w{n}" for n in range(workers)},
            master_alive=lambda: master,
            count_unfinished=lambda: 0,
            tick_every_s=0.4,
        )
        session = SimpleNamespace(queue=queue, folder=None)
        options = LoopOptions(local=local, idle_exit_s=idle_exit_s, folder=folder)
        self.loop = Loop(
            redis.Redis(), cast(Any, None), cast(Any, heartbeat), options, self.said.append
        )
        monkeypatch.setattr(self.loop, "_open_sessions", lambda: [session])
        monkeypatch.setattr(
            self.loop, "_claim", lambda: (None, self.work.pop()) if self.work else None
        )
        monkeypatch.setattr(self.loop, "_work", lambda _, claims: self.worked.append(claims))
        monkeypatch.setattr(loop, "reap", lambda *given, **_: self.reaped.append(given[0]) or 0)
        monkeypatch.setattr(loop.threading, "Event", lambda: SimpleNamespace(wait=self.naps.append))

    def stop(self) -> bool:
        self.stopped = True
        return False

    def ring(self) -> bool:
        self.work.append("a trial")
        return True

    def run(self, *answers: bool | Callable[[], bool]) -> Bell:
        bell = Bell(*answers)
        self.loop._bell = cast(Any, bell)
        self.loop.run()
        return bell


def test_it_works_as_soon_as_the_bell_rings_and_sleeps_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle = Idle(monkeypatch)
    bell = idle.run(False, idle.ring, idle.stop)
    assert idle.worked == ["a trial"] and idle.naps == []
    assert bell.waited == [loop.IDLE_S] * 3


def test_it_looks_more_often_where_no_master_sees_to_leases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle = Idle(monkeypatch, master=False)
    bell = idle.run(False, idle.stop)
    assert set(bell.waited) == {0.4} and len(idle.reaped) == 2


@pytest.mark.parametrize(("workers", "naps"), [(CROWD - 1, 0), (CROWD, 1), (100, 1)])
def test_only_a_crowd_does_not_ask_all_at_once(
    monkeypatch: pytest.MonkeyPatch, workers: int, naps: int
) -> None:
    idle = Idle(monkeypatch, workers=workers)
    idle.run(False, idle.ring, idle.stop)
    assert len(idle.naps) == naps and all(0 <= nap <= workers * loop.JITTER_S for nap in idle.naps)


def clock(now: list[float]) -> Callable[[float], Callable[[], bool]]:
    """Answers of a bell that does not ring while the time passes by."""

    def later(seconds: float) -> Callable[[], bool]:
        def pass_by() -> bool:
            now[0] += seconds
            return False

        return pass_by

    return later


def test_local_workers_linger_a_minute_for_the_next_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    idle = Idle(monkeypatch, local=True, master=False)

    later = clock(now)
    bell = idle.run(later(MASTER_GRACE_S - 1), later(0.5), later(1.0))
    assert bell.answers == []  # it stayed until the last of them


def test_a_local_worker_whose_folder_is_gone_leaves_without_asking_redis(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    idle = Idle(monkeypatch, local=True, folder=folder)

    def refuse() -> None:
        raise QueueError("Redis is away")

    def remove() -> bool:
        folder.rmdir()
        monkeypatch.setattr(idle.loop, "_claim", refuse)
        return False

    bell = idle.run(False, remove)
    assert bell.answers == [] and idle.said == [f"{folder} is gone: leaving"]


def test_the_minute_begins_after_the_last_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    idle = Idle(monkeypatch, local=True, master=False)
    later = clock(now)

    def train_for_an_hour(_: object, claims: str) -> None:
        now[0] += 3600.0
        idle.worked.append(claims)

    monkeypatch.setattr(idle.loop, "_work", train_for_an_hour)
    bell = idle.run(idle.ring, later(MASTER_GRACE_S - 1), later(0.5), later(1.0))
    assert idle.worked == ["a trial"] and bell.answers == []


def test_it_leaves_after_the_time_that_it_may_idle_and_work_begins_it_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    idle = Idle(monkeypatch, idle_exit_s=30.0)
    later = clock(now)
    bell = idle.run(later(29.0), idle.ring, later(29.0), later(1.0))
    assert bell.answers == [] and idle.worked == ["a trial"]
    assert idle.said == ["no trial for 30 s (--idle-exit): leaving"]
