"""What a child does differently from the product, patched in from outside.

The patches are a ledger of its claims, finishes and verdicts, a pace, a moved clock, a slow disk,
and a step of writing at which the child kills or stops itself.

A plan, as it travels to the child (every part may be missing):
    ledger   file that gets a line for every claim that was answered, every finish that got a
             verdict, and every trial that a verdict of the master took from its worker or killed
    pace     file with the seconds to sleep at every epoch boundary, so that a search lasts as long
             as its faults
    clock    file with the error of this process's time of day in seconds; it is read each time
    promotion  {"when": "decided" | "told", "marks": file that is made then}: a master that kills
             itself when it has written a promotion and Redis has not heard, or right after Redis
             has
    disk     {"seconds": file, "marks": file}: while the first exists, each fsync sleeps for the
             seconds in it, and then makes the other
    at       {"step": a name of STEPS, "nth": at which arrival, "do": "kill" | "stop",
             "marks": file that gets the step's name}
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

import master.run.finish
import master.run.supervisor
import worker.run.heartbeat
import worker.run.recorder
from common.folder import durable
from common.queue.trial_queue import TrialQueue
from common.search.trial import Claim, Fence, Trial
from master.stages.ladder import Ladder
from worker.run.loop import Loop

FILES = ("weights", "record", "resume")
STEPS = (
    "before_claim", "after_claim",
    *(f"{file}_{moment}" for file in FILES for moment in ("half", "temporary", "named")),
    "before_finish", "after_finish",
)  # fmt: skip
STATE_INTERVAL_S = (
    0.3  # leases are a twentieth of the usual here, and so is what else takes its time
)
SWEEP_S = 2.0
STUCK_GRACE_S = 0.5


def apply(plan: Mapping[str, Any]) -> None:
    worker.run.recorder.STATE_INTERVAL_S = STATE_INTERVAL_S
    worker.run.heartbeat.STUCK_GRACE_S = STUCK_GRACE_S
    master.run.supervisor.SWEEP_S = SWEEP_S
    if "clock" in plan:
        keep_clock(Path(plan["clock"]))
    if "pace" in plan:
        keep_pace(Path(plan["pace"]))
    if "disk" in plan:
        slow_disk(**plan["disk"])
    if "at" in plan:
        act_at(**plan["at"])
    if "ledger" in plan:
        keep_ledger(plan["ledger"])
    if "promotion" in plan:
        die_at_promotion(**plan["promotion"])
    assert master.run.finish.draw_reports_in_background, "renamed: change it here as well"
    master.run.finish.draw_reports_in_background = lambda folder, stages: (
        None
    )  # drawing is not what is tried here, and takes seconds


def keep_clock(file: Path) -> None:
    """Replace the two functions by which Python reads the time of day.

    Waiting and measuring use ``time.monotonic``, which nobody can move.
    """
    real = time.time

    def moved() -> float:
        try:
            return real() + float(file.read_text())
        except FileNotFoundError:
            return real()

    time.time = moved
    time.time_ns = lambda: int(moved() * 1e9)


def keep_pace(file: Path) -> None:
    """Before the word about what has ended: a trial of one epoch is held as long, too."""
    real = Loop._at_boundary

    def at_boundary(self: Loop, boundary: Any, recorder: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            time.sleep(float(file.read_text()))
        real(self, boundary, recorder)

    Loop._at_boundary = at_boundary  # type: ignore[method-assign]


def keep_ledger(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, fence: Fence, **more: Any) -> None:
        line = {
            "event": event,
            "pid": os.getpid(),
            "trial": fence.trial_id,
            "attempt": fence.attempt,
            "token": fence.token,
            **more,
        }
        os.write(
            file, json.dumps(line).encode() + b"\n"
        )  # whole: a line is far shorter than a page

    claim, finish = TrialQueue.claim, TrialQueue.finish

    def noted_claim(self: TrialQueue, *args: Any, **options: Any) -> list[Claim]:
        claims = claim(self, *args, **options)
        for one in claims:
            note("claim", one.fence, rung=one.trial.rung, epochs=one.trial.epochs)
        return claims

    def noted_finish(self: TrialQueue, ended: Any) -> Any:
        verdicts = finish(self, ended)
        for (fence, result), verdict in zip(ended, verdicts, strict=True):
            note("finish", fence, rung=result.rung, ok=verdict == "ok")
        return verdicts

    TrialQueue.claim, TrialQueue.finish = noted_claim, noted_finish  # type: ignore[method-assign]
    keep_verdicts(note)


def keep_verdicts(note: Callable[..., None]) -> None:
    take, kill = TrialQueue.take, TrialQueue.kill

    def noted_take(self: TrialQueue, fence: Fence, *more: Any) -> Any:
        taken = take(self, fence, *more)
        if taken is not None:
            note("take", fence)
        return taken

    def noted_kill(self: TrialQueue, trial_id: str, reason: str, fence: Fence | None = None) -> Any:
        killed = kill(self, trial_id, reason, fence)
        if killed is not None and fence is not None:  # else somebody has said `master kill`
            note("kill", fence)
        return killed

    TrialQueue.take, TrialQueue.kill = noted_take, noted_kill  # type: ignore[method-assign]


def slow_disk(seconds: str, marks: str) -> None:
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            time.sleep(float(Path(seconds).read_text()))
            Path(marks).touch()
        sync(descriptor)

    os.fsync = fsync


def die_at_promotion(when: str, marks: str) -> None:
    def die() -> None:
        Path(marks).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    advance, promote = Ladder.advance, TrialQueue.promote

    def decided(self: Ladder, n_workers: int = 1) -> list[Trial]:
        promoted = advance(self, n_workers)
        if promoted:
            die()
        return promoted

    def told(self: TrialQueue, trials: Any, *more: Any) -> list[Trial]:
        again = promote(self, trials, *more)
        if trials:
            die()
        return again

    if when == "decided":
        Ladder.advance = decided  # type: ignore[method-assign]
    else:
        TrialQueue.promote = told  # type: ignore[method-assign]


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

    TrialQueue.claim, TrialQueue.finish = (  # type: ignore[method-assign]
        watched_claim,
        watched_finish,
    )


def _around_files(arrive: Callable[[str], None]) -> None:
    create, link, replace = durable._create, os.link, os.replace

    def watched_create(path: Path, content: bytes, mode: int) -> int:
        kind = _kind(path)
        if kind is None:
            return create(path, content, mode)
        with path.open("wb") as half:
            half.write(content[: len(content) // 2])
        arrive(f"{kind}_half")
        path.unlink()
        descriptor = create(path, content, mode)
        arrive(f"{kind}_temporary")
        return descriptor

    def named(real: Callable[..., None]) -> Callable[..., None]:
        def watched(source: Any, target: Any, **options: Any) -> None:
            real(source, target, **options)
            if (kind := _kind(Path(target))) is not None:
                arrive(f"{kind}_named")

        return watched

    durable._create = watched_create
    os.link, os.replace = named(link), named(replace)


def _kind(path: Path) -> str | None:
    """Which of FILES lies, or will lie, in the folder of ``path``."""
    if path.parent.name in ("trials", "resume"):
        return {"trials": "record", "resume": "resume"}[path.parent.name]
    return "weights" if (path.parent / "trials").is_dir() and path.suffix in ("", ".pt") else None
