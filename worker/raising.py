"""Trials that raised here: kept until Redis says whether another machine tries them, or they have failed for good."""

from __future__ import annotations

from collections.abc import Callable

from common.doubts import Raised, Ruling
from common.queue import TrialQueue
from common.record import Record
from common.trial import Fence
from worker.heartbeat import Heartbeat


class Raising:
    """What raised on this machine, while Redis has not ruled on it."""

    def __init__(self, queue: TrialQueue, heartbeat: Heartbeat, say: Callable[[str], None]) -> None:
        self._queue = queue
        self._heartbeat = heartbeat
        self._say = say
        self._waiting: list[tuple[Fence, Record]] = []

    def add(self, fence: Fence, record: Record) -> None:
        """A trial raised: ``record`` says so, and is not to be written before Redis has ruled."""
        self._waiting.append((fence, record))

    def trials(self) -> set[str]:
        """Those that wait for a ruling; their leases are still held."""
        return {fence.trial_id for fence, _ in self._waiting}

    def fences(self) -> list[Fence]:
        """Of the same."""
        return [fence for fence, _ in self._waiting]

    def clear(self) -> None:
        """Forgets them: their leases have been given back."""
        self._waiting.clear()

    def ruled(self) -> list[tuple[Fence, Record]]:
        """Asks Redis; the trials that have failed for good, with the records that are to be written. The others are another's now.

        Raises:
            QueueError: Redis is away; nothing has changed here.
        """
        if not self._waiting:
            return []
        answers = self._queue.fail([(fence, record.reason or "") for fence, record in self._waiting])
        asked, self._waiting = self._waiting, []
        final, passed = [], []
        for (fence, record), answer in zip(asked, answers, strict=True):
            if answer.ruling is Ruling.FINAL:
                final.append((fence, _naming(record, answer.earlier)))
                continue
            self._heartbeat.drop([fence.trial_id])
            if answer.ruling is Ruling.PASSED:
                passed.append(record)
            else:
                self._say(f"{fence.trial_id} try {fence.attempt}: somebody else has it now; that it raised here changes nothing")
        self._tell(passed)
        return final

    def _tell(self, passed: list[Record]) -> None:
        """Once for each reason, with its traceback: no record keeps it, as it may be this machine's fault."""
        reasons: dict[str, list[Record]] = {}
        for record in passed:
            reasons.setdefault(record.reason or "", []).append(record)
        for reason, records in reasons.items():
            more = f" and {len(records) - 1} more" if len(records) > 1 else ""
            self._say(f"{records[0].trial}{more} raised here: {reason}. Another machine is to try\n{(records[0].traceback or '').rstrip()}")


def _naming(record: Record, earlier: tuple[Raised, ...]) -> Record:
    """The record, with the tries on other machines in its reason."""
    if not earlier:
        return record
    return record.model_copy(update={"reason": f"{record.reason}; raised before: {'; '.join(map(str, earlier))}"})
