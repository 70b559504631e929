"""What the companions share: the trial that they report to, and the file that they resume from.

It needs only the standard library, so that a program can import it in an environment of its own.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from coarsefine import reporting

METRIC = re.compile(r"[a-z][a-z0-9_]{0,31}")  # what a search takes as the name of a metric
RESERVED = ("epoch", "seconds")  # curves that every report has
BEAT_S = 10.0  # between two signs of life of a program, each of which is a line in a file
ROUNDING_EPOCHS = 1e-9


class Trial(Protocol):
    """What a companion needs of the ``trial`` in ``train(trial)``."""

    epoch: float
    epochs: float
    resume: Any

    def report(self, epoch: float, **given: Any) -> None:
        """Report an epoch. May raise TrialEnded, which is no Exception."""
        ...

    def beat(self) -> None:
        """Give a sign of life. May raise TrialEnded."""
        ...


class Reporter:
    """Reports to the trial of a loop, or from a program.

    What training resumes from is one file, whose format is that of the library. A loop has its
    bytes in ``state``, under the file's name. A program reports it as its checkpoint.

    Attributes:
        epoch: number of epochs that were done before, and that ``resume`` has.
    """

    def __init__(
        self,
        trial: Trial | None,
        file: str,
        names: Mapping[str, str],
        rename: Callable[[str], str | None],
    ) -> None:
        """Initialise.

        Args:
            trial: of the loop. None in a program, which is told by the environment; outside of a
                search its reports are printed.
            file: name of the file to resume from, such as ``lightning.ckpt``.
            names: names of metrics, and what the library or the model calls each of them.
            rename: returns the metric's name for any other name, or None to leave it out.
        """
        self._trial = trial
        self._file = file
        self._names = {theirs: ours for ours, theirs in names.items()}
        self._rename = rename
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._beat_at = -math.inf
        done = os.environ.get("COARSEFINE_EPOCH", 0) if trial is None else trial.epoch
        self.epoch = round(float(done))

    @property
    def folder(self) -> Path:
        """A temporary folder for this training. It is removed when nobody needs it any more."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="coarsefine-companion-")
        return Path(self._folder.name)

    @property
    def resume(self) -> Path | None:
        """The file that was saved with the last report; None at the beginning."""
        if self._trial is None:
            given = os.environ.get("COARSEFINE_RESUME")
            return Path(given) if given else None
        if self._trial.resume is None:
            return None
        path = self.folder / self._file
        path.write_bytes(self._trial.resume[self._file])
        return path

    def is_over(self, epoch: float) -> bool:
        """Return whether the trial's budget is used up after so many epochs."""
        budget = os.environ.get("COARSEFINE_EPOCHS", math.inf)
        given = float(budget) if self._trial is None else self._trial.epochs
        return epoch >= given - ROUNDING_EPOCHS

    def report(self, epoch: float, logs: Mapping[str, Any], save: Callable[[Path], object]) -> None:
        """Report an epoch with what training resumes from.

        Args:
            epoch: number of epochs done.
            logs: numbers by the library's names. What is no number is left out.
            save: writes the file to resume from to a path.
        """
        values = self._rename_all(logs)
        path = self.folder / self._file
        try:
            save(path)
            if self._trial is None:
                reporting.report(epoch, checkpoint=path, **values)
            else:
                self._trial.report(epoch, **values, state={self._file: path.read_bytes()})
        finally:
            path.unlink(missing_ok=True)

    def beat(self) -> None:
        """Give a sign of life. The call is cheap, so make one after each batch."""
        if self._trial is not None:
            self._trial.beat()
        elif time.monotonic() - self._beat_at > BEAT_S:
            self._beat_at = time.monotonic()
            reporting.beat()

    def _rename_all(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Return the numbers by names of metrics. A name that the user gave comes first."""
        named, others = dict[str, float](), dict[str, float]()
        for theirs, value in logs.items():
            try:
                number = float(value)  # a number, a numpy scalar, a tensor of one element
            except (TypeError, ValueError, RuntimeError):
                continue
            if theirs in self._names:
                named[self._names[theirs]] = number
            elif (ours := self._rename(theirs)) is not None:
                ours = re.sub("[^a-z0-9_]", "_", ours.lower())
                if METRIC.fullmatch(ours) and ours not in RESERVED:
                    others.setdefault(ours, number)
        return others | named
