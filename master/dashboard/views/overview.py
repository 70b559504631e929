"""All stages of a search: their common ranking, its best trial, and the promotions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import CheckpointError
from common.folder.records import SearchFolder
from common.search.search_file import Search
from common.search.stage import Stage
from master.dashboard.views.stage_view import (
    FRESH_S,
    MAX_SHARE,
    NOTHING,
    Ranked,
    StageView,
    read_mtime_ns,
)
from master.results import ranking
from master.results.repeats import one_of_each
from master.stages.promotions import Decision, read_decisions
from master.strategy.borders import Border, borders_of
from master.strategy.guessing import Guessing, guessing_of, has_ended


@dataclass(frozen=True)
class Whole:
    """A search at one moment. It is never changed, so any thread may read it.

    Attributes:
        ranked: The trials of all stages that search, best first.
        borders: For each stage, the best values so far that lie on the border of its range.
        n_measured: The number of trials that the best was selected from.
        guessing: Why the best trial says nothing, or None. If it says nothing there are no borders.
    """

    ranked: Ranked = NOTHING
    borders: Mapping[str, tuple[Border, ...]] | None = None
    n_measured: int = 0
    guessing: Guessing | None = None

    def borders_of(self, stage: str) -> tuple[Border, ...]:
        """Return the best values so far on the border of a stage's range."""
        return (self.borders or {}).get(stage, ())


class WholeRanking:
    """The common ranking of all stages, renewed when one of them has changed.

    Ranking takes at most 1 / ``MAX_SHARE`` of the time.
    """

    def __init__(self) -> None:
        self.whole = Whole()
        self._changed = True
        self._rank_at = 0.0

    def refresh(self, views: Sequence[StageView], has_changed: bool) -> None:
        """Rank what the stages hold now, if it has changed."""
        self._changed |= has_changed
        if not self._changed or time.monotonic() < self._rank_at:
            return
        began = time.thread_time()
        self.whole = _whole(views, self.whole.ranked.version + 1)
        self._changed = False
        self._rank_at = time.monotonic() + (MAX_SHARE - 1) * (time.thread_time() - began)


def _whole(views: Sequence[StageView], version: int) -> Whole:
    searching = [view for view in views if view.stage.searches]
    records = [record for view in searching for record in view.ranked.records]
    begun = [view.ranked for view in searching if view.ranked.records]
    rows = begun[0].rows if len(begun) == 1 else _rank(begun)
    best, found, until = (
        ranking.best(records) if records else [],
        dict[str, tuple[Border, ...]](),
        set[str](),
    )
    looks = [look for view in searching for look in view.ranked.looks]
    known = bool(searching) and has_ended(searching[0].search, [record.stage for record in records])
    nothing = guessing_of(looks) if known else None
    for view in searching if nothing is None else ():
        until.add(view.stage.name)
        space = view.space()
        if space is not None and view.ranked.records:
            top = [record.hyperparameters for record in one_of_each(best) if record.stage in until]
            found[view.stage.name] = tuple(borders_of(top, space)) if top else ()
    return Whole(Ranked(version, rows, tuple(records)), found, len(best), nothing)


def _rank(stages: Sequence[Ranked]) -> tuple[dict[str, Any], ...]:
    """Return the common ranking of stages that are ranked each for itself."""
    records = [record for stage in stages for record in stage.records]
    present = {row["checkpoint"] for stage in stages for row in stage.rows if row["checkpoint"]}
    return tuple(ranking.rows(ranking.frame(records), present)) if records else ()


class Promotions:
    """The promotion decisions on the rungs of a search's stages.

    Those of a stage are read again when its folder has changed.
    """

    def __init__(self, folder: SearchFolder, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._warn = warn
        self._known: dict[str, list[Decision]] = {}
        self._stamps: dict[str, int] = {}

    def of(self, stage: Stage) -> list[Decision]:
        """Return the decisions of one stage as they were last read."""
        return self._known.get(stage.name, [])

    def refresh(self, search: Search) -> None:
        """Read new decisions."""
        for stage in search.stages:
            stamp = read_mtime_ns(self._folder.stage(stage.name).promotions)
            # Two writes in quick succession may have the same time stamp.
            is_fresh = time.time() - stamp / 1e9 < FRESH_S
            if not stage.searches or (stamp == self._stamps.get(stage.name, 0) and not is_fresh):
                continue
            try:
                self._known[stage.name] = read_decisions(self._folder, str(search.id), [stage])
                self._stamps[stage.name] = stamp
            except CheckpointError as error:
                self._warn(str(error))

    def find_promoters(self, search: Search) -> dict[tuple[str, float], str]:
        """Return the stage that promoted each trial to each budget, by (trial, budget)."""
        found: dict[tuple[str, float], str] = {}
        for stage in search.stages:
            for decision in self.of(stage):
                for trial in decision.trials:
                    found.setdefault((trial, decision.epochs), stage.name)
        return found
