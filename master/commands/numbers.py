"""The numbers of `master status`: pace, time left and cost, as the dashboard has them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import CheckpointError
from common.folder.record import Record
from common.folder.records import StageFolder, read_record
from common.search.trial import ENDED, Running, TrialState
from master.results.cost import cost_by_stage, describe_cost, device_seconds, held_by, held_now
from master.run.climb import climb, estimate_together, seen_of
from master.run.estimate import Estimate, describe_left
from master.run.progress import describe_pace
from master.stages.prepare import Launched
from master.stages.promotions import read_decisions


@dataclass(frozen=True)
class Numbers:
    """Pace, time left and cost of a search.

    Attributes:
        estimate: None if nothing trains, or too little is known.
        n_left: The trials that wait or run.
        cost: The device seconds of each stage.
    """

    estimate: Estimate | None
    n_left: int
    cost: Mapping[str, float]

    @property
    def lines(self) -> list[str]:
        """The numbers as text."""
        return [self._pace, *self._cost]

    @property
    def _pace(self) -> str:
        if not self.n_left:
            return "nothing is waiting or running"
        if self.estimate is None:
            return f"{self.n_left} trials to go; none has trained in the last minute"
        return (
            f"{describe_pace(self.estimate.pace)}, {self.n_left} to go, "
            f"{describe_left(self.estimate)}"
        )

    @property
    def _cost(self) -> list[str]:
        if not self.cost:
            return []
        parts = [f"{stage} {describe_cost(seconds)}" for stage, seconds in self.cost.items()]
        total = describe_cost(sum(self.cost.values()))
        return [f"cost so far: {total}" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")]

    @property
    def as_json(self) -> dict[str, Any]:
        """The numbers as keys of JSON."""
        told = self.estimate
        return {
            "pace": told.pace if told else None,
            "left_s": told.left_s if told else None,
            "left_range_s": list(told.left_range_s) if told and told.left_range_s else None,
            "device_s": dict(self.cost),
        }


def read_numbers(
    launched: Launched,
    running: Sequence[Running],
    counts: Mapping[str, Mapping[str, int]],
    warn: Callable[[str], None],
) -> Numbers:
    """Return the numbers of a search, from its records and its running trials.

    Args:
        launched: The search.
        running: Its running trials.
        counts: For each stage, the number of trials by state.
        warn: Called with a message about each damaged record.
    """
    now_s, search = time.time(), launched.search
    begun = [one for one in search.stages if launched.folder.stage(one.name).has_begun]
    read = [_read(launched.folder.stage(one.name), warn) for one in begun]
    records = [record for own in read for record, _ in own]
    held = [one for one in map(held_by, records) if one is not None]
    by_trial = device_seconds([*held, *(held_now(one, now_s) for one in running)])
    n_left = sum(
        by_state[TrialState.PENDING] + by_state[TrialState.RUNNING] for by_state in counts.values()
    )
    last = {
        record.trial: record for record in sorted(records, key=lambda own: (own.rung, own.attempt))
    }
    seen = [
        one
        for pairs in read
        for record, written in pairs
        if (one := seen_of(record, written)) is not None
    ]
    n_records = Counter(record.stage for record in last.values())
    climbs = [
        climb(
            stage,
            read_decisions(launched.folder, launched.id, [stage]) if stage.searches else [],
            last,
            running,
            seen,
            max(sum(counts[stage.name][state] for state in ENDED), n_records[stage.name]),
            search.strategy.resumes,
            now_s,
        )
        for stage in begun
    ]
    found = estimate_together(climbs, now_s)
    return Numbers(found, n_left, cost_by_stage(by_trial))


def _read(folder: StageFolder, warn: Callable[[str], None]) -> list[tuple[Record, float]]:
    """Return the records of all attempts, and when each was written (Unix time, s)."""
    found = []
    for file in folder.attempts(folder.trials):
        try:
            found.append((read_record(file.path), file.path.stat().st_mtime))
        except FileNotFoundError:
            continue
        except CheckpointError as error:
            warn(str(error))
    return found
