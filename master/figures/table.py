"""Turns records into the table that the figures are made from.

It has a row for each record, with the hyperparameters in columns ``hp.NAME``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from common.folder.record import Record
from common.search.trial import TrialState
from common.search.values import flat
from master.results import ranking
from master.results.lineage import rung_values

# Prefix of a hyperparameter's column, so that one called "state" or "value" clashes with no other.
HP = "hp."
COLUMNS = (
    "trial",
    "stage",
    "index",
    "attempt",
    "val_acc",
    "val_loss",
    "epochs",
    "seconds",
    "ended_at",
    "worker",
    "curves",
    "portrait",
    "budget_epochs",
    "rung",
    "drawn",
    "parents",
)


def table(records: Sequence[Record]) -> pd.DataFrame:
    """Make the table that the figures read.

    Args:
        records: The records of one search, of one stage or several, in any order.

    Returns:
        A row for each record, in their order, with these columns:

        - ``COLUMNS`` of the record.
        - ``state`` in lower case.
        - ``value`` of the search's metric. NaN if it was not measured or is not finite.
        - ``metric`` and ``mode`` of the search.
        - ``good``: whether the trial ranks among the completed that satisfy all constraints.
        - ``rank`` within its stage and ``standing`` among all these records, both from 1.
        - ``rungs``: (epochs, value) at each rung that the trial reached.
        - ``hp.NAME`` for each hyperparameter: a list or a table as text. None if a trial has none
          of that name.
    """
    columns: dict[str, object] = {
        name: pd.Series([getattr(record, name) for record in records], dtype=object)
        for name in COLUMNS
    }
    metric, mode = ranking.metric_of(records)
    standings = _standings(records)
    made = pd.DataFrame(columns).assign(
        state=[record.state.value for record in records],
        metric=metric,
        mode=mode,
        rank=_ranks(records, standings),
        good=_good(records),
        standing=standings,
    )
    made["rungs"] = pd.Series([_find_measured(record) for record in records], dtype=object)
    for name in ("index", "attempt", "rung"):
        made[name] = made[name].astype("int64")
    for name in ("val_acc", "val_loss", "epochs", "seconds", "ended_at", "budget_epochs"):
        made[name] = [_finite(value) for value in made[name]]
    made["good"] = made["good"].astype(bool)
    made["value"] = [_finite(record.measured) for record in records]
    names = dict.fromkeys(name for record in records for name in record.hyperparameters)
    own = {
        HP + name: pd.Series(
            [
                flat(record.hyperparameters[name]) if name in record.hyperparameters else None
                for record in records
            ],
            dtype=object,
        )
        for name in names
    }
    return pd.concat([made, pd.DataFrame(own, index=made.index)], axis=1)


def best_first(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that ended well, best first.

    They are ordered by budget, the longest first, then by the metric.
    """
    return trials[trials["good"]].sort_values("standing", kind="stable")


def with_shares(attempts: pd.DataFrame, resumes: bool = True) -> pd.DataFrame:
    """Add the epochs and seconds that each attempt took by itself.

    A record holds what its trial took so far, including earlier attempts.

    Args:
        attempts: See ``table``; all attempts that left a record.
        resumes: Whether a promoted trial goes on from its saved state. If not, it trains its first
            epochs again.

    Returns:
        The same rows with ``own_epochs``, ``own_seconds`` and ``retried``. The last says whether
        the attempt repeats a budget that an earlier attempt lost, rather than being the first at a
        longer budget.
    """
    epochs, seconds = (
        attempts[name].fillna(0.0).to_numpy(dtype=float) for name in ("epochs", "seconds")
    )
    own_epochs, own_seconds, retried = (
        epochs.copy(),
        seconds.copy(),
        np.zeros(len(attempts), dtype=bool),
    )
    names, numbers, rungs = (attempts[name].tolist() for name in ("trial", "attempt", "rung"))
    before: dict[str, int] = {}  # trial -> row of its previous attempt
    for place in sorted(range(len(attempts)), key=numbers.__getitem__):
        last = before.get(names[place])
        number, rung = (0, -1) if last is None else (numbers[last], rungs[last])
        retried[place] = numbers[place] - number > rungs[place] - rung
        if resumes and last is not None and rungs[place] > rung:
            own_epochs[place] = max(0.0, epochs[place] - epochs[last])
            own_seconds[place] = max(0.0, seconds[place] - seconds[last])
        before[names[place]] = place
    return attempts.assign(own_epochs=own_epochs, own_seconds=own_seconds, retried=retried)


def is_min(trials: pd.DataFrame) -> bool:
    """Return whether a lower value of the metric is better."""
    return bool(len(trials)) and trials["mode"].iloc[0] == "min"


def _standings(records: Sequence[Record]) -> list[int]:
    standings = [0] * len(records)
    for standing, place in enumerate(ranking.frame(records).index, start=1):
        standings[place] = standing
    return standings


def _find_measured(record: Record) -> tuple[tuple[float, float], ...]:
    return tuple(
        (epochs, value)
        for epochs, value in rung_values(record)
        if value is not None and math.isfinite(value)
    )


def _ranks(records: Sequence[Record], standings: Sequence[int]) -> list[int]:
    """Return the place of each record within its stage, in the order of the standings."""
    ranks, ranked = [0] * len(records), Counter[str]()
    for place in sorted(range(len(records)), key=standings.__getitem__):
        stage = records[place].stage
        ranked[stage] += 1
        ranks[place] = ranked[stage]
    return ranks


def _good(records: Sequence[Record]) -> list[bool]:
    ended_well = (TrialState.COMPLETED, TrialState.STOPPED)
    return [
        record.state in ended_well
        and not record.violates
        and not math.isnan(_finite(record.measured))
        for record in records
    ]


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan
