"""What a search's folder knows, as data frames.

The columns are those of ``master export``, with the dtypes that a pandas user expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common.folder.notes import read_notes
from common.folder.record import Record
from common.folder.records import SearchFolder
from common.search.search_file import Search
from master.export.ended import EPOCH, Ended, evaluations, rank_ended
from master.export.tables import Kind, columns
from master.results import ranking

if TYPE_CHECKING:
    import pandas as pd

DTYPES: dict[Kind, str] = {"whole": "int64", "real": "float64"}


def rank_trials(records: Sequence[Record], folder: SearchFolder) -> list[Ended]:
    """Return the trials best first, as ``master rank`` orders them.

    Their checkpoints are paths, or None if the weights are not in the folder now.
    """
    stages = dict.fromkeys(record.stage for record in records)
    present = {stage: set(map(str, folder.stage(stage).checkpoints())) for stage in stages}

    def name_weights(record: Record) -> str | None:
        if record.checkpoint not in present[record.stage]:
            return None
        return str(folder.stage(record.stage).path / str(record.checkpoint))

    return rank_ended(records, name_weights, read_notes(folder).trials)


def trials_frame(trials: Sequence[Ended], curves: bool) -> pd.DataFrame:
    """Return a row for each trial.

    Args:
        trials: Best first.
        curves: Whether to add the column ``curves``, which has a data frame in each row: the index
            is the epoch, and there is a column for each curve.
    """
    import pandas as pd

    made: dict[str, Any] = {}
    for column in columns(trials):
        values = [column.of(trial) for trial in trials]
        if column.kind == "time":
            made[column.name] = pd.to_datetime(pd.Series(values, dtype=object), utc=True)
        else:
            # pandas tells the dtype of texts and hyperparameters, which may be of any type.
            known = DTYPES.get(column.kind, None if values else "object")
            made[column.name] = pd.Series(values, dtype=known)
    frame = pd.DataFrame(made)
    if curves:
        frame["curves"] = pd.Series([_curves_of(trial.record) for trial in trials], dtype=object)
    return frame


def curves_frame(trials: Sequence[Ended]) -> pd.DataFrame:
    """Return a row for each evaluation of each trial, with a column for each curve."""
    import pandas as pd

    rows = [
        {"stage": own.stage, "trial": own.trial, "attempt": own.attempt, **row}
        for own in (trial.record for trial in trials)
        for row in _evaluation_rows(own)
    ]
    head = ["stage", "trial", "attempt", "evaluation", EPOCH]
    names = dict.fromkeys([*head, *(name for row in rows for name in row)])
    return pd.DataFrame(rows, columns=list(names))


def stages_frame(search: Search, folder: SearchFolder, records: Sequence[Record]) -> pd.DataFrame:
    """Return a row for each stage, launched or not, in their order."""
    import pandas as pd

    rows = []
    for stage in search.stages:
        own = [record for record in records if record.stage == stage.name]
        best = ranking.best(own, 1)
        ended = {str(s.value): sum(r.state is s for r in own) for s in ranking.STATE_ORDER}
        rows.append(
            {
                "stage": stage.name,
                "kind": stage.kind,
                "trials": stage.trials,
                "epochs": stage.final_epochs,
                "launched": folder.stage(stage.name).has_begun,
                **ended,
                "best": best[0].measured if best else None,
                "best_trial": best[0].trial if best else None,
            }
        )
    return pd.DataFrame(rows).astype({"best": "float64"}).set_index("stage")


def _evaluation_rows(record: Record) -> list[dict[str, Any]]:
    return [
        {"evaluation": own.number, EPOCH: own.epoch, **own.values} for own in evaluations(record)
    ]


def _curves_of(record: Record) -> pd.DataFrame:
    import pandas as pd

    rows = [{k: v for k, v in row.items() if k != "evaluation"} for row in _evaluation_rows(record)]
    frame = pd.DataFrame(rows, columns=list(dict.fromkeys([EPOCH, *(n for r in rows for n in r)])))
    return frame.set_index(EPOCH)
