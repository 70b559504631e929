"""Report from a program: ``coarsefine.report(epoch=3, val_acc=0.91, checkpoint="model.pt")``.

A program is a task that the search file gives as a command. This module needs only the standard
library, and may be copied beside a program. It appends a line of JSON to the file that is named in
COARSEFINE_REPORTS. Any language can do the same.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import Any

REPORTS = "COARSEFINE_REPORTS"  # the variable that names the file
GIVEN = "given"  # the folder beside that file, for copies of checkpoints


def report(
    epoch: float | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    **metrics: Any,
) -> None:
    """Report where the trial stands, ideally after every epoch.

    A trial that is over (it exploded, was stopped or killed) gets SIGTERM soon after, and SIGKILL
    ten seconds later. Outside of a search the report is printed.

    Args:
        epoch: number of epochs done: 1 after the first. Without it the report counts for the whole
            budget, so there is only one.
        checkpoint: a file with all that is needed to go on from here. It is copied before the call
            returns.
        metrics: numbers by name, such as ``val_acc`` and ``train_loss``. The metric of the search
            must be among them.

    Raises:
        TypeError: a metric is no number.
        OSError: the checkpoint cannot be read, or the report cannot be written.
    """
    line: dict[str, Any] = {name: _number(name, value) for name, value in metrics.items()}
    line["time"] = time.time()
    if epoch is not None:
        line["epoch"] = _number("epoch", epoch)
    place = os.environ.get(REPORTS)
    if place is None:
        print(json.dumps(line | ({"checkpoint": str(checkpoint)} if checkpoint else {})))
        return
    if checkpoint is not None:
        line["checkpoint"] = _copy(Path(checkpoint), Path(place).parent / GIVEN)
    _append(place, line)


def beat(limit_s: float | None = None) -> None:
    """Give a sign of life within a long epoch. Outside of a search it does nothing.

    Args:
        limit_s: seconds until the next sign of life, at most. Without it a program counts as stuck
            that neither reports nor writes to stdout or stderr for ten minutes.
    """
    if (place := os.environ.get(REPORTS)) is not None:
        _append(place, {"limit_s": None if limit_s is None else _number("limit_s", limit_s)})


def _append(place: str, line: dict[str, Any]) -> None:
    sys.stdout.flush()
    descriptor = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)  # a Python number, a numpy scalar, a tensor of one element
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"report({name}={value!r:.60}): not a number") from None


def _copy(source: Path, folder: Path) -> str:
    """Copy a checkpoint, since the program may write over it. Return the path of the copy."""
    target = folder / secrets.token_hex(4) / source.name
    target.parent.mkdir(parents=True)
    shutil.copyfile(source, target)
    return str(target)
