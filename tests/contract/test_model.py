"""Random sequences of commands, compared with a model that fits on a page.

Builds that are wrong on purpose must fail.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from common.queue import scripts
from common.search.trial import TrialState
from tests.contract.machine import QueueMachine

DAY_S = 86_400
ROUNDS = 20  # one round of 200 walks may miss a wrong build that rarely shows
# Where ``CI`` is set, Hypothesis walks one way for ever, unless told not to.
NO_LIMITS = settings(
    deadline=None, database=None, derandomize=False, suppress_health_check=list(HealthCheck)
)
HOLDS = "trial and trial.s == 'running' and trial.a == tonumber(attempt) and trial.t == token"
OVER = "if tonumber(redis.call('ZSCORE', LEASES, id)) >= now then return nil end"
GAP = "if now - last > lease / 2 then"
GAP_AT_EXPIRY = (
    "if now - tonumber(redis.call('HGET', META, 'tick') or 0) > tonumber(lease) / 2 then "
    "return nil end"
)
LEASE = "due[#due + 1] = whole(now + lease)"
EXTENDED = "'-inf', whole(now + lease))) do\n    due[#due + 1] = whole(now + lease"
EXPIRED = "redis.call('ZRANGEBYSCORE', LEASES, '-inf', '(' .. whole(now), 'LIMIT', 0, most)"

EARLIER = "local earlier = trial and (trial.r or 0) < rung"
WAITS_OR_COMPLETED = "if earlier and (trial.s == 'completed' or trial.s == 'pending') then"

WRONG: dict[str, tuple[str, str, str]] = {
    "a tick reports live leases": (
        "tick",
        EXPIRED,
        "redis.call('ZRANGEBYSCORE', LEASES, '-inf', '+inf', 'LIMIT', 0, most)",
    ),
    "a tick reports leases half-way": (
        "tick",
        EXPIRED,
        EXPIRED.replace("'(' .. whole(now)", "whole(now + lease / 2)"),
    ),
    "a tick reports nothing": ("tick", EXPIRED, "{}"),
    "a tick extends nothing after a gap": ("tick", GAP, "if false then"),
    "every tick extends": ("tick", GAP, "if true then"),
    "a tick extends by half a lease": ("tick", EXTENDED, EXTENDED + " - lease / 2"),
    "a tick is not noted": ("tick", "redis.call('HSET', META, 'tick', whole(now))", ""),
    "a live lease is reaped": ("expire", OVER, ""),
    "a lease that is over is never reaped": ("expire", OVER, "if true then return nil end"),
    "a lease is reaped after a gap": ("expire", GAP_AT_EXPIRY, ""),
    "a heartbeat prolongs nothing": (
        "renew",
        LEASE,
        "due[#due + 1] = redis.call('ZSCORE', LEASES, id)",
    ),
    "a claim is over at once": ("claim", LEASE, "due[#due + 1] = whole(now)"),
    "fences are not compared": ("shared", HOLDS, "trial and trial.s == 'running'"),
    "attempt numbers are used again": (
        "claim",
        "= trial.a + 1, token,",
        "= math.max(trial.a, 1), token,",
    ),
    "what stands on a rung is promoted to it again": (
        "promote",
        EARLIER,
        EARLIER.replace("<", "<="),
    ),
    "what runs is promoted": (
        "promote",
        WAITS_OR_COMPLETED,
        "if earlier and trial.s ~= 'killed' then",
    ),
    "what was killed is promoted": (
        "promote",
        WAITS_OR_COMPLETED,
        "if earlier and trial.s ~= 'running' then",
    ),
    "a promotion forgets whose finish was accepted": (
        "promote",
        "{ trial.a, trial.t }",
        "{ 0, '' }",
    ),
    "a promotion leaves the result": ("promote", "redis.call('HDEL', RESULTS, id)", ""),
    "a promotion settles nothing": ("promote", "trial.f = trial.a", ""),
    "the promoted wait with those that are not": (
        "promote",
        "trial.g, trial.r = queue_for(stage, group, rung), rung",
        "trial.r = rung",
    ),
    "a record of an earlier rung ends a trial": (
        "restore",
        "if trial and (trial.r or 0) > rung then return 0 end",
        "",
    ),
    "a record of a later rung leaves the budget": (
        "restore",
        "if raises then -- only now",
        "if not trial.g then -- only now",
    ),
}


def load_changed(monkeypatch: pytest.MonkeyPatch, change: Callable[[str, str], str]) -> None:
    real = scripts.load

    def load(name: str) -> scripts.Script:
        text = change(name, real(name).text)
        return scripts.Script(
            text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode()
        )

    monkeypatch.setattr(scripts, "load", load)


def set_clock(monkeypatch: pytest.MonkeyPatch, ahead_s: float) -> None:
    """Of this process alone; the server is another."""
    seconds, nanoseconds = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: seconds() + ahead_s)
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + int(ahead_s * 1e9))


def walk(client: redis.Redis, examples: int) -> None:
    """Other walks at each run, and the same in CI, which should not fail by luck."""
    machine = type("Machine", (QueueMachine,), {"client": client})
    limits = settings(
        NO_LIMITS,
        max_examples=examples,
        stateful_step_count=40,
        derandomize=os.environ.get("CI") == "true",
    )
    run_state_machine_as_test(machine, settings=limits)


def walk_until_seen(client: redis.Redis) -> None:
    """Walk until the wrong build fails. One round sees most of them; no walk is like another."""
    machine = type("Machine", (QueueMachine,), {"client": client})
    bounded = settings(
        NO_LIMITS,
        max_examples=200,
        stateful_step_count=40,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    for _ in range(ROUNDS):
        try:
            run_state_machine_as_test(machine, settings=bounded)
        except AssertionError:
            return
    pytest.fail(f"{ROUNDS} rounds of walks did not see it")


def test_no_order_of_words_confuses_the_queue(client: redis.Redis) -> None:
    walk(client, 30)


def test_the_end_of_a_lost_attempt_counts_no_more_once_the_trial_was_promoted(
    client: redis.Redis,
) -> None:
    state = type("Machine", (QueueMachine,), {"client": client})()
    state.begin(n=1, worker="w1")
    state.watch(beats=None, reaps=True, steps=10)
    state.promote(by=1, floor=0, pick=0)
    state.restore(by=0, pick=0, rungs=0, state=TrialState.COMPLETED)
    state.everything_agrees()
    state.finish(pick=0, state=TrialState.COMPLETED)
    state.everything_agrees()
    state.teardown()


@pytest.mark.slow
@pytest.mark.parametrize("ahead_s", [DAY_S, -DAY_S])
def test_no_clock_of_a_client_moves_a_lease(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    set_clock(monkeypatch, ahead_s)
    walk(client, 10)


@pytest.mark.faults  # each walks until it is seen: tests of the walks, two seconds each
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_build_is_seen(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    changed, right, wrong = WRONG[name]

    def change(script: str, text: str) -> str:
        if changed not in (script, "shared") or script in scripts.ALONE:
            return text
        assert text.count(right) == 1, (
            f"{script}.lua has changed ({right!r} is no longer there once); change this "
            "test with it"
        )
        return text.replace(right, wrong)

    load_changed(monkeypatch, change)
    walk_until_seen(client)


@pytest.mark.faults
@pytest.mark.parametrize("word", ["claim", "renew", "tick"])
def test_a_lease_by_the_clients_clock_is_seen(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    set_clock(monkeypatch, DAY_S)

    def change(script: str, text: str) -> str:
        assert script != word or LEASE in text
        return (
            text.replace(LEASE, f"due[#due + 1] = whole({time.time() * 1000:.0f} + lease)")
            if script == word
            else text
        )

    load_changed(monkeypatch, change)
    walk_until_seen(client)
