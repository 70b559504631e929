"""Records into a ranking: best first, and the same ranking as rows, CSV, Markdown and a table for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from common.record import Diagnosis, Record
from common.space import Scalar
from common.trial import TrialState

if TYPE_CHECKING:
    from rich.table import Table

STATE_ORDER = (TrialState.COMPLETED, TrialState.EXPLODED, TrialState.STOPPED, TrialState.KILLED, TrialState.FAILED)
SHARED = (
    "trial", "stage", "index", "val_acc", "val_loss", "epochs", "hyperparameters", "checkpoint", "worker", "attempt", "reason", "metric",
    "diagnosis",
)  # fmt: skip
HEAD = ("rank", "trial", "stage", "state", "metric", "value", "val_acc", "val_loss", "epochs")
TAIL = ("checkpoint", "worker", "attempt", "diagnosis", "reason")
MEASURED = ("val_acc", "val_loss")  # columns that every ranking has; another metric gets one of its own before them
MOST_SHOWN = 200  # trials in a table without a number: drawing one takes half a millisecond, and nobody reads on
TABLE_WIDTH = 80  # characters: what a terminal, a log and a mail all show
WIDE_METRIC = 1e4  # from here on four decimals would widen the column and tell nothing
LEAST_JOINED = 36  # characters that hyperparameters in words need, so that a row stays within a few lines
REASON_WIDTH = 40  # characters of a reason in a table; the record has the whole of it


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """The ranking: completed trials by the search's metric, then validation loss, then fewer epochs, then number; the others below.

    A trial that stopped early by `patience` ranks by its best epoch, as the completed do: it has lost nothing but epochs that would
    have brought no more. One that was stopped at chance ranks below.

    Args:
        records: one a trial, in any order, of one search: they carry its metric and whether more of it is better.

    Returns:
        One row a trial, best first. The index is the place in ``records``; ``rank`` counts from 1. A metric that is not
        finite is NaN and ranks last among its own.
    """
    columns: dict[str, Any] = {name: [getattr(record, name) for record in records] for name in SHARED}
    columns["state"] = [record.state.value for record in records]
    columns["value"] = [record.measured for record in records]
    table = pd.DataFrame(columns)
    for name in ("value", "val_acc", "val_loss", "epochs"):
        table[name] = [_finite(value) for value in columns[name]]
    table["place"] = [_place(record) for record in records]
    small = metric_of(records)[1] == "min"
    table = table.sort_values(
        ["place", "value", "val_loss", "epochs", "index"], ascending=[True, small, True, True, True], na_position="last", kind="stable"
    )
    table.insert(0, "rank", range(1, len(table) + 1))
    return table.drop(columns="place")


def metric_of(records: Sequence[Record]) -> tuple[str, str]:
    """The search's metric and mode: of the trials that were measured, since a verdict written by the master knows of none."""
    own = next((record for record in records if record.measured is not None), None)
    return (own.metric, own.mode) if own else ("val_acc", "max")


def ranked(records: Sequence[Record]) -> list[Record]:
    """The records themselves, best first."""
    return [records[place] for place in frame(records).index]


def best(records: Sequence[Record], n: int | None = None) -> list[Record]:
    """The best ``n`` completed or early stopped trials with a finite metric, best first; all of them if ``n`` is None."""
    return ranked([record for record in records if _place(record) == 0 and _has_value(record)])[:n]


def _place(record: Record) -> int:
    """The group that a trial ranks in: first those that ended well and were measured."""
    if record.state is TrialState.COMPLETED or (record.stopped_early and _has_value(record)):
        return 0
    return STATE_ORDER.index(record.state) if record.state in STATE_ORDER else len(STATE_ORDER)


def _has_value(record: Record) -> bool:
    return record.measured is not None and math.isfinite(record.measured)


def rows(ranking: pd.DataFrame, checkpoints: Collection[str]) -> list[dict[str, Any]]:
    """The ranking as plain values, ready for strict JSON: what is not finite or not known is None.

    Args:
        ranking: of ``frame``.
        checkpoints: names of the weights files that are in the folder now; others are gone, so they are not named.
    """
    present = frozenset(checkpoints)
    names = ["rank", "state", "value", *SHARED]
    return [
        _row(dict(zip(names, values, strict=True)), present) for values in zip(*(ranking[name].tolist() for name in names), strict=True)
    ]


def as_json(ranking: pd.DataFrame, checkpoints: Collection[str]) -> str:
    """The rows as strict JSON, one trial a line."""
    return "[" + ",".join(f"\n{json.dumps(row, allow_nan=False)}" for row in rows(ranking, checkpoints)) + "\n]"


def csv(ranking: pd.DataFrame, checkpoints: Collection[str]) -> str:
    """The ranking as the text of ``leaderboard.csv``: a column for each hyperparameter, an empty cell for what is not known."""
    plain = rows(ranking, checkpoints)
    names = _names([row["hyperparameters"] for row in plain])
    tails = [row | {"diagnosis": word_of(row)} for row in plain]
    cells = [[*(row[c] for c in HEAD), *(row["hyperparameters"].get(n) for n in names), *(row[c] for c in TAIL)] for row in tails]
    return pd.DataFrame(cells, columns=[*HEAD, *names, *TAIL], dtype=object).to_csv(index=False, lineterminator="\n")


def markdown(ranking: pd.DataFrame, checkpoints: Collection[str]) -> str:
    """The ranking as a table for a README or a pull request."""
    plain = rows(ranking, checkpoints)
    names = varied([row["hyperparameters"] for row in plain])
    measured = _measured(plain)
    header = ["rank", "trial", "state", *measured, "epochs", "diagnosis", *names, "checkpoint", "reason"]
    lines = [header, ["---"] * len(header)]
    for row in plain:
        values = [
            *(shown_metric(_of(row, m)) for m in measured),
            cell(row["epochs"]),
            word_of(row) or "",
            *(cell(row["hyperparameters"].get(n)) for n in names),
        ]
        lines.append([str(row["rank"]), row["trial"], row["state"], *values, row["checkpoint"] or "", one_line(row["reason"] or "")])
    return "".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in line)} |\n" for line in lines)


def table(ranking: pd.DataFrame, top: int | None = None, width: int = TABLE_WIDTH) -> Table:
    """The ranking for the terminal: the hyperparameters that vary, in columns of their own where these fit.

    Args:
        ranking: of ``frame``.
        top: how many trials to show; None shows as many as anybody reads, and says so below the table where there are more.
        width: characters that it may take.
    """
    from rich.table import Table
    from rich.text import Text

    shown = rows(ranking.head(MOST_SHOWN if top is None else top), ())
    names = varied(list(ranking["hyperparameters"]))
    others = any(row["state"] != TrialState.COMPLETED for row in shown)
    columns, words = _outcome_columns(shown), [word_of(row) or "" for row in shown]
    own = [(name.replace("_", "_\n"), [cell(row["hyperparameters"].get(name)) for row in shown]) for name in names]
    fits = not others and sum(_width(*column) for column in columns + own) <= width
    told = [("diagnosis", words)] if any(words) else []
    room = width - sum(_width(*column) for column in columns + (own if fits else []) + told)
    columns += told if room >= (0 if fits else LEAST_JOINED) else []
    apart = columns[-1:] == told
    more = f"the best {len(shown):,} of {len(ranking):,} trials; --top N shows N" if top is None and len(ranking) > len(shown) else None
    drawn = Table(box=None, pad_edge=False, header_style="bold", caption=more, caption_justify="left")
    for header, _ in columns + (own if fits else []):
        drawn.add_column(Text(header), justify="left" if header in ("trial", "diagnosis") else "right", no_wrap=True)
    if not fits:
        drawn.add_column("hyperparameters")
        own = [("hyperparameters", [_joined(row, names, apart) for row in shown])]
    for cells in zip(*(cells for _, cells in columns + own), strict=True):
        drawn.add_row(*map(Text, cells))
    return drawn


def word_of(row: Mapping[str, Any]) -> str | None:
    """The word of a row's diagnosis."""
    return row["diagnosis"]["word"] if row["diagnosis"] else None


def varied(hyperparameters: Sequence[Mapping[str, Scalar]]) -> list[str]:
    """The names whose values differ between trials; with a single trial, all."""
    names = _names(hyperparameters)
    if len(hyperparameters) < 2:
        return names
    return [name for name in names if any(h.get(name) != hyperparameters[0].get(name) for h in hyperparameters)]


def cell(value: Scalar | None) -> str:
    """A value in three significant digits, as a table shows it."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else one_line(str(value))


def one_line(text: str, width: int = REASON_WIDTH * 2) -> str:
    """The first line of a text in printable characters, so that no reason can spoil a table or a terminal."""
    first = text.strip().partition("\n")[0]
    printable = "".join(c if c.isprintable() else " " for c in first).rstrip()
    return printable if len(printable) <= width else printable[: width - 1] + "…"


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _odd(value: Scalar) -> bool:
    """A number that strict JSON cannot hold; only a record that somebody edited has one."""
    return isinstance(value, float) and not math.isfinite(value)


def _row(values: Mapping[Any, Any], present: frozenset[str]) -> dict[str, Any]:
    return {
        "rank": int(values["rank"]),
        "trial": values["trial"],
        "stage": values["stage"],
        "state": values["state"],
        "val_acc": _known(values["val_acc"]),
        "val_loss": _known(values["val_loss"]),
        "epochs": _known(values["epochs"]),
        "hyperparameters": {n: None if _odd(v) else v for n, v in values["hyperparameters"].items()},
        "checkpoint": values["checkpoint"] if values["checkpoint"] in present else None,
        "worker": values["worker"] if isinstance(values["worker"], str) else None,
        "attempt": int(values["attempt"]),
        "reason": values["reason"] if isinstance(values["reason"], str) else None,
        "metric": values["metric"],
        "value": _known(values["value"]),
        "diagnosis": _told(values["diagnosis"]),
    }


def _told(diagnosis: object) -> dict[str, str] | None:
    return {"word": diagnosis.word, "sentence": diagnosis.sentence} if isinstance(diagnosis, Diagnosis) else None


def _names(hyperparameters: Sequence[Mapping[str, Scalar]]) -> list[str]:
    """All names, in the order in which they first appear."""
    return list(dict.fromkeys(name for values in hyperparameters for name in values))


def _measured(plain: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of what was measured: the search's metric first, then those of the others that any trial has."""
    own = next((row["metric"] for row in plain if row["value"] is not None), MEASURED[0])
    others = [name for name in MEASURED if name != own and (own == MEASURED[0] or any(row[name] is not None for row in plain))]
    return [own, *others]


def _of(row: Mapping[str, Any], name: str) -> float | None:
    """A trial's value of the search's metric, or of one that every ranking has."""
    value: float | None = row[name] if name in MEASURED else row["value"]
    return value


def shown_metric(value: float | None) -> str:
    """Four decimals, as in the names of checkpoints; fewer for a loss that is out of all proportion."""
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < WIDE_METRIC else f"{value:.3g}"


def _joined(row: Mapping[str, Any], names: Sequence[str], apart: bool) -> str:
    """The hyperparameters in words, after what a trial that did not complete ended with, or its diagnosis where that has no column."""
    values = ", ".join(f"{n} {cell(row['hyperparameters'].get(n))}" for n in names)
    if row["state"] == TrialState.COMPLETED:
        word = None if apart else word_of(row)
        return f"{word}; {values}" if word else values
    reason = one_line(row["reason"] or "", REASON_WIDTH)
    return f"{row['state']}{': ' if reason else ''}{reason}; {values}"


def _outcome_columns(shown: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Header and cells of what came out; the epochs only where they differ, for a stage has one budget."""
    columns = [("#", [str(row["rank"]) for row in shown]), ("trial", [row["trial"] for row in shown])]
    columns += [(name, [shown_metric(_of(row, name)) for row in shown]) for name in _measured(shown)]
    columns += [("epochs", [cell(row["epochs"]) for row in shown])]
    return columns if len(set(columns[-1][1])) > 1 else columns[:-1]


def _width(header: str, cells: Sequence[str]) -> int:
    """Characters of a column with its padding."""
    return max(len(line) for line in [*header.split("\n"), *cells]) + 2
