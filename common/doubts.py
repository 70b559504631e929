"""What becomes of trials that raise: a second machine's try first, and what is held against the machine where they did.

A machine that cannot import a task or read its data fails whatever it claims. So where another machine lives that could try it, a
trial that raised goes back to the queue for that one, and counts as FAILED only if it raises there too. The rules are in `claim.lua`,
`fail.lua` and `finish.lua`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from common import wire
from common.errors import PutAside

MAX_RAISED = 3  # tries that raised and end a trial though one machine had them all: the others came and went
MOST_REASON = 300  # characters of why a trial raised that Redis keeps until it ends


class Ruling(StrEnum):
    """What the holder of a trial that raised is to do."""

    FINAL = "final"  # write its record as FAILED, and finish
    PASSED = "passed"  # forget it: it waits for another machine
    LOST = "lost"  # forget it: the fence is stale


@dataclass(frozen=True)
class Raised:
    """A try that raised and was passed on."""

    machine: str
    attempt: int
    worker: str
    reason: str

    def __str__(self) -> str:
        return f"try {self.attempt} on {self.worker}: {self.reason}"


@dataclass(frozen=True)
class Answer:
    """Redis's answer to "it raised"; ``earlier``: the tries before, which a final word has to name."""

    ruling: Ruling
    earlier: tuple[Raised, ...] = ()


def answer_in(word: Any) -> Answer:
    """One of the answers of ``fail.lua``.

    Raises:
        DamagedReplyError: it has put values into it that this program has not written.
    """
    try:
        if isinstance(word, str):
            return Answer(Ruling(word))
        earlier = tuple(Raised(*row) for row in word)
    except (TypeError, ValueError):
        raise wire.unwritten("answer to what raised", word) from None
    if not all(isinstance(text, str) for try_ in earlier for text in (try_.machine, try_.worker, try_.reason)):
        raise wire.unwritten("answer to what raised", word)
    return Answer(Ruling.FINAL, tuple(replace(try_, attempt=wire.whole_in(try_.attempt, "attempt")) for try_ in earlier))


def put_aside(found: Sequence[Any]) -> PutAside:
    """The error for what ``claim.lua`` answers to a machine that gets no trials.

    Raises:
        DamagedReplyError: it has put values into it that this program has not written.
    """
    if len(found) < 2 or not all(isinstance(text, str) for text in found):
        raise wire.unwritten("machine that was put aside", found)
    kind, reason, *trials = found
    if kind == "wait":
        return PutAside(f"one trial after the other raised on this machine ({reason}); it waits until another machine has tried them")
    return PutAside(
        f"this machine is put aside: {', '.join(trials)} raised here and ended well elsewhere ({reason}); "
        "mend the cause and start its workers again",
        for_good=True,
    )
