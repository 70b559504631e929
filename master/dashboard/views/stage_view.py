"""One stage as the dashboard shows it.

Each record is read once, and the trials are ranked again only when the records have changed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import CheckpointError, ConfigError
from common.folder.record import Record
from common.folder.records import StageFolder, read_record
from common.search.search_file import Search
from common.search.space import Space
from common.search.stage import Stage
from common.search.trial import TrialState, violates
from master.results import ranking
from master.results.cost import Held, held_by
from master.results.lineage import at_rungs
from master.run.climb import Seen, seen_of
from master.run.estimate import MOST_SEEN
from master.strategy.guessing import Look, look_of
from master.strategy.ranges import read_frozen

# A folder that was written to this recently is read again. Two writes in quick succession may have
# the same time stamp.
FRESH_S = 3.0
# A folder is read this often even if its time stamp is unchanged. A network file system may report
# an old one.
LOOK_S = 10.0
MAX_SHARE = 4  # ranking takes at most 1 / MAX_SHARE of the time


@dataclass(frozen=True)
class Ranked:
    """The ranking of a stage at one moment.

    It is never changed, so any thread may read it.
    """

    version: int
    rows: tuple[dict[str, Any], ...]  # as `master rank --format json`, best first
    records: tuple[Record, ...] = ()  # light records of the same trials, by number
    looks: tuple[Look, ...] = ()  # what the curves of each showed
    # Attempts that are not their trial's last: at shorter budgets, or lost.
    superseded: tuple[Record, ...] = ()

    @cached_property
    def by_trial(self) -> dict[str, dict[str, Any]]:
        """The rows by trial."""
        return {row["trial"]: row for row in self.rows}

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of trials that ended in each state, by the folder."""
        return dict(Counter(row["state"] for row in self.rows))

    @cached_property
    def varied(self) -> list[str]:
        """The hyperparameters whose values differ between trials."""
        return ranking.find_varied([row["hyperparameters"] for row in self.rows])

    @property
    def best(self) -> dict[str, Any] | None:
        """The best trial, if it ended well, was measured, and violates no constraint, else None."""
        return next(
            (
                row
                for row in self.rows[:1]
                if row["value"] is not None
                and row["state"] in ("completed", "stopped")
                and not violates(TrialState(row["state"]), row["reason"])
            ),
            None,
        )


NOTHING = Ranked(0, ())


class StageView:
    """The live view of one stage's folder.

    Only one thread may call ``refresh``. Any thread may read what it publishes.
    """

    def __init__(
        self, folder: StageFolder, search: Search, stage: Stage, warn: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.search = search
        self.stage = stage
        self.ranked = NOTHING
        # Latest ended attempt of each trial. Of its curves only the metric at each rung is kept.
        self.records: dict[str, Record] = {}
        self._warn = warn
        self._looks: dict[tuple[str, int], Look] = {}  # by trial and attempt
        self._superseded: list[Record] = []
        self._read: set[str] = set()  # file names
        self._damaged: dict[str, str] = {}  # file name -> what is wrong
        self.held: list[Held] = []  # the time of each attempt that trained
        # Trainings that have ended, by the time when their records were written.
        self._seen: list[Seen] = []
        self._stamp: tuple[int, int] | None = None
        self._looked = 0.0
        self._changed = False
        self._rank_at = 0.0

    @property
    def launched(self) -> bool:
        """Whether the ranges of the stage are frozen."""
        return self.folder.has_begun

    def refresh(self, force: bool = False) -> bool:
        """Look for new records and rank again if there are any.

        Args:
            force: Read the folder in any case. Redis knows of more ended trials than the folder
                showed, so its time stamps cannot be trusted.

        Returns:
            Whether a new ranking was published.

        Raises:
            CheckpointError: The folder cannot be read.
        """
        now = time.time()
        stamp = (read_mtime_ns(self.folder.trials), read_mtime_ns(self.folder.path))
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

    def lately(self) -> list[Seen]:
        """Return the latest trainings that have ended."""
        return self._seen[-MOST_SEEN:]

    def space(self) -> Space | None:
        """Return the ranges that the stage samples.

        The result is None if the stage has not been launched or the ranges cannot be read.
        """
        try:
            return read_frozen(self.folder.ranges, self.search.space) if self.launched else None
        except (CheckpointError, ConfigError) as error:
            self._warn(str(error))
            return None

    def _look(self) -> bool:
        """Read new records. Return whether anything changed."""
        files = {file.path.name: file for file in self.folder.attempts(self.folder.trials)}
        changed = bool(self._read - files.keys())
        if changed:  # records were removed: the search was replaced, or the folder was cleaned
            (
                self.records,
                self._looks,
                self._superseded,
                self._read,
                self._damaged,
                self._seen,
                self.held,
            ) = {}, {}, [], set(), {}, [], []
        new = sorted(
            (file for name, file in files.items() if name not in self._read),
            key=lambda file: file.attempt,
        )
        for file in new:
            if (record := self._record(file.path)) is not None:
                self._take(record)
                changed = True
        self._seen.sort(key=lambda one: one.ended)
        return changed

    def _take(self, record: Record) -> None:
        """Keep a record if it is the highest attempt of its trial so far."""
        known = self.records.get(record.trial)
        later, earlier = (
            (record, known) if known is None or known.attempt < record.attempt else (known, record)
        )
        self.records[record.trial] = later
        if earlier is not None:
            self._superseded.append(earlier)

    def _record(self, path: Path) -> Record | None:
        """Return one light record, or None if it is gone or damaged.

        The same damage is warned of once.
        """
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
        if (held := held_by(record)) is not None:
            self.held.append(held)
        if (seen := seen_of(record, read_mtime_ns(path) / 1e9)) is not None:
            self._seen.append(seen)
        self._looks[record.trial, record.attempt] = look_of(record)
        return record.model_copy(
            update={
                "curves": at_rungs(record),
                "portrait": None,
                "traceback": None,
                "snapshots": [],
            }
        )

    def _rank(self) -> None:
        records = sorted(self.records.values(), key=lambda record: record.index)
        table = ranking.frame(records)
        rows = tuple(ranking.rows(table, {str(name) for name in self.folder.checkpoints()}))
        looks = tuple(self._looks[record.trial, record.attempt] for record in records)
        self.ranked = Ranked(
            self.ranked.version + 1, rows, tuple(records), looks, tuple(self._superseded)
        )


def read_mtime_ns(path: Path) -> int:
    """Return when a file or folder was last written to, in ns of Unix time.

    The result is 0 if it does not exist.
    """
    try:
        return path.stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return 0
