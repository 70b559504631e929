"""CSV as RFC 4180 has it: numbers in all their digits, nan and inf by name, an empty cell for what is not known."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from master.export.ended import EndedStage
from master.export.files import appearing, two_files
from master.export.tables import CURVE_COLUMNS, Value, columns, curve_rows, trials_of


def write(stages: Sequence[EndedStage], out: str) -> list[Path]:
    """Writes both tables, in place of older ones of that name.

    Returns:
        The files, the trials' first.

    Raises:
        ConfigError: ``out`` cannot be a file.
        CheckpointError: it cannot be written.
    """
    trials_path, curves_path = two_files(out, "csv")
    trials = trials_of(stages)
    shown = columns(trials)
    _write(curves_path, list(CURVE_COLUMNS), (row for trial in trials for row in curve_rows(trial)))
    _write(trials_path, [column.name for column in shown], ([column.of(trial) for column in shown] for trial in trials))
    return [trials_path, curves_path]


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
    with appearing(path) as temporary, temporary.open("x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Value) -> Value:
    return value.isoformat() if isinstance(value, datetime) else value
