"""Trials that raised an exception on this machine.

They are kept until Redis has ruled on them: either another machine tries them again, or they have
failed for good.
"""

from __future__ import annotations

from collections.abc import Callable

from common.folder.record import Record
from common.queue.second_tries import Raised, Ruling
from common.queue.trial_queue import TrialQueue
from common.repeats import list_few
from common.search.trial import Fence
from worker.run.heartbeat import Heartbeat


class Raising:
    """The trials that raised on this machine and that Redis has not ruled on yet."""

    def __init__(self, queue: TrialQueue, heartbeat: Heartbeat, say: Callable[[str], None]) -> None:
        self._queue = queue
        self._heartbeat = heartbeat
        self._say = say
        self._waiting: list[tuple[Fence, Record]] = []

    def add(self, fence: Fence, record: Record) -> None:
        """Add a trial that raised.

        ``record`` says so. It must not be written before Redis has ruled.
        """
        self._waiting.append((fence, record))

    def trials(self) -> set[str]:
        """Return the ids of the waiting trials. Their leases are still held."""
        return {fence.trial_id for fence, _ in self._waiting}

    def fences(self) -> list[Fence]:
        """Return the fences of the waiting trials."""
        return [fence for fence, _ in self._waiting]

    def clear(self) -> None:
        """Forget the waiting trials, since their leases have been given back."""
        self._waiting.clear()

    def ask(self) -> list[tuple[Fence, Record]]:
        """Ask Redis for its ruling on each waiting trial.

        Returns:
            The trials that have failed for good, with the records to write. The others now belong
            to other workers.

        Raises:
            QueueError: Redis is away. Nothing has changed here.
        """
        if not self._waiting:
            return []
        answers = self._queue.fail(
            [(fence, record.reason or "") for fence, record in self._waiting]
        )
        asked, self._waiting = self._waiting, []
        final, passed, held = [], [], []
        for (fence, record), answer in zip(asked, answers, strict=True):
            if answer.ruling is Ruling.FINAL:
                final.append((fence, _naming(record, answer.earlier)))
                continue
            self._heartbeat.drop([fence.trial_id])
            if answer.ruling is Ruling.PASSED:
                passed.append(record)
            else:
                held.append(f"{fence.trial_id} try {fence.attempt}")
        if held:
            self._say(
                f"{list_few(held)}: another worker now holds "
                f"{'this trial' if len(held) == 1 else 'each of them'}; a failure here changes "
                "nothing"
            )
        self._tell(passed)
        return final

    def _tell(self, passed: list[Record]) -> None:
        """Print each reason once, with one traceback.

        No record contains them, since the cause may be this machine.
        """
        reasons: dict[str, list[Record]] = {}
        for record in passed:
            reasons.setdefault(record.reason or "", []).append(record)
        for reason, records in reasons.items():
            more = f" and {len(records) - 1} more" if len(records) > 1 else ""
            self._say(
                f"{records[0].trial}{more} raised here: {reason}. Another machine will try "
                f"next\n{(records[0].traceback or '').rstrip()}"
            )


def _naming(record: Record, earlier: tuple[Raised, ...]) -> Record:
    """Return the record with the failures on other machines added to its reason."""
    if not earlier:
        return record
    return record.model_copy(
        update={"reason": f"{record.reason}; raised before: {'; '.join(map(str, earlier))}"}
    )
