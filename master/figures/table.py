"""Records into the table that the figures are made from: one row a trial, its hyperparameters in columns ``hp.NAME``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from common.record import Record
from common.trial import TrialState
from master import ranking

HP = "hp."  # before a hyperparameter's name, so that one called "state" or "value" meets no other column
COLUMNS = ("trial", "stage", "index", "attempt", "val_acc", "val_loss", "epochs", "seconds", "ended_at", "worker", "curves", "portrait")


def table(records: Sequence[Record]) -> pd.DataFrame:
    """What the figures read.

    Args:
        records: of one search, of one stage or several, in any order.

    Returns:
        One row a record, in their order: ``COLUMNS`` of the record; ``state`` in lower case; ``value`` of the search's metric (NaN where it
        was not measured or is not finite), ``metric`` and ``mode`` of the search; ``good``, whether it ranks among the completed; ``rank``
        within its stage, from 1; ``hp.NAME`` for each hyperparameter (None where a trial has none of that name).
    """
    columns: dict[str, object] = {name: pd.Series([getattr(record, name) for record in records], dtype=object) for name in COLUMNS}
    metric, mode = ranking.metric_of(records)
    made = pd.DataFrame(columns).assign(
        state=[record.state.value for record in records], metric=metric, mode=mode, rank=_ranks(records), good=_good(records)
    )
    for name in ("index", "attempt"):
        made[name] = made[name].astype("int64")
    for name in ("val_acc", "val_loss", "epochs", "seconds", "ended_at"):
        made[name] = [_finite(value) for value in made[name]]
    made["good"] = made["good"].astype(bool)
    made["value"] = [_finite(record.measured) for record in records]
    names = dict.fromkeys(name for record in records for name in record.hyperparameters)
    own = {HP + name: pd.Series([record.hyperparameters.get(name) for record in records], dtype=object) for name in names}
    return pd.concat([made, pd.DataFrame(own, index=made.index)], axis=1)


def hyperparameter_names(trials: pd.DataFrame) -> list[str]:
    """The hyperparameters of a table, in the order of the search."""
    return [str(name).removeprefix(HP) for name in trials.columns if str(name).startswith(HP)]


def best_first(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that ended well, best first; across stages by the metric."""
    good = trials[trials["good"]]
    return good.sort_values(["value", "rank"], ascending=[is_min(trials), True], kind="stable")


def is_min(trials: pd.DataFrame) -> bool:
    """Whether less of the metric is better."""
    return bool(len(trials)) and trials["mode"].iloc[0] == "min"


def _ranks(records: Sequence[Record]) -> list[int]:
    ranks = [0] * len(records)
    for stage in dict.fromkeys(record.stage for record in records):
        places = [place for place, record in enumerate(records) if record.stage == stage]
        order = ranking.frame([records[place] for place in places]).index
        for rank, place in enumerate(order, start=1):
            ranks[places[place]] = rank
    return ranks


def _good(records: Sequence[Record]) -> list[bool]:
    ended_well = (TrialState.COMPLETED, TrialState.STOPPED)
    return [record.state in ended_well and not math.isnan(_finite(record.measured)) for record in records]


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan
