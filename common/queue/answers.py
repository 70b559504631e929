"""The queue's answers to messages about trials."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from common.queue import wire
from common.search.trial import Fence, Result, TrialState


class Verdict(StrEnum):
    """Redis's answer to a holder's message about its trial."""

    OK = "ok"
    LOST = "lost"  # the fence is stale, and the message has changed nothing


@dataclass(frozen=True)
class Taken:
    """A trial that was taken from its holder.

    If the trial has ended (FAILED, KILLED), ``fence.attempt`` is the number for the record of that
    ending. Otherwise it is the attempt that was lost.
    """

    fence: Fence
    state: TrialState
    result: Result | None  # None: it waits again
    worker: str | None  # its holder; None if it had none


@dataclass(frozen=True)
class Tick:
    """The result of a tick.

    ``extended`` means that there had been no tick for half a lease, so every lease was extended.
    """

    extended: bool
    expired: tuple[tuple[Fence, str], ...]  # with the worker that held the lease


def read_taken(trial_id: str, reply: Any, fence: Fence | None) -> Taken | None:
    """Read the reply of the scripts expire, take and kill; None if they changed nothing.

    Raises:
        DamagedReplyError: the reply has values that this program did not write.
    """
    if reply is None:
        return None
    try:
        attempt, state, worker, stored = reply
        stands = TrialState(wire.text(state))
        holder = wire.text(worker) or None
    except (AttributeError, TypeError, ValueError):
        raise wire.unwritten("verdict", reply) from None
    result = wire.result_in(stored) if stored else None
    token = "" if result or not fence else fence.token  # a trial that ended is under nobody's lease
    return Taken(Fence(trial_id, wire.whole_in(attempt, "attempt"), token), stands, result, holder)
