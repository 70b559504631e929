"""What the queue answers to a word about trials."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from common import wire
from common.trial import Fence, Result, TrialState


class Verdict(StrEnum):
    """Redis's answer to a holder's word about its trial."""

    OK = "ok"
    LOST = "lost"  # the fence is stale: the word has changed nothing


@dataclass(frozen=True)
class Taken:
    """A trial that was taken from its holder.

    ``fence.attempt`` is the number under which the verdict's record belongs when the trial has ended (FAILED, KILLED),
    else the attempt that was lost.
    """

    fence: Fence
    state: TrialState
    result: Result | None  # None: it waits again
    worker: str | None  # who held it, None if nobody did


@dataclass(frozen=True)
class Tick:
    """What a tick found. ``extended``: there had been no tick for half a lease, so every lease was extended instead."""

    extended: bool
    expired: tuple[tuple[Fence, str], ...]  # with the worker that held it


def taken_in(trial_id: str, reply: Any, fence: Fence | None) -> Taken | None:
    """Reads what the scripts expire, take and kill answer; None where they changed nothing.

    Raises:
        DamagedReplyError: they have put values into it that this program has not written.
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
    token = "" if result or not fence else fence.token  # a verdict is nobody's lease
    return Taken(Fence(trial_id, wire.whole_in(attempt, "attempt"), token), stands, result, holder)
