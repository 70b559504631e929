"""What a child does differently from the product, put over it from outside: a ledger of its claims and finishes, a pace, a moved clock,
and a step of writing at which it kills or stops itself.

A plan, as it travels to the child (every part may be missing):
    ledger   file that gets a line for every claim that was answered and every finish that got a verdict
    pace     file with the seconds to sleep at every epoch boundary, so that a search lasts as long as its faults
    clock    file with the seconds by which this process's time of day is wrong, read again each time that it is asked for
    at       {"step": a name of STEPS, "nth": at which arrival, "do": "kill" | "stop", "marks": file that gets the step's name}
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import master.supervisor
import worker.heartbeat
import worker.recording
from common import durable
from common.queue import TrialQueue
from common.trial import Claim, Fence
from worker.heartbeat import Heartbeat

FILES = ("weights", "record", "resume")
STEPS = (
    "before_claim", "after_claim", *(f"{file}_{moment}" for file in FILES for moment in ("half", "temporary", "named")),
    "before_finish", "after_finish",
)  # fmt: skip
STATE_INTERVAL_S = 0.3  # leases are a twentieth of the usual here, and so is what else takes its time
SWEEP_S = 2.0
STUCK_GRACE_S = 0.5


def apply(plan: Mapping[str, Any]) -> None:
    worker.recording.STATE_INTERVAL_S = STATE_INTERVAL_S
    worker.heartbeat.STUCK_GRACE_S = STUCK_GRACE_S
    master.supervisor.SWEEP_S = SWEEP_S
    if "clock" in plan:
        keep_clock(Path(plan["clock"]))
    if "pace" in plan:
        keep_pace(Path(plan["pace"]))
    if "at" in plan:
        act_at(**plan["at"])
    if "ledger" in plan:
        keep_ledger(plan["ledger"])


def keep_clock(file: Path) -> None:
    """The two words by which Python tells the time of day; what waits and measures goes by ``time.monotonic``, which nobody can move."""
    real = time.time

    def moved() -> float:
        try:
            return real() + float(file.read_text())
        except FileNotFoundError:
            return real()

    time.time = moved
    time.time_ns = lambda: int(moved() * 1e9)


def keep_pace(file: Path) -> None:
    real = Heartbeat.at_boundary

    def at_boundary(self: Heartbeat, positions: Any) -> None:
        real(self, positions)
        with contextlib.suppress(OSError, ValueError):
            time.sleep(float(file.read_text()))

    Heartbeat.at_boundary = at_boundary  # type: ignore[method-assign]


def keep_ledger(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, fence: Fence, **more: Any) -> None:
        line = {"event": event, "pid": os.getpid(), "trial": fence.trial_id, "attempt": fence.attempt, "token": fence.token, **more}
        os.write(file, json.dumps(line).encode() + b"\n")  # whole: a line is far shorter than a page

    claim, finish = TrialQueue.claim, TrialQueue.finish

    def noted_claim(self: TrialQueue, *args: Any, **options: Any) -> list[Claim]:
        claims = claim(self, *args, **options)
        for one in claims:
            note("claim", one.fence)
        return claims

    def noted_finish(self: TrialQueue, ended: Any) -> Any:
        verdicts = finish(self, ended)
        for (fence, _), verdict in zip(ended, verdicts, strict=True):
            note("finish", fence, ok=verdict == "ok")
        return verdicts

    TrialQueue.claim, TrialQueue.finish = noted_claim, noted_finish  # type: ignore[method-assign]


def act_at(step: str, nth: int, do: str, marks: str) -> None:
    left = [nth]

    def arrive(at: str) -> None:
        if at != step:
            return
        left[0] -= 1
        if left[0] == 0:
            with Path(marks).open("a") as file:
                file.write(f"{step}\n")
            os.kill(os.getpid(), signal.SIGKILL if do == "kill" else signal.SIGSTOP)

    _around_words(arrive)
    _around_files(arrive)


def _around_words(arrive: Callable[[str], None]) -> None:
    claim, finish = TrialQueue.claim, TrialQueue.finish

    def watched_claim(self: TrialQueue, *args: Any, **options: Any) -> list[Claim]:
        arrive("before_claim")
        claims = claim(self, *args, **options)
        if claims:
            arrive("after_claim")
        return claims

    def watched_finish(self: TrialQueue, ended: Any) -> Any:
        arrive("before_finish")
        verdicts = finish(self, ended)
        arrive("after_finish")
        return verdicts

    TrialQueue.claim, TrialQueue.finish = watched_claim, watched_finish  # type: ignore[method-assign]


def _around_files(arrive: Callable[[str], None]) -> None:
    write, link, replace = durable._write_synced, os.link, os.replace

    def watched_write(path: Path, content: bytes) -> None:
        kind = _kind(path)
        if kind is None:
            write(path, content)
            return
        with path.open("wb") as half:
            half.write(content[: len(content) // 2])
        arrive(f"{kind}_half")
        path.unlink()
        write(path, content)
        arrive(f"{kind}_temporary")

    def named(real: Callable[..., None]) -> Callable[..., None]:
        def watched(source: Any, target: Any, **options: Any) -> None:
            real(source, target, **options)
            if (kind := _kind(Path(target))) is not None:
                arrive(f"{kind}_named")

        return watched

    durable._write_synced = watched_write
    os.link, os.replace = named(link), named(replace)


def _kind(path: Path) -> str | None:
    """Which of FILES lies, or will lie, in the folder of ``path``."""
    if path.parent.name in ("trials", "resume"):
        return {"trials": "record", "resume": "resume"}[path.parent.name]
    return "weights" if (path.parent / "trials").is_dir() and path.suffix in ("", ".pt") else None
