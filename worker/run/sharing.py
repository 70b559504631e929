"""Decide which trials of its array a worker gives to workers that are idle.

So no worker waits long for another at the end of a rung. A slow worker gives away all its trials.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from common.queue.trial_queue import TrialQueue
from common.queue.workers import WorkerRegistry
from common.search.trial import WorkerInfo
from worker.training.types import View

# A trial with less training left is not given away: to hand it over takes some tenths of a second.
LEAST_S = 1.5
PAUSE_S = 1.0  # between two looks; also the time in which only others claim the given trials
AGAIN_S = 30.0  # after which a trial that came back may be given away again
CROWD = 20  # per so many workers the pause is one PAUSE_S longer: all look at the end of a rung


class Sharing:
    """The trials that one worker shares with idle workers.

    It looks for idle workers once a second at most. On a GPU nothing is shared: half an array is
    assumed to take nearly as long there. That was not measured.
    """

    def __init__(self, registry: WorkerRegistry, own: WorkerInfo) -> None:
        """Initialise for one worker.

        Args:
            registry: the list of workers, which says who is idle.
            own: this worker.
        """
        self._registry = registry
        self._own = own
        self._look_at = self._refill_at = 0.0
        # When each trial may be given away again. It may come back, because the idle worker is not
        # allowed to claim it, or because all others were busy for a moment.
        self._again_at: dict[str, float] = {}

    @property
    def refills(self) -> bool:
        """Whether this worker may ask for more trials.

        It may not just after it has given some away.
        """
        return time.monotonic() >= self._refill_at

    def surplus(self, queue: TrialQueue, running: Sequence[View]) -> list[View]:
        """Return the trials that idle workers should get.

        Each idle worker gets an equal share. A slow worker gives away all trials, if there is an
        idle worker on another machine. Nothing is given away while other trials are pending.

        Args:
            queue: the queue of the search.
            running: the trials of the array, at a boundary.

        Raises:
            QueueError: Redis does not serve.
        """
        able = [
            view for view in running if _compute_left_s(view) >= LEAST_S and not self._stays(view)
        ]
        if not able or time.monotonic() < self._look_at:
            return []
        self._look_at = time.monotonic() + PAUSE_S
        if queue.pending_total():
            return []
        workers, asking = self._registry.list(), queue.live_workers()
        self._look_at += PAUSE_S * len(workers) // CROWD
        idle = [
            one
            for one in workers
            if one.state == "idle" and one.worker in asking and one.worker != self._own.worker
        ]
        if any(one.worker == self._own.worker and one.state == "slow" for one in workers):
            return able if any(one.place != self._own.place for one in idle) else []
        if self._own.device != "cpu":
            return []
        n_given = len(running) - -(-len(running) // (len(idle) + 1))
        return sorted(able, key=_compute_left_s, reverse=True)[:n_given]

    def note(self, given: Iterable[str]) -> None:
        """Note which trials were given away.

        For one second this worker claims no trials, so that the others can claim these.
        """
        self._again_at |= dict.fromkeys(given, time.monotonic() + AGAIN_S)
        self._refill_at = time.monotonic() + PAUSE_S
        # By then the workers that have claimed one are no longer listed as idle.
        self._look_at = max(self._look_at, self._refill_at + PAUSE_S)

    def _stays(self, view: View) -> bool:
        return view.claim.alone or time.monotonic() < self._again_at.get(view.trial.id, 0.0)


def _compute_left_s(view: View) -> float:
    """Return the seconds that a trial still trains, at the pace of its array."""
    return (view.trial.epochs - view.epoch) * (view.last_epoch_s or 0.0)
