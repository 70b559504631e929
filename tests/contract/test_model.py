"""Any order of any words, against a model that fits on a page; and builds that are wrong on purpose, which it has to see."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from common import scripts
from tests.contract.machine import QueueMachine

DAY_S = 86_400
NO_LIMITS = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
HOLDS = "trial and trial.s == 'running' and trial.a == tonumber(attempt) and trial.t == token"
OVER = "if tonumber(redis.call('ZSCORE', LEASES, id)) >= now then return nil end"
GAP = "if now - last > lease / 2 then"
GAP_AT_EXPIRY = "if now - tonumber(redis.call('HGET', META, 'tick') or 0) > tonumber(lease) / 2 then return nil end"
LEASE = "due[#due + 1] = whole(now + lease)"
EXTENDED = "'-inf', whole(now + lease))) do\n    due[#due + 1] = whole(now + lease"
EXPIRED = "redis.call('ZRANGEBYSCORE', LEASES, '-inf', '(' .. whole(now), 'LIMIT', 0, most)"

WRONG: dict[str, tuple[str, str, str]] = {
    "a tick reports live leases": ("tick", EXPIRED, "redis.call('ZRANGEBYSCORE', LEASES, '-inf', '+inf', 'LIMIT', 0, most)"),
    "a tick reports leases half-way": ("tick", EXPIRED, EXPIRED.replace("'(' .. whole(now)", "whole(now + lease / 2)")),
    "a tick reports nothing": ("tick", EXPIRED, "{}"),
    "a tick extends nothing after a gap": ("tick", GAP, "if false then"),
    "every tick extends": ("tick", GAP, "if true then"),
    "a tick extends by half a lease": ("tick", EXTENDED, EXTENDED + " - lease / 2"),
    "a tick is not noted": ("tick", "redis.call('HSET', META, 'tick', whole(now))", ""),
    "a live lease is reaped": ("expire", OVER, ""),
    "a lease that is over is never reaped": ("expire", OVER, "if true then return nil end"),
    "a lease is reaped after a gap": ("expire", GAP_AT_EXPIRY, ""),
    "a heartbeat prolongs nothing": ("renew", LEASE, "due[#due + 1] = redis.call('ZSCORE', LEASES, id)"),
    "a claim is over at once": ("claim", LEASE, "due[#due + 1] = whole(now)"),
    "fences are not compared": ("shared", HOLDS, "trial and trial.s == 'running'"),
    "attempt numbers are used again": ("claim", "= trial.a + 1, token,", "= math.max(trial.a, 1), token,"),
}


def load_changed(monkeypatch: pytest.MonkeyPatch, change: Callable[[str, str], str]) -> None:
    real = scripts.load

    def load(name: str) -> scripts.Script:
        text = change(name, real(name).text)
        return scripts.Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode())

    monkeypatch.setattr(scripts, "load", load)


def set_clock(monkeypatch: pytest.MonkeyPatch, ahead_s: float) -> None:
    """Of this process alone; the server is another."""
    seconds, nanoseconds = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: seconds() + ahead_s)
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + int(ahead_s * 1e9))


def walk(client: redis.Redis, examples: int) -> None:
    """Other walks at each run."""
    machine = type("Machine", (QueueMachine,), {"client": client})
    run_state_machine_as_test(machine, settings=settings(NO_LIMITS, max_examples=examples, stateful_step_count=40))


def walk_until_seen(client: redis.Redis) -> None:
    """The same walks at each run, at most so many that none of the wrong builds gets through."""
    machine = type("Machine", (QueueMachine,), {"client": client})
    bounded = settings(
        NO_LIMITS, max_examples=200, stateful_step_count=40, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=bounded)


def test_no_order_of_words_confuses_the_queue(client: redis.Redis) -> None:
    walk(client, 30)


@pytest.mark.parametrize("ahead_s", [DAY_S, -DAY_S])
def test_no_clock_of_a_client_moves_a_lease(client: redis.Redis, monkeypatch: pytest.MonkeyPatch, ahead_s: float) -> None:
    set_clock(monkeypatch, ahead_s)
    walk(client, 10)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_build_is_seen(client: redis.Redis, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    changed, right, wrong = WRONG[name]

    def change(script: str, text: str) -> str:
        if changed not in (script, "shared") or script in scripts.ALONE:
            return text
        assert text.count(right) == 1, f"{script}.lua has changed ({right!r} is no longer there once); change this test with it"
        return text.replace(right, wrong)

    load_changed(monkeypatch, change)
    walk_until_seen(client)


@pytest.mark.parametrize("word", ["claim", "renew", "tick"])
def test_a_lease_by_the_clients_clock_is_seen(client: redis.Redis, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    set_clock(monkeypatch, DAY_S)

    def change(script: str, text: str) -> str:
        assert script != word or LEASE in text
        return text.replace(LEASE, f"due[#due + 1] = whole({time.time() * 1000:.0f} + lease)") if script == word else text

    load_changed(monkeypatch, change)
    walk_until_seen(client)
