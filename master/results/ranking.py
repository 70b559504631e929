"""The ranking of trials, best first, and its output as rows, CSV, Markdown and a terminal table."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.cells import defuse
from common.errors import ConfigError
from common.folder.notes import Note
from common.folder.record import Diagnosis, Record, format_metric
from common.search.trial import TrialState
from common.search.values import Value, flat
from master.results.columns import COLUMNS, CSV_HEAD, CSV_TAIL, NOTED, SORTED, SPREAD
from master.results.repeats import Spread, configuration_of, find_spreads, one_of_each

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

STATE_ORDER = (
    TrialState.COMPLETED,
    TrialState.EXPLODED,
    TrialState.STOPPED,
    TrialState.KILLED,
    TrialState.FAILED,
)
# Columns that are not read off a record as they are.
COMPUTED = ("rank", "state", "value", "repeats", *NOTED)
# Columns that every ranking has. Another metric gets its own column before them.
MEASURED = ("val_acc", "val_loss")
# Trials in a table if the user gives no number. Drawing one takes half a millisecond, and nobody
# reads on.
MOST_SHOWN = 200
TABLE_WIDTH = 80  # characters that fit in a terminal, a log and a mail
NO_NOTES: Mapping[str, Note] = {}
# Characters that hyperparameters in words need, so that a row has only a few lines.
LEAST_JOINED = 36
JOINED = "hyperparameters"  # the header of their column
REASON_WIDTH = 40  # characters of a reason in a table; the record has all of it


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return the ranking as a data frame.

    Completed trials come first. They are ordered by budget (longest first), then by the search's
    metric, then by validation loss. Among equals, the trial with fewer epochs comes first, then the
    one of the earlier stage, then the one with the lower number. A short training says less about a
    configuration than a long one, so promoted trials rank above the others. Trials that did not
    complete rank below.

    A trial that `patience` stopped early ranks by its best epoch, like a completed trial: it has
    lost only epochs that would not have improved it. The runs of a configuration that its stage
    repeats rank side by side, by the mean of those that ended well; a configuration with fewer of
    these comes later. A trial that was stopped at chance ranks below. A trial that violates a
    constraint of the search ranks after all that ended well and satisfy them.

    Args:
        records: one per trial, in any order, all of one search. They have its metric and whether
            higher is better.

    Returns:
        One row per trial, best first. The index is the position in ``records``; ``rank`` counts
            from 1. A metric that is not finite is NaN and ranks last within its group.
    """
    columns: dict[str, Any] = {
        name: _read(records, name) for name in ("index", *COLUMNS) if name not in COMPUTED
    }
    columns["state"] = [record.state.value for record in records]
    columns["value"] = [record.measured for record in records]
    import pandas as pd  # takes a third of a second, which a launch must not wait for

    table = pd.DataFrame(columns)
    for name in ("value", "val_acc", "val_loss", "epochs"):
        table[name] = [_finite(value) for value in columns[name]]
    table["repeats"] = pd.Series(spreads_of(records), dtype=object)
    table = table.iloc[_order(records)]
    table.insert(0, "rank", range(1, len(table) + 1))
    return table


def _read(records: Sequence[Record], column: str) -> list[Any]:
    if column in Record.model_fields or hasattr(Record, column):
        return [getattr(record, column) for record in records]
    return [record.metrics.get(column) for record in records]


def _order(records: Sequence[Record]) -> list[int]:
    """Return the positions of the records, best first; see ``frame``."""
    spreads = spreads_of(records)
    stages = {name: turn for turn, name in enumerate(dict.fromkeys(r.stage for r in records))}
    sign = 1 if metric_of(records)[1] == "min" else -1

    def last(value: float | None) -> float:
        return value if value is not None and math.isfinite(value) else math.inf

    def key(position: int) -> tuple[Any, ...]:
        record, spread = records[position], spreads[position]
        value = last(None if record.measured is None else sign * record.measured)
        return (
            _place(record),
            # A run that stopped early stands beside those that trained on.
            -(spread.epochs if spread and _is_good(record) else record.budget_epochs),
            0 if spread is None else spread.of - spread.n,
            value if spread is None else sign * spread.mean,
            "" if spread is None else configuration_of(record),
            value,
            last(record.val_loss),
            last(record.epochs),
            stages[record.stage],
            record.index,
        )

    return sorted(range(len(records)), key=key)


def metric_of(records: Sequence[Record]) -> tuple[str, str]:
    """Return the metric and the mode of the search.

    They are taken from a trial that was measured, because a record that the master wrote does not
    have the search's metric.
    """
    own = next((record for record in records if record.measured is not None), None)
    return (own.metric, own.mode) if own else ("val_acc", "max")


def rank(records: Sequence[Record]) -> list[Record]:
    """Return the records, best first."""
    return [records[position] for position in _order(records)]


def best(records: Sequence[Record], n: int | None = None) -> list[Record]:
    """Return the best ``n`` trials that ended well, best first; all of them if ``n`` is None.

    These are the trials that completed or stopped early, with a finite metric, and violate no
    constraint.
    """
    return [record for record in rank(records) if _is_good(record)][:n]


def best_configurations(records: Sequence[Record], n: int | None = None) -> list[Record]:
    """Return the best run of each of the best ``n`` configurations, best first."""
    return one_of_each(best(records))[:n]


def find_spread(records: Sequence[Record], one: Record) -> Spread | None:
    """Return the spread over the runs of a trial's configuration; None if it was not repeated."""
    own = [record for record in records if configuration_of(record) == configuration_of(one)]
    return find_spreads(own, [_is_good(record) for record in own]).get(configuration_of(one))


def spreads_of(records: Sequence[Record]) -> list[Spread | None]:
    """Return the spread of each record's configuration, None for one that was trained once."""
    found = find_spreads(records, [_is_good(record) for record in records])
    return [found.get(configuration_of(record)) for record in records]


def _is_good(record: Record) -> bool:
    return _place(record) == 0 and _has_value(record)


def _place(record: Record) -> int:
    """Return the group that a trial ranks in.

    Group 0 is the trials that ended well and satisfy all constraints.
    """
    ended_well = record.state is TrialState.COMPLETED or (
        record.stopped_early and _has_value(record)
    )
    if ended_well:
        return 1 if record.violates else 0
    return 1 + (
        STATE_ORDER.index(record.state) if record.state in STATE_ORDER else len(STATE_ORDER)
    )


def _has_value(record: Record) -> bool:
    return record.measured is not None and math.isfinite(record.measured)


def rows(
    ranking: pd.DataFrame, checkpoints: Collection[str], notes: Mapping[str, Note] = NO_NOTES
) -> list[dict[str, Any]]:
    """Return the ranking as plain values for strict JSON.

    A value that is not finite or not known is None.

    Args:
        ranking: the result of ``frame``.
        checkpoints: names of the weight files that are in the folder now. Other files are gone, so
            they are not named.
        notes: what people wrote, by trial.
    """
    present, names = frozenset(checkpoints), [name for name in COLUMNS if name not in NOTED]
    plain = [
        _row(dict(zip(names, values, strict=True)), present)
        for values in zip(*(ranking[name].tolist() for name in names), strict=True)
    ]
    return add_notes(plain, notes)


def add_notes(plain: Sequence[dict[str, Any]], notes: Mapping[str, Note]) -> list[dict[str, Any]]:
    """Return rows of a ranking with what people wrote about their trials."""
    return [
        {**row, "tags": list(own.tags), "note": own.note}
        if (own := notes.get(row["trial"]))
        else row
        for row in plain
    ]


def as_json(
    ranking: pd.DataFrame,
    checkpoints: Collection[str],
    guessing: Mapping[str, object] | None = None,
    notes: Mapping[str, Note] = NO_NOTES,
) -> str:
    """Return the rows as strict JSON, one trial per line.

    Args:
        ranking: the result of ``frame``.
        checkpoints: as for ``rows``.
        guessing: why the best trial cannot be distinguished from guessing, if so. It is added to
            the row of the best trial.
        notes: as for ``rows``.
    """
    plain = rows(ranking, checkpoints, notes)
    if plain and guessing is not None:
        plain[0]["guessing"] = guessing
    return "[" + ",".join(f"\n{json.dumps(row, allow_nan=False)}" for row in plain) + "\n]"


def csv(
    ranking: pd.DataFrame, checkpoints: Collection[str], notes: Mapping[str, Note] = NO_NOTES
) -> str:
    """Return the ranking as the text of ``leaderboard.csv``; see ``rows_as_csv``."""
    return rows_as_csv(rows(ranking, checkpoints, notes))


def rows_as_csv(plain: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Return rows of a ranking as CSV.

    There is a column for each hyperparameter, and columns for tags and notes if there are any. A
    cell is empty if its value is not known. A spreadsheet does not read any text in the file as a
    formula.

    Args:
        plain: some of the result of ``rows``.
        columns: the columns to write, as ``value_of`` names them. If empty, those of
            ``leaderboard.csv``.
    """
    import pandas as pd

    names, cells = _cells(plain, columns)
    safe = [[defuse(value) for value in row] for row in cells]
    return pd.DataFrame(safe, columns=[defuse(name) for name in names], dtype=object).to_csv(
        index=False, lineterminator="\n"
    )


def rows_as_parquet(plain: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> bytes:
    """Return rows of a ranking as Parquet, with the columns of ``rows_as_csv``.

    A hyperparameter whose values have several types, such as 32 and "auto", becomes text.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    import pandas as pd

    names, cells = _cells(plain, columns)
    table = pd.DataFrame(cells, columns=names, dtype=object)
    for name in names:
        kinds = {type(value) for value in table[name] if value is not None}
        if len(kinds) > 1 and not kinds <= {int, float}:
            table[name] = [value if value is None else str(value) for value in table[name]]
    try:
        return bytes(table.convert_dtypes().to_parquet(index=False))
    except ImportError:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed: pip install 'coarsefine[export]'; "
            "or take CSV"
        ) from None


def value_of(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, a hyperparameter or a metric; None where the row has none.

    A diagnosis is its word, and parents and tags are joined by spaces.
    """
    if name == "diagnosis":
        return word_of(row)
    if name == "parents":
        return " ".join(row["parents"]) or None
    if name in NOTED:
        return _word_noted(row, name)
    if name in SORTED:
        return row[name]
    if name in SPREAD and row["repeats"]:
        return row["repeats"][name]
    if name in row["hyperparameters"]:
        return row["hyperparameters"][name]
    return row["value"] if name == row["metric"] else row["metrics"].get(name)


def names_of(plain: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return all names for which ``value_of`` has a value in these rows."""
    own = [name for row in plain for part in ("hyperparameters", "metrics") for name in row[part]]
    metrics = [row["metric"] for row in plain[:1]]
    return list(dict.fromkeys([*SORTED, *_name_spread(plain), *own, *metrics]))


def _cells(
    plain: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()
) -> tuple[list[str], list[list[Any]]]:
    """Return the names and the rows of a flat table, by default that of ``leaderboard.csv``."""
    if columns:
        return list(columns), [[flat(value_of(row, name)) for name in columns] for row in plain]
    names, spread = _names([row["hyperparameters"] for row in plain]), _name_spread(plain)
    noted = find_noted(plain)
    cells = [
        [
            *(row[c] for c in CSV_HEAD),
            *((row["repeats"] or {}).get(c) for c in spread),
            *(flat(value) for value in map(row["hyperparameters"].get, names)),
            *(value_of(row, c) for c in CSV_TAIL),
            *(_word_noted(row, c) for c in noted),
        ]
        for row in plain
    ]
    return [*CSV_HEAD, *spread, *names, *CSV_TAIL, *noted], cells


def markdown(
    ranking: pd.DataFrame, checkpoints: Collection[str], notes: Mapping[str, Note] = NO_NOTES
) -> str:
    """Return the ranking as a Markdown table for a README or a pull request."""
    plain = rows(ranking, checkpoints, notes)
    noted = find_noted(plain)
    names = find_varied([row["hyperparameters"] for row in plain])
    measured = _find_measured(plain)
    header = [
        "rank",
        "trial",
        "state",
        *measured,
        "epochs",
        "diagnosis",
        *names,
        "checkpoint",
        "reason",
        *noted,
    ]
    lines = [header, ["---"] * len(header)]
    for row in plain:
        values = [
            *(format_metric(_of(row, m)) for m in measured),
            cell(row["epochs"]),
            word_of(row) or "",
            *(cell(row["hyperparameters"].get(n)) for n in names),
        ]
        lines.append(
            [
                str(row["rank"]),
                row["trial"],
                row["state"],
                *values,
                row["checkpoint"] or "",
                one_line(row["reason"] or ""),
                *(one_line(_word_noted(row, name) or "") for name in noted),
            ]
        )
    return "".join(
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in line)} |\n" for line in lines
    )


def table(
    ranking: pd.DataFrame,
    top: int | None = None,
    width: int = TABLE_WIDTH,
    notes: Mapping[str, Note] = NO_NOTES,
) -> Table:
    """Return the ranking as a table for the terminal.

    The hyperparameters that vary get columns if these fit.

    Args:
        ranking: the result of ``frame``.
        top: number of trials to show. None shows ``MOST_SHOWN``, and a caption says so if there are
            more.
        width: available characters.
        notes: what people wrote, by trial. Tags get a column; notes are only in the other formats.
    """
    from common.console import fit_columns, measure

    shown = rows(ranking.head(MOST_SHOWN if top is None else top), (), notes)
    names = find_varied(list(ranking["hyperparameters"]))
    others = any(row["state"] != TrialState.COMPLETED or row["reason"] for row in shown)
    outcome, words = dict(_outcome_columns(shown)), [word_of(row) or "" for row in shown]
    spare = _find_measured(shown)[1:]
    short = {name: cells for name, cells in outcome.items() if name not in spare}
    told = {"diagnosis": words} if any(words) else {}
    if "tags" in find_noted(shown):
        told["tags"] = [_word_noted(row, "tags") or "" for row in shown]
    own = {
        name.replace("_", "_\n"): [cell(row["hyperparameters"].get(name)) for row in shown]
        for name in names
    }
    if not others and measure(short | told | own) <= width:
        columns = outcome | told | own
    else:
        columns = _join_columns(shown, names, (outcome | told, outcome, short), width)
    right = [one for one in columns if one not in ("trial", "diagnosis", "tags", JOINED)]
    more = (
        f"the best {len(shown):,} of {len(ranking):,} trials; --top N shows N"
        if top is None and len(ranking) > len(shown)
        else None
    )
    return fit_columns(columns, width, spare, right, wraps=JOINED, caption=more)


def _join_columns(
    shown: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    others: Sequence[Mapping[str, list[str]]],
    width: int,
) -> dict[str, list[str]]:
    """Return the columns of a table with a last one that has the hyperparameters in words.

    Args:
        shown: the rows.
        names: the hyperparameters.
        others: the other columns, the best choice first. The first one that leaves enough room
            for the words is taken, or else the last one.
        width: available characters.
    """
    from common.console import GAP, measure

    fits = (one for one in others if width - measure(one) - GAP >= LEAST_JOINED)
    chosen = next(fits, others[-1])
    words = [_join_words(row, names, "diagnosis" in chosen) for row in shown]
    return {**chosen, JOINED: words}


def find_noted(plain: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of what people wrote in which any row has a value."""
    return [name for name in NOTED if any(row[name] for row in plain)]


def _word_noted(row: Mapping[str, Any], name: str) -> str | None:
    """Return the tags of a row as words, or its note; None where there is none."""
    return (" ".join(row["tags"]) if name == "tags" else row["note"]) or None


def word_of(row: Mapping[str, Any]) -> str | None:
    """Return the word of a row's diagnosis."""
    return row["diagnosis"]["word"] if row["diagnosis"] else None


def find_varied(hyperparameters: Sequence[Mapping[str, Value]]) -> list[str]:
    """Return the names whose values differ between trials.

    With fewer than two trials, return all names.
    """
    names = _names(hyperparameters)
    if len(hyperparameters) < 2:
        return names
    return [
        name
        for name in names
        if any(h.get(name) != hyperparameters[0].get(name) for h in hyperparameters)
    ]


def cell(value: Value | None) -> str:
    """Return a value as a table shows it, with three significant digits."""
    value = None if value is None else flat(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else one_line(str(value))


def one_line(text: str, width: int = REASON_WIDTH * 2) -> str:
    """Return the first line of a text in printable characters.

    So no text can break a table or a terminal.
    """
    first = text.strip().partition("\n")[0]
    printable = "".join(c if c.isprintable() else " " for c in first).rstrip()
    return printable if len(printable) <= width else printable[: width - 1] + "…"


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def _row(values: Mapping[str, Any], present: frozenset[str]) -> dict[str, Any]:
    plain = {name: _plain(value) for name, value in values.items()}
    return plain | {
        "hyperparameters": {n: _plain(v) for n, v in values["hyperparameters"].items()},
        "checkpoint": values["checkpoint"] if values["checkpoint"] in present else None,
        "diagnosis": _describe_diagnosis(values["diagnosis"]),
        "max_epochs": max(values["max_epochs"], values["budget_epochs"]),
        "parents": list(values["parents"]),
        "repeats": values["repeats"].as_json if isinstance(values["repeats"], Spread) else None,
        "metrics": {n: _plain(v) for n, v in values["metrics"].items()},
        "tags": [],
        "note": "",
    }


def _plain(value: Any) -> Any:
    """Return a value for strict JSON: None for a number that is not finite.

    pandas has such a number for what is missing, too.
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _describe_diagnosis(diagnosis: object) -> dict[str, str] | None:
    return (
        {"word": diagnosis.word, "sentence": diagnosis.sentence}
        if isinstance(diagnosis, Diagnosis)
        else None
    )


def _names(hyperparameters: Sequence[Mapping[str, Value]]) -> list[str]:
    """Return all names, in the order in which they first appear."""
    return list(dict.fromkeys(name for values in hyperparameters for name in values))


def _name_spread(plain: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the columns about the runs of a configuration, if any was repeated."""
    return SPREAD if any(row["repeats"] for row in plain) else ()


def _find_measured(plain: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of measured values.

    The search's metric comes first, then the others that any trial has.
    """
    own = next((row["metric"] for row in plain if row["value"] is not None), MEASURED[0])
    others = [
        name
        for name in MEASURED
        if name != own and (own == MEASURED[0] or any(row[name] is not None for row in plain))
    ]
    return [own, *others]


def _of(row: Mapping[str, Any], name: str) -> float | None:
    """Return a trial's value of a metric that every ranking has, or of the search's metric."""
    value: float | None = row[name] if name in MEASURED else row["value"]
    return value


def _join_words(row: Mapping[str, Any], names: Sequence[str], apart: bool) -> str:
    """Return the hyperparameters in words.

    Before them is the state and reason of a trial that did not complete or violates a constraint,
    or the diagnosis if it has no column.
    """
    values = ", ".join(
        f"{n} {cell(row['hyperparameters'][n])}" for n in names if n in row["hyperparameters"]
    )
    if row["state"] == TrialState.COMPLETED and not row["reason"]:
        word = None if apart else word_of(row)
        return f"{word}; {values}" if word else values
    reason = one_line(row["reason"] or "", REASON_WIDTH)
    if apart and word_of(row) == row["state"]:
        return f"{reason}; {values}" if reason else values
    return f"{row['state']}{': ' if reason else ''}{reason}; {values}"


def _outcome_columns(shown: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the header and the cells of each column of the outcome.

    The epochs are included only if they differ.
    """
    columns = [
        ("#", [str(row["rank"]) for row in shown]),
        ("trial", [row["trial"] for row in shown]),
    ]
    columns += [
        (name, [format_metric(_of(row, name)) for row in shown]) for name in _find_measured(shown)
    ]
    if _name_spread(shown):
        columns += [("mean ± s.d.", [_describe_spread(row["repeats"]) for row in shown])]
    columns += [("epochs", [cell(row["epochs"]) for row in shown])]
    return columns if len(set(columns[-1][1])) > 1 else columns[:-1]


def _describe_spread(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return ""
    mean, deviation = spread["mean"], spread["deviation"]
    return (
        f"{format_metric(mean)} ± {format_metric(deviation, mean)}"
        if deviation is not None
        else format_metric(mean)
    )
