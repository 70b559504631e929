"""Trials that raise: the second try on another machine, and the machines that are put aside.

A machine that cannot import a task or read its data fails all trials that it claims. So if another
machine lives that could try it, a trial that raised goes back to the queue for that machine. It
only counts as FAILED if it raises there too. The rules are in ``claim.lua``, ``fail.lua`` and
``finish.lua``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from common.errors import PutAside
from common.queue import wire

# After this many tries that raised, a trial ends even if one machine had them all, since the other
# machines came and went.
MAX_RAISED = 3
# Characters of a try's reason that Redis keeps until the trial ends.
MOST_REASON = 300


class Ruling(StrEnum):
    """What the holder of a trial that raised has to do."""

    FINAL = "final"  # write its record as FAILED, and finish
    PASSED = "passed"  # drop it: it waits for another machine
    LOST = "lost"  # drop it: the fence is stale


@dataclass(frozen=True)
class Raised:
    """A try that raised, after which the trial went to another machine."""

    machine: str
    attempt: int
    worker: str
    reason: str

    def __str__(self) -> str:
        return f"try {self.attempt} on {self.worker}: {self.reason}"


@dataclass(frozen=True)
class Answer:
    """Redis's answer to a trial that raised.

    ``earlier`` are the earlier tries that raised, which a FAILED record has to name.
    """

    ruling: Ruling
    earlier: tuple[Raised, ...] = ()


def answer_in(word: Any) -> Answer:
    """Parse one of the answers of ``fail.lua``.

    Raises:
        DamagedReplyError: it has values that this program did not write.
    """
    try:
        if isinstance(word, str):
            return Answer(Ruling(word))
        earlier = tuple(Raised(*row) for row in word)
    except (TypeError, ValueError):
        raise wire.unwritten("answer to what raised", word) from None
    if not all(
        isinstance(text, str)
        for try_ in earlier
        for text in (try_.machine, try_.worker, try_.reason)
    ):
        raise wire.unwritten("answer to what raised", word)
    return Answer(
        Ruling.FINAL,
        tuple(replace(try_, attempt=wire.whole_in(try_.attempt, "attempt")) for try_ in earlier),
    )


def put_aside(found: Sequence[Any]) -> PutAside:
    """Return the error for what ``claim.lua`` answers to a machine that gets no trials.

    Raises:
        DamagedReplyError: it has values that this program did not write.
    """
    if len(found) < 2 or not all(isinstance(text, str) for text in found):
        raise wire.unwritten("machine that was put aside", found)
    kind, reason, *trials = found
    if kind == "wait":
        return PutAside(
            f"one trial after the other raised on this machine ({reason}); it waits until "
            "another machine has tried them"
        )
    return PutAside(
        f"this machine is put aside: {', '.join(trials)} raised here and ended well elsewhere "
        f"({reason}); fix the cause and start its workers again",
        for_good=True,
    )
