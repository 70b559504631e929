"""The processes of one search, kept alive as an operator would keep them.

Processes that ended are started again, and the master attaches again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos.nursery import Nursery

MASTER = ("master", "launch", "--stage", "all", "--workers", "0", "--skip-check")
WORKER = ("worker", "start", "--device", "cpu")
RESTART_S = 0.1  # after the end of a process


class Clock:
    """The time of day as the processes of one place see it, by how much it is wrong."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def show(self, by_s: float) -> None:
        """Moves the time of day of the process that runs there, and of those after it."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{by_s:.3f}")
        new.replace(self.file)


class Slot:
    """A place for one process after the other."""

    def __init__(
        self, command: tuple[str, ...], log: Path, plan: dict[str, Any], environment: dict[str, str]
    ) -> None:
        self.clock = Clock(log.with_suffix(".clock"))
        self.command, self.log, self.environment = command, log, environment
        self.plan = {"clock": str(self.clock.file), **plan}
        self.next_plan: dict[
            str, Any
        ] = {}  # what only the next process of this place does differently
        self.next_environment: dict[str, str] = {}
        self.pid: int | None = None
        self.start_at = 0.0
        self.started = 0
        self.done = False
        self.forbidden = False  # not to be started for now
        self.reserved = False  # a fault that takes its time has this place for itself


class Crew:
    """A master and some workers."""

    def __init__(
        self, nursery: Nursery, path: Path, url: str | None, n_workers: int, plan: dict[str, Any]
    ) -> None:
        self.path = path
        self.nursery = nursery
        environment = {"REDIS_URL": url} if url else {}
        self.master = Slot(MASTER, path / "master.log", plan, environment)
        self.workers = [
            Slot(WORKER, path / f"worker-{n}.log", plan, dict(environment))
            for n in range(n_workers)
        ]
        self.ends: Counter[str] = Counter()  # how processes ended, by program and exit code

    @property
    def slots(self) -> list[Slot]:
        return [self.master, *self.workers]

    @property
    def ended(self) -> bool:
        """Whether the master has seen the end of the stage."""
        return self.master.done

    def look(self) -> None:
        """Starts again what has ended."""
        self.nursery.look()
        now = time.monotonic()
        for slot in self.slots:
            if slot.pid is not None and slot.pid in self.nursery.codes:
                self._gone(slot, self.nursery.codes[slot.pid], now)
            if slot.pid is None and not slot.done and not slot.forbidden and now >= slot.start_at:
                self._start(slot)

    def _gone(self, slot: Slot, code: int, now: float) -> None:
        self.ends[f"{slot.command[0]} {code}"] += 1
        slot.pid, slot.start_at = None, now + RESTART_S
        slot.done = slot is self.master and code in (0, 3)

    def _start(self, slot: Slot) -> None:
        slot.pid = self.nursery.start(
            list(slot.command),
            slot.log,
            slot.plan | slot.next_plan,
            slot.environment | slot.next_environment,
        )
        slot.next_plan, slot.next_environment = {}, {}
        slot.started += 1

    def signal(self, slot: Slot, number: signal.Signals) -> int | None:
        """Sends a signal to what runs there; its process id, None if nothing does."""
        pid = slot.pid
        if pid is None or not self.nursery.alive(pid):
            return None
        os.kill(pid, number)  # not waited for yet, so the number is still its own
        return pid

    def go_on(self, pid: int | None) -> None:
        if pid is not None and self.nursery.alive(pid):
            os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        """Tells the workers to leave, and makes sure that nothing is left."""
        for slot in self.slots:
            slot.forbidden = True
            self.go_on(self.signal(slot, signal.SIGTERM))
        deadline = time.monotonic() + 12.0
        while time.monotonic() < deadline and any(
            slot.pid and self.nursery.alive(slot.pid) for slot in self.slots
        ):
            time.sleep(0.05)
        self.kill()
        for slot in self.slots:
            if slot.pid is not None:
                self._gone(slot, self.nursery.codes.get(slot.pid, 0), time.monotonic())

    def kill(self) -> None:
        for slot in self.slots:
            self.signal(slot, signal.SIGKILL)
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline and any(
            slot.pid and self.nursery.alive(slot.pid) for slot in self.slots
        ):
            time.sleep(0.02)

    def loop_pids(self, slot: Slot) -> list[int]:
        """The processes that a worker has had forked for loops."""
        return [
            loop
            for zygote in _children(slot.pid)
            for loop in _children(zygote)
            if _memory_bytes(loop)
        ]

    def end_large(self, slot: Slot, most_bytes: int) -> None:
        """End the loops that hold more memory, as the kernel does."""
        for pid in self.loop_pids(slot):
            if _memory_bytes(pid) > most_bytes:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


def _children(pid: int | None) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _memory_bytes(pid: int) -> int:
    """What a process of its own holds, of which the nursery does not have the same."""
    with contextlib.suppress(OSError, TypeError):
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        )
        return (
            sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) * 1024
        )
    return 0
