"""CSV as defined in RFC 4180.

Numbers have all their digits, nan and inf are written by name, and a cell is empty if its value is
not known. A spreadsheet does not read any text in the file as a formula.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from common.cells import defuse
from master.export.ended import EndedStage
from master.export.files import appearing, two_files
from master.export.tables import CURVE_COLUMNS, Cell, columns, curve_rows, trials_of


def write(stages: Sequence[EndedStage], out: str) -> list[Path]:
    """Write both tables. Older files of the same names are replaced.

    Returns:
        The two files: of the trials, then of the curves.

    Raises:
        ConfigError: ``out`` cannot be a file.
        CheckpointError: a file cannot be written.
    """
    trials_path, curves_path = two_files(out, "csv")
    trials = trials_of(stages)
    shown = columns(trials)
    _write(curves_path, list(CURVE_COLUMNS), (row for trial in trials for row in curve_rows(trial)))
    _write(
        trials_path,
        [column.name for column in shown],
        ([column.of(trial) for column in shown] for trial in trials),
    )
    return [trials_path, curves_path]


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    with appearing(path) as temporary, temporary.open("x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(defuse, header))
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Cell) -> Cell:
    return value.isoformat() if isinstance(value, datetime) else defuse(value)
