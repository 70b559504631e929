"""Configurations that a stage trains several times, under one seed each.

The first run of a configuration is drawn; the others repeat it, and name the first as their parent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.folder.record import ROUNDING_EPOCHS, Record
from common.search.trial import Trial, TrialState


@dataclass(frozen=True)
class Spread:
    """The search's metric over the runs of one configuration that ended well."""

    mean: float
    deviation: float | None  # None for a single run
    n: int  # runs that ended well
    of: int  # runs that ended
    epochs: float  # the longest budget of a run

    @property
    def as_json(self) -> dict[str, float | int | None]:
        """The spread as plain values."""
        return {"mean": self.mean, "deviation": self.deviation, "n": self.n, "of": self.of}


def configuration_of(run: Record | Trial) -> str:
    """Return the trial that had this configuration first in its stage."""
    if run.drawn == "repeat" and run.parents:
        first = run.parents[0]
        if first.rpartition("-")[0] == run.stage:
            return first
    return run.id if isinstance(run, Trial) else run.trial


def find_spreads(records: Sequence[Record], ended_well: Sequence[bool]) -> dict[str, Spread]:
    """Return the spread of each configuration of which several runs have ended.

    If some runs were promoted and others wait for their longer budget, the latter do not count: a
    shorter training says something else.

    Args:
        records: the records, in any order.
        ended_well: for each, whether it counts for the mean.
    """
    if not any(record.drawn == "repeat" for record in records):
        return {}
    runs: dict[str, list[tuple[Record, bool]]] = {}
    for record, good in zip(records, ended_well, strict=True):
        runs.setdefault(configuration_of(record), []).append((record, good))
    found = {}
    for trial, own in runs.items():
        longest = max(record.budget_epochs for record, _ in own)
        ended = [
            record.measured if good else None
            for record, good in own
            if record.state is not TrialState.COMPLETED
            or record.budget_epochs >= longest - ROUNDING_EPOCHS
        ]
        values = [value for value in ended if value is not None and math.isfinite(value)]
        if len(own) > 1 and values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            found[trial] = Spread(
                statistics.fmean(values), deviation, len(values), len(ended), longest
            )
    return found


def one_of_each(ranked: Iterable[Record]) -> list[Record]:
    """Return the first run of each configuration, in the order of the records."""
    found: dict[str, Record] = {}
    for record in ranked:
        found.setdefault(configuration_of(record), record)
    return list(found.values())
