"""Numbers that move while a search runs: pace, time left, cost in device time, who trains what."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence

from common.search.trial import Running
from master.dashboard.views import models
from master.dashboard.views.stage_view import MAX_SHARE, StageView
from master.results.cost import cost_by_stage, describe_cost, device_seconds, held_now
from master.run.climb import Climb, estimate_together
from master.run.estimate import describe_left
from master.run.progress import describe_pace

EVERY_S = 5.0  # between two counts of the time of running trials


class Costs:
    """The device seconds of each trial, counted anew when records come or trials run.

    Counting takes at most 1 / ``MAX_SHARE`` of the time.
    """

    def __init__(self) -> None:
        self.by_trial: dict[str, float] = {}
        self._changed = True
        self._count_at = 0.0

    def refresh(
        self, views: Iterable[StageView], running: Sequence[Running], has_changed: bool
    ) -> None:
        """Count again, if something is new and it is time."""
        self._changed |= has_changed or bool(running)
        if not self._changed or time.monotonic() < self._count_at:
            return
        began, now_s = time.thread_time(), time.time()
        held = [one for view in views for one in view.held]
        self.by_trial = device_seconds([*held, *(held_now(one, now_s) for one in running)])
        self._changed = False
        spent = (MAX_SHARE - 1) * (time.thread_time() - began)
        self._count_at = time.monotonic() + max(spent, EVERY_S if running else 0.0)

    def row(self, stage: str | None = None) -> models.Cost:
        """Return the cost of the search, or of one stage."""
        if stage is None:
            return as_cost(sum(self.by_trial.values()))
        return as_cost(cost_by_stage(self.by_trial).get(stage, 0.0))


def as_cost(seconds: float) -> models.Cost:
    """Return device time with its words."""
    return models.Cost(device_s=seconds, words=describe_cost(seconds) if seconds else "")


def estimate_of(
    climbs: Sequence[Climb], now_s: float, later_epochs: float | None = None
) -> models.Estimate:
    """Return the pace and the time left of one stage, or of several together.

    Args:
        climbs: How far each stage is.
        now_s: Unix time, s.
        later_epochs: The work to estimate, if it is not what these stages have left.
    """
    found = estimate_together(climbs, now_s, later_epochs)
    if found is None or found.left_s <= 0:
        return models.Estimate()
    return models.Estimate(
        pace=found.pace,
        left_s=found.left_s,
        left_range_s=found.left_range_s,
        pace_words=describe_pace(found.pace),
        left_words=describe_left(found),
    )


def who_trains(
    workers: Sequence[models.WorkerRow], running: Sequence[Running], served: set[str]
) -> list[models.AtWork]:
    """Return what each worker does for a search.

    Args:
        workers: The workers that train for this search, or may.
        running: The running trials of the search.
        served: The workers that train for any search now.
    """
    by_worker: dict[str, list[Running]] = {}
    for one in running:
        by_worker.setdefault(one.worker, []).append(one)
    found = []
    for worker in workers:
        own = by_worker.pop(worker.worker, [])
        does = "trains" if own else "elsewhere" if worker.worker in served else worker.state
        found.append(
            models.AtWork(
                worker=worker.worker,
                device=worker.device_model or worker.device,
                does=does,
                trials=len(own),
                stages=dict(Counter(one.trial.stage for one in own)),
                widths=_widths(own),
                backend=worker.backend.partition(":")[0],
            )
        )
    return found


def _widths(own: Sequence[Running]) -> list[int]:
    """Return the widths of the arrays that some trials of a worker train in."""
    told = Counter(one.progress.array_width for one in own if one.progress)
    return sorted((width for width in told if width > 0), reverse=True)
