"""Parquet, written with pyarrow.

Every column has a type, a value that is not known is null, and nan and inf are numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from master.export.ended import EndedStage
from master.export.files import appearing, two_files
from master.export.tables import CURVE_COLUMNS, Cell, Column, Kind, columns, curve_rows, trials_of

# Rows of curves in one group: a few megabytes in memory, and large enough to be compressed well.
ROWS_A_GROUP = 1 << 18
TYPES: dict[Kind, pa.DataType] = {
    "text": pa.string(),
    "whole": pa.int64(),
    "real": pa.float64(),
    "time": pa.timestamp("us", tz="UTC"),
}


def write(stages: Sequence[EndedStage], out: str) -> list[Path]:
    """Write both tables. Older files of the same names are replaced.

    Returns:
        The two files: of the trials, then of the curves.

    Raises:
        ConfigError: ``out`` cannot be a file.
        CheckpointError: a file cannot be written.
    """
    trials_path, curves_path = two_files(out, "parquet")
    trials = trials_of(stages)
    shown = columns(trials)
    table = pa.table(
        {column.name: _array(column, [column.of(trial) for trial in trials]) for column in shown}
    )
    schema = pa.schema([(name, TYPES[kind]) for name, kind in CURVE_COLUMNS.items()])
    _write(
        curves_path, schema, _curves(schema, (row for trial in trials for row in curve_rows(trial)))
    )
    _write(trials_path, table.schema, [table])
    return [trials_path, curves_path]


def _write(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    with appearing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _curves(schema: pa.Schema, rows: Iterator[tuple[Cell, ...]]) -> Iterator[pa.Table]:
    while group := list(islice(rows, ROWS_A_GROUP)):
        yield pa.table(list(zip(*group, strict=True)), schema=schema)


def _array(column: Column, values: list[Cell]) -> pa.Array:
    if column.kind != "hyperparameter":
        return pa.array(values, TYPES[column.kind])
    kind, plain = _common(values)
    return pa.array(plain, kind)


def _common(values: Sequence[Cell]) -> tuple[pa.DataType, list[Any]]:
    """Return a type for all values, and the values in that type.

    Options of several kinds, such as 32 and "auto", become text.
    """
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.bool_(), list(values)
    if kinds == {int}:
        return pa.int64(), list(values)
    if kinds <= {int, float}:
        # mypy cannot narrow the type here.
        return pa.float64(), [
            value if value is None else float(value)  # type: ignore[arg-type]
            for value in values
        ]
    return pa.string(), [value if value is None else str(value) for value in values]
