"""One stage as the dashboard shows it: each record is read once, and the ranking is made again only when it has changed."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import CheckpointError, ConfigError
from common.record import Record
from common.records import StageFolder, read_record
from common.search import Search, Stage
from common.space import Space
from master import ranking
from master.borders import SUPPORT_TRIALS, Border, borders
from master.progress import PACE_WINDOW_S
from master.ranges import read_frozen

FRESH_S = 3.0  # a folder that was written to so lately is read again: its time stamp may not tell two writes apart
LOOK_S = 10.0  # how often a folder is read whatever its time stamp says: network file systems may keep an old one
MAX_SHARE = 4  # ranking anew takes at most one part in so many of the time


@dataclass(frozen=True)
class Ranked:
    """The ranking of a stage at one moment; never changed, so that any thread may read it."""

    version: int
    rows: tuple[dict[str, Any], ...]  # as `master rank --format json`, best first
    borders: tuple[Border, ...]
    records: tuple[Record, ...] = ()  # the same trials by number, without curves and the like
    superseded: tuple[Record, ...] = ()  # attempts that are not their trial's last

    @cached_property
    def by_trial(self) -> dict[str, dict[str, Any]]:
        """The rows by trial."""
        return {row["trial"]: row for row in self.rows}

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many trials ended in each state, by the folder's account."""
        return dict(Counter(row["state"] for row in self.rows))

    @cached_property
    def varied(self) -> list[str]:
        """The hyperparameters whose values differ."""
        return ranking.varied([row["hyperparameters"] for row in self.rows])

    @property
    def best(self) -> dict[str, Any] | None:
        """The best trial, if one ended well and was measured."""
        return next((row for row in self.rows[:1] if row["value"] is not None and row["state"] in ("completed", "stopped")), None)


NOTHING = Ranked(0, (), ())


class StageView:
    """Follows the folder of one stage. ``refresh`` belongs to one thread; what it publishes may be read by any."""

    def __init__(self, folder: StageFolder, search: Search, stage: Stage, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self.search = search
        self.stage = stage
        self.ranked = NOTHING
        self.records: dict[str, Record] = {}  # the latest ended attempt of each trial, without curves and the like
        self._warn = warn
        self._superseded: list[Record] = []
        self._read: set[str] = set()  # file names
        self._damaged: dict[str, str] = {}  # file name -> what is wrong
        self._written: list[float] = []  # when records were written, ascending
        self._stamp: tuple[int, int] | None = None
        self._looked = 0.0
        self._changed = False
        self._rank_at = 0.0

    @property
    def launched(self) -> bool:
        """Whether its ranges are frozen."""
        return self.folder.ranges.exists()

    def refresh(self, force: bool = False) -> bool:
        """Looks for new records and ranks anew; True if the published ranking is another.

        Args:
            force: Redis knows of more endings than the folder showed, so its time stamps are not to be trusted.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        now = time.time()
        stamp = (_modified(self.folder.trials), _modified(self.folder.path))
        fresh = now - max(stamp) / 1e9 < FRESH_S
        if force or fresh or stamp != self._stamp or now - self._looked > LOOK_S:
            self._changed |= self._look() or stamp != self._stamp
            self._stamp, self._looked = stamp, now
        if not self._changed or time.monotonic() < self._rank_at:
            return False
        began = time.thread_time()
        self._rank()
        self._changed = False
        self._rank_at = time.monotonic() + (MAX_SHARE - 1) * (time.thread_time() - began)
        return True

    def pace(self, now_s: float) -> float | None:
        """Trials ended a second in the last minute, or since the stage began; None where none did."""
        since = now_s - PACE_WINDOW_S
        ended = len(self._written) - bisect_left(self._written, since)
        if not ended:
            return None
        began = max(_modified(self.folder.ranges) / 1e9, since)
        return ended / max(now_s - began, 1.0)

    def space(self) -> Space | None:
        """The ranges that it samples, None where it has not been launched or they cannot be read."""
        try:
            return read_frozen(self.folder.ranges, self.search.space) if self.launched else None
        except (CheckpointError, ConfigError) as error:
            self._warn(str(error))
            return None

    def _look(self) -> bool:
        """Reads what is new; True if there was something."""
        files = {file.path.name: file for file in self.folder.attempts(self.folder.trials)}
        changed = bool(self._read - files.keys())
        if changed:  # records were taken away: the search was replaced, or somebody tidied up
            self.records, self._superseded, self._read, self._damaged, self._written = {}, [], set(), {}, []
        new = sorted((file for name, file in files.items() if name not in self._read), key=lambda file: file.attempt)
        for file in new:
            if (record := self._record(file.path)) is not None:
                self._take(record)
                changed = True
        self._written.sort()
        return changed

    def _take(self, record: Record) -> None:
        """The highest attempt is the trial, whichever comes first."""
        known = self.records.get(record.trial)
        later, earlier = (record, known) if known is None or known.attempt < record.attempt else (known, record)
        self.records[record.trial] = later
        if earlier is not None:
            self._superseded.append(earlier)

    def _record(self, path: Path) -> Record | None:
        """One record, lightened; None if it is gone or damaged, which is told once."""
        try:
            record = read_record(path)
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            if self._damaged.get(path.name) != str(error):
                self._damaged[path.name] = str(error)
                self._warn(str(error))
            return None
        self._read.add(path.name)
        self._written.append(_modified(path) / 1e9)
        return record.model_copy(update={"curves": {}, "portrait": None, "traceback": None, "snapshots": []})

    def _rank(self) -> None:
        records = sorted(self.records.values(), key=lambda record: record.index)
        table = ranking.frame(records)
        rows = tuple(ranking.rows(table, {str(name) for name in self.folder.checkpoints()}))
        top = [records[place] for place in table.index[:SUPPORT_TRIALS]]  # no other trial has a say in the borders
        space = self.space()
        found = tuple(borders(top, space)) if space is not None and self.stage.kind == "search" else ()
        self.ranked = Ranked(self.ranked.version + 1, rows, found, tuple(records), tuple(self._superseded))


def _modified(path: Path) -> int:
    """When a file or folder was last written to, in ns of Unix time; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return 0
