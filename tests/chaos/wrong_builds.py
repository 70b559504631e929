"""Builds that are wrong on purpose, made by changing a child from outside: the harness has to see each of them.

Each is a mistake that somebody could make without a test of the ordinary kind noticing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

from common import scripts
from worker.recording import Recorder

HOLDS = "trial and trial.s == 'running' and trial.a == tonumber(attempt) and trial.t == token"
HOLDS_WHOEVER = "trial and trial.s == 'running'"
NEXT_ATTEMPT, SAME_ATTEMPT = "= trial.a + 1, token,", "= math.max(trial.a, 1), token,"
GAP = "if now - last > lease / 2 then"
GAP_AT_EXPIRY = "if now - tonumber(redis.call('HGET', META, 'tick') or 0) > tonumber(lease) / 2 then return nil end"
ALONE = scripts.ALONE


def apply(name: str) -> None:
    WRONG[name]()


def _fences_not_compared() -> None:
    _rewrite(lambda script, text: text if script in ALONE else _replaced(text, HOLDS, HOLDS_WHOEVER))


def _fences_at_renew_only() -> None:
    _rewrite(lambda script, text: text if script in {*ALONE, "renew"} else _replaced(text, HOLDS, HOLDS_WHOEVER))


def _attempts_used_again() -> None:
    _rewrite(lambda script, text: _replaced(text, NEXT_ATTEMPT, SAME_ATTEMPT) if script == "claim" else text)


def _reaps_after_an_outage() -> None:
    wrong = {"tick": (GAP, "if false then"), "expire": (GAP_AT_EXPIRY, "")}
    _rewrite(lambda script, text: _replaced(text, *wrong[script]) if script in wrong else text)


def _finishes_before_the_record() -> None:
    write = Recorder._write_records

    def finish_then_write(self: Any, stage: str, records: Any) -> None:
        self._session.queue.finish([(fence, record.result()) for fence, record in records])
        write(self, stage, records)

    Recorder._write_records = finish_then_write  # type: ignore[method-assign]


def _rewrite(change: Callable[[str, str], str]) -> None:
    real = scripts.load

    @cache
    def load(name: str) -> scripts.Script:
        text = change(name, real(name).text)
        return scripts.Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode())

    scripts.load = load


def _replaced(text: str, right: str, wrong: str) -> str:
    assert text.count(right) == 1, f"the scripts have changed ({right!r} is no longer there once); change wrong_builds.py with them"
    return text.replace(right, wrong)


WRONG: dict[str, Callable[[], None]] = {
    "fences not compared": _fences_not_compared,
    "fences checked at renew only": _fences_at_renew_only,
    "attempt numbers used again": _attempts_used_again,
    "finish said before the record is written": _finishes_before_the_record,
    "reaping right after an outage": _reaps_after_an_outage,
}
