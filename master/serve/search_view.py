"""One search as the dashboard shows it: its stages by the folder, its counts and running trials by Redis."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from common.errors import CheckpointError
from common.queue import TrialQueue
from common.records import SearchFolder
from common.search import Search
from common.trial import ENDED, Running, TrialState
from master.prepare import Launched
from master.serve import models
from master.serve.stage_view import StageView


class SearchView:
    """Follows one search. ``refresh`` and ``ask`` belong to one thread; what they publish may be read by any."""

    def __init__(self, folder: SearchFolder, search: Search, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self.search = search
        self.counts: dict[str, dict[str, int]] | None = None  # None: Redis has not told, or does not serve
        self.running: tuple[Running, ...] = ()
        self.master_alive: bool | None = None
        self.overview = models.Overview.of(search)
        self._warn = warn
        self._stamp = _stamp(folder)
        self._stages: dict[str, StageView] = {}
        self._add_stages()

    @property
    def launched(self) -> Launched:
        """As the functions of the commands take it."""
        return Launched(self.search, self.folder)

    def queue(self, client: Any) -> TrialQueue:
        """Its trials in Redis."""
        return TrialQueue(client, self.launched.id, self.search.stragglers.lease_s)

    def stage(self, name: str) -> StageView | None:
        """One of its stages."""
        return self._stages.get(name)

    @property
    def stages(self) -> list[StageView]:
        """In the order of the file."""
        return list(self._stages.values())

    @property
    def stale(self) -> bool:
        """Whether the folder now holds another search than the one that was read, or none."""
        return _stamp(self.folder) != self._stamp

    def reread(self) -> bool:
        """Takes over a ``search.toml`` that was launched again with more trials or stages; False if it is another search by now.

        Raises:
            CheckpointError: it is damaged.
        """
        stamp, search = _stamp(self.folder), self.folder.search()
        if search is None or search.id != self.search.id:
            return False
        self.search, self._stamp = search, stamp
        self._add_stages()
        return True

    def _add_stages(self) -> None:
        known = self._stages
        self._stages = {
            stage.name: known.get(stage.name) or StageView(self.folder.stage(stage.name), self.search, stage, self._warn)
            for stage in self.search.stages
        }
        for stage in self.search.stages:
            self._stages[stage.name].search, self._stages[stage.name].stage = self.search, stage

    def ask(self, client: Any) -> None:
        """Asks Redis where the trials stand.

        Raises:
            QueueError: Redis does not serve.
        """
        queue = self.queue(client)
        self.counts = queue.counts()
        any_running = any(by_state[TrialState.RUNNING] for by_state in self.counts.values())
        self.running = tuple(queue.running()) if any_running else ()
        self.master_alive = queue.master_alive()

    def forget(self) -> None:
        """Redis does not serve: what it said last is no longer known to be so."""
        self.counts, self.running, self.master_alive = None, (), None

    def refresh(self) -> None:
        """Reads what is new in the folder and publishes the overview."""
        for view in self.stages:
            try:
                view.refresh(force=self._ended(view) > len(view.records))
            except CheckpointError as error:
                self._warn(str(error))
        overview = models.Overview.of(self.search)
        overview.master_alive = self.master_alive
        overview.stages = [self._progress(view) for view in self.stages]
        self.overview = overview

    def _ended(self, view: StageView) -> int:
        """How many of a stage's trials have ended, by Redis."""
        counts = (self.counts or {}).get(view.stage.name, {})
        return sum(counts.get(state, 0) for state in ENDED)

    def _progress(self, view: StageView) -> models.StageProgress:
        ranked = view.ranked
        told = (self.counts or {}).get(view.stage.name)
        counts = {state.value: (told or ranked.counts).get(state.value, 0) for state in TrialState}
        ended = sum(counts[state] for state in ENDED)
        total = max(sum(counts.values()) if told else 0, view.stage.trials)
        pace = view.pace(time.time()) if told is None or ended < total else None
        return models.StageProgress(
            stage=view.stage.name,
            kind=view.stage.kind,
            epochs=view.stage.epochs,
            launched=view.launched,
            trials=total,
            ended=ended,
            counts=counts,
            counts_from="redis" if told else "folder",
            pace=pace,
            left_s=(total - ended) / pace if pace else None,
            best=models.RankedTrial.model_validate(ranked.best) if ranked.best else None,
            borders=[models.BorderWarning.model_validate(border.as_json) for border in ranked.borders],
            version=ranked.version,
        )


def _stamp(folder: SearchFolder) -> int:
    """Tells one state of its ``search.toml`` from another; 0 where there is none."""
    try:
        return folder.search_file.stat().st_mtime_ns
    except OSError:
        return 0
