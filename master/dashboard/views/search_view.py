"""One search as the dashboard shows it.

Its stages come from the folder, its counts and running trials from Redis.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.errors import CheckpointError
from common.folder.record import Record
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.search.search_file import Search
from common.search.trial import ENDED, Running, TrialState
from master.dashboard.views import models
from master.dashboard.views.overview import Promotions, Whole, WholeRanking, climb
from master.dashboard.views.stage_view import StageView
from master.results.columns import RankedTrial
from master.results.lineage import way_of
from master.run.progress import PACE_WINDOW_S
from master.stages.prepare import Launched


class SearchView:
    """The live view of one search.

    Only one thread may call ``refresh`` and ``ask``. Any thread may read what they publish.
    """

    def __init__(self, folder: SearchFolder, search: Search, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self.search = search
        # Counts of Redis. None: not known yet, or Redis does not serve.
        self.counts: dict[str, dict[str, int]] | None = None
        self.running: tuple[Running, ...] = ()
        self.master_alive: bool | None = None
        self.overview = models.Overview.of(search)
        self._warn = warn
        self._stamp = _stamp(folder)
        self._stages: dict[str, StageView] = {}
        self._ranking = WholeRanking()
        self.promotions = Promotions(folder, warn)
        self._add_stages()

    @property
    def launched(self) -> Launched:
        """The search in the form that the functions of the commands take."""
        return Launched(self.search, self.folder)

    def queue(self, client: Any) -> TrialQueue:
        """Return the search's queue in Redis."""
        return TrialQueue(client, self.launched.id, self.search.stragglers.lease_s)

    def stage(self, name: str) -> StageView | None:
        """Return the stage of that name, or None."""
        return self._stages.get(name)

    @property
    def stages(self) -> list[StageView]:
        """The stages, in the order of the search file."""
        return list(self._stages.values())

    @property
    def whole(self) -> Whole:
        """All stages together."""
        return self._ranking.whole

    def version(self, stage: StageView) -> int:
        """Return a number that grows with each change in a stage or in one before it.

        Trials of an earlier stage may go on in a later one.
        """
        return sum(view.ranked.version for view in self.until(stage))

    def until(self, stage: StageView) -> list[StageView]:
        """Return the stages up to this one, whose trials its figures show."""
        return self.stages[: self.stages.index(stage) + 1]

    def rows_until(self, stage: StageView) -> list[dict[str, Any]]:
        """Return the rows of the stages up to this one."""
        return [row for one in self.until(stage) for row in one.ranked.rows]

    def records(self) -> dict[str, Record]:
        """Return the last record of each trial, in the light form without full curves."""
        return {trial: record for view in self.stages for trial, record in view.records.items()}

    @property
    def stale(self) -> bool:
        """Whether the folder now holds another ``search.toml`` than the one read, or none."""
        return _stamp(self.folder) != self._stamp

    def reread(self) -> bool:
        """Take over a ``search.toml`` that was launched again with more trials or stages.

        Returns:
            False if the folder now holds another search.

        Raises:
            CheckpointError: The file is damaged.
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
            stage.name: known.get(stage.name)
            or StageView(self.folder.stage(stage.name), self.search, stage, self._warn)
            for stage in self.search.stages
        }
        for stage in self.search.stages:
            self._stages[stage.name].search, self._stages[stage.name].stage = self.search, stage

    def ask(self, client: Any) -> None:
        """Ask Redis for the state of the trials.

        Raises:
            QueueError: Redis does not serve.
        """
        queue = self.queue(client)
        self.counts = queue.counts()
        any_running = any(by_state[TrialState.RUNNING] for by_state in self.counts.values())
        self.running = tuple(queue.running()) if any_running else ()
        self.master_alive = queue.master_alive()

    def forget(self) -> None:
        """Drop what Redis said last, since Redis does not serve."""
        self.counts, self.running, self.master_alive = None, (), None

    def refresh(self) -> None:
        """Read what is new in the folder and publish the overview."""
        has_changed = False
        for view in self.stages:
            try:
                has_changed |= view.refresh(force=self._count_ended(view) > len(view.records))
            except CheckpointError as error:
                self._warn(str(error))
        self.promotions.refresh(self.search)
        self._ranking.refresh(self.stages, has_changed)
        whole, overview = self.whole, models.Overview.of(self.search)
        overview.master_alive = self.master_alive
        if whole.ranked.best is not None:
            overview.best = RankedTrial.model_validate(whole.ranked.best)
            overview.best_drawn = way_of(overview.best.drawn, overview.best.parents)
        if whole.guessing is not None:
            overview.guessing = models.Guessing.model_validate(whole.guessing.as_json)
        overview.measured, overview.version = whole.n_measured, whole.ranked.version
        records, since = self.records(), time.time() - PACE_WINDOW_S
        lately = [training for view in self.stages for training in view.lately(since)]
        overview.stages = [self._progress(view, records, lately) for view in self.stages]
        self.overview = overview

    def _count_ended(self, view: StageView) -> int:
        """Return how many of a stage's trials have ended, by Redis."""
        counts = (self.counts or {}).get(view.stage.name, {})
        return sum(counts.get(state, 0) for state in ENDED)

    def _progress(
        self, view: StageView, records: Mapping[str, Record], lately: Sequence[tuple[str, float]]
    ) -> models.StageProgress:
        ranked = view.ranked
        told = (self.counts or {}).get(view.stage.name)
        counts = {state.value: (told or ranked.counts).get(state.value, 0) for state in TrialState}
        ended = sum(counts[state] for state in ENDED)
        total = max(sum(counts.values()) if told else 0, view.stage.trials)
        decisions, resumes = self.promotions.of(view.stage), self.search.strategy.resumes
        far = climb(view, decisions, records, self.running, lately, ended, resumes)
        passed_s = max(1.0, min(PACE_WINDOW_S, time.time() - view.began_s()))
        is_moving = far.n_lately > 0 and (told is None or far.trained < far.trainings)
        return models.StageProgress(
            stage=view.stage.name,
            kind=view.stage.kind,
            kind_words=view.stage.traits.budget_words,
            epochs=view.stage.epochs,
            launched=view.launched,
            trials=total,
            ended=ended,
            counts=counts,
            counts_from="redis" if told else "folder",
            trainings=far.trainings,
            trained=far.trained,
            rungs=list(far.rungs),
            pace=far.n_lately / passed_s if is_moving else None,
            left_s=far.left_epochs / (far.lately / passed_s) if is_moving else None,
            best=RankedTrial.model_validate(ranked.best) if ranked.best else None,
            borders=[
                models.BorderWarning.model_validate(border.as_json)
                for border in self.whole.borders_of(view.stage.name)
            ],
            version=self.version(view),
        )


def _stamp(folder: SearchFolder) -> int:
    """Return the time stamp of ``search.toml`` in ns, or 0 if there is none."""
    try:
        return folder.search_file.stat().st_mtime_ns
    except OSError:
        return 0
