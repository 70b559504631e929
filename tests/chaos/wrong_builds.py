"""Builds that are wrong on purpose, made by patching a child; the harness must see each of them.

Each is a mistake that somebody could make without an ordinary test noticing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import median
from typing import Any

import master.stages.publishing
from common.queue import scripts
from common.queue.publishing import PublishingQueue
from master.run.supervisor import Supervisor
from master.stages.promotions import Decision
from worker.run.recorder import Recorder

HOLDS = "trial and trial.s == 'running' and trial.a == tonumber(attempt) and trial.t == token"
HOLDS_WHOEVER = "trial and trial.s == 'running'"
NEXT_ATTEMPT, SAME_ATTEMPT = (
    "= trial.a + 1, token,",
    "= math.max(trial.a, (trial.r or 0) + 1), token,",
)
GAP = "if now - last > lease / 2 then"
GAP_AT_EXPIRY = (
    "if now - tonumber(redis.call('HGET', META, 'tick') or 0) > tonumber(lease) / 2 then "
    "return nil end"
)
ALONE = scripts.ALONE
MIN_TAKEN, SLOW_FACTOR, MIN_SLOW_S = (
    5,
    3.0,
    1.0,
)  # trials that have been held before one is slow; times their median; seconds


def apply(name: str) -> None:
    WRONG[name]()


def _fences_not_compared() -> None:
    _rewrite(
        lambda script, text: text if script in ALONE else _replaced(text, HOLDS, HOLDS_WHOEVER)
    )


def _fences_at_renew_only() -> None:
    _rewrite(
        lambda script, text: (
            text if script in {*ALONE, "renew"} else _replaced(text, HOLDS, HOLDS_WHOEVER)
        )
    )


def _attempts_used_again() -> None:
    _rewrite(
        lambda script, text: (
            _replaced(text, NEXT_ATTEMPT, SAME_ATTEMPT) if script == "claim" else text
        )
    )


def _reaps_after_an_outage() -> None:
    wrong = {"tick": (GAP, "if false then"), "expire": (GAP_AT_EXPIRY, "")}
    _rewrite(lambda script, text: _replaced(text, *wrong[script]) if script in wrong else text)


def _finishes_before_the_record() -> None:
    write = Recorder._write_records

    def finish_then_write(self: Any, stage: str, records: Any) -> None:
        self._session.queue.finish([(fence, record.result()) for fence, record in records])
        write(self, stage, records)

    Recorder._write_records = finish_then_write  # type: ignore[method-assign]


def _promotes_before_the_decision() -> None:
    write, promote = master.stages.publishing.write_part, PublishingQueue.promote
    held: list[tuple[Any, ...]] = []

    def write_later(
        folder: Any, search_id: str, known: Decision, trials: Any, complete: bool
    ) -> Decision:
        if not trials:
            return write(folder, search_id, known, trials, complete)
        held.append((folder, search_id, known, trials, complete))
        return replace(
            known, trials=(*known.trials, *trials), complete=complete, n_parts=known.n_parts + 1
        )

    def promote_then_write(self: Any, *words: Any) -> Any:
        again = promote(self, *words)
        while held:
            write(*held.pop(0))
        return again

    master.stages.publishing.write_part = write_later
    PublishingQueue.promote = promote_then_write  # type: ignore[method-assign]


def _takes_the_slow() -> None:
    """Take a trial from a worker that holds it several times as long as others, as once built.

    The time of recording counts.
    """
    see_to = Supervisor._see_to_stragglers
    last: dict[Any, float] = {}
    took: list[float] = []

    def see_to_and_take(self: Any) -> None:
        see_to(self)
        running = {one.fence: one.claimed_s for one in self._queue.running()}
        took.extend(seconds for fence, seconds in last.items() if fence not in running)
        last.clear()
        last.update(running)
        for fence, seconds in running.items():
            if len(took) >= MIN_TAKEN and seconds > max(SLOW_FACTOR * median(took), MIN_SLOW_S):
                self._queue.take(fence)

    Supervisor._see_to_stragglers = see_to_and_take  # type: ignore[method-assign]


def _rewrite(change: Callable[[str, str], str]) -> None:
    real = scripts.load

    @cache
    def load(name: str) -> scripts.Script:
        text = change(name, real(name).text)
        return scripts.Script(
            text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode()
        )

    scripts.load = load


def _replaced(text: str, right: str, wrong: str) -> str:
    assert text.count(right) == 1, (
        f"the scripts have changed ({right!r} is no longer there once); change "
        "wrong_builds.py with them"
    )
    return text.replace(right, wrong)


WRONG: dict[str, Callable[[], None]] = {
    "fences not compared": _fences_not_compared,
    "fences checked at renew only": _fences_at_renew_only,
    "attempt numbers used again": _attempts_used_again,
    "finish said before the record is written": _finishes_before_the_record,
    "reaping right after an outage": _reaps_after_an_outage,
    "promotion told before it is decided": _promotes_before_the_decision,
    "trials taken for being slow": _takes_the_slow,
}
