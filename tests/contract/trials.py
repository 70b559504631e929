"""Made trials, and what must always agree in a search's keys."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from common.queue.answers import Taken
from common.queue.trial_queue import TrialQueue
from common.search.search_file import default_text
from common.search.trial import Claim, Fence, Progress, Result, Trial, TrialState, trial_id

SEARCH = "0123456789abcdef"
GROUP = '{"hidden":32}'
DONE = Result(TrialState.COMPLETED, val_acc=0.9, val_loss=0.3, epochs=1.0)


def made(
    n: int, stage: str = "coarse", group: str | Callable[[int], str] = GROUP, first: int = 0
) -> list[Trial]:
    """Trials ``first`` to ``first + n - 1`` of a stage."""
    groups = group if callable(group) else (lambda _: group)
    return [
        Trial(trial_id(stage, i), stage, i, i + 7, 1.0, {"learning_rate": 0.1 / (i + 1)}, groups(i))
        for i in range(first, first + n)
    ]


def text_with(stages: str) -> str:
    """A search file for stages of the user's own, in place of a budget."""
    return re.sub(r"\[budget\].*?(?=\n# \[stages)", stages, default_text(), count=1, flags=re.S)


def at_rung(trial: Trial, rung: int) -> Trial:
    """Return the same trial at another rung; a number below 0 is rung 0.

    Each rung has twice the epochs of the one before.
    """
    first = trial.epochs / 2**trial.rung
    budgets = [first * 2**n for n in range(max(0, rung) + 1)]
    return replace(trial, epochs=budgets[-1], passed=tuple(budgets[:-1]))


def ids(claims: Iterable[Claim]) -> list[str]:
    return [claim.trial.id for claim in claims]


def until(condition: Callable[[], Any], what: str, patience_s: float = 30.0) -> Any:
    """What ``condition`` returns as soon as it is true."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in {patience_s} s: {what}"
        time.sleep(0.001)
    return value


def heartbeat(fence: Fence, beat: int = 1, **more: Any) -> Progress:
    return Progress(fence, beat, **more)


def lose(
    queue: TrialQueue, brief: TrialQueue, trial: str, worker: str, request: str, max_lost: int = 3
) -> Taken:
    """``worker`` claims exactly this trial, dies, and its lease is reaped."""
    (claim,) = brief.claim(worker, 1, request)
    assert claim.trial.id == trial
    return reap(queue, claim.fence, max_lost)


def reap(queue: TrialQueue, fence: Fence, max_lost: int = 3) -> Taken:
    """Expires a lease as soon as it is over."""
    taken: Taken = until(lambda: queue.expire(fence, max_lost), f"{fence.trial_id} expires")
    return taken


def check_consistent(queue: TrialQueue) -> None:
    """Every key tells the same story."""
    client, keys = queue.client, queue.keys
    states = {i: json.loads(s) for i, s in client.hgetall(keys["states"]).items()}
    by_state = {s.value: {i for i, state in states.items() if state["s"] == s} for s in TrialState}
    totals = [sum(stage.values()) for stage in queue.counts().values()]
    assert sum(totals) == len(states) == client.hlen(keys["trials"])
    for state in TrialState:
        assert sum(stage[state] for stage in queue.counts().values()) == len(by_state[state])
    assert set(client.zrange(keys["pending"], 0, -1)) == by_state["pending"]
    assert set(client.zrange(keys["leases"], 0, -1)) == by_state["running"]
    assert set(client.hkeys(keys["progress"])) <= by_state["running"]
    assert (
        set(client.hkeys(keys["results"]))
        == set(states) - by_state["pending"] - by_state["running"]
    )
    assert queue.pending_total() == len(by_state["pending"])
    queues: dict[str, int] = {}
    waiting = dict(client.zrange(keys["pending"], 0, -1, withscores=True))
    for i, state in ((i, states[i]) for i in by_state["pending"]):
        assert state["g"] // 2**20 % 8 == min(state.get("r", 0), 7)
        number = state["g"] // 2**23 * 2**23 if state.get("x") else state["g"]
        assert waiting[i] == number * 2**20 + state["i"]
        queues[str(number)] = queues.get(str(number), 0) + 1
    assert set(client.zrange(keys["open"], 0, -1)) == set(queues)
    for member, score in client.zrange(keys["open"], 0, -1, withscores=True):
        assert -score % 2**21 == queues[member]
