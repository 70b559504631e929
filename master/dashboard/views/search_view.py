"""One search as the dashboard shows it.

Its stages come from the folder, its counts and running trials from Redis.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from common.errors import CheckpointError
from common.folder.notes import Note, Notes, notes_file, read_notes
from common.folder.record import Record
from common.folder.records import SearchFolder
from common.queue.trial_queue import TrialQueue
from common.search.search_file import Search
from common.search.trial import ENDED, Running, TrialState
from master.dashboard.views import models
from master.dashboard.views.live import Costs, estimate_of, who_trains
from master.dashboard.views.overview import Promotions, Whole, WholeRanking
from master.dashboard.views.stage_view import FRESH_S, StageView, read_mtime_ns
from master.results.columns import RankedTrial
from master.results.lineage import way_of
from master.run.climb import Climb, Step, climb
from master.run.estimate import MOST_SEEN, SILENT_S
from master.stages.prepare import Launched

MOST_NOTED = 50  # trials with notes that the overview names


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
        self.overview = models.Overview.of(search, folder.name)
        self.notes = Notes()
        self.costs = Costs()
        self._notes_stamp = 0
        self._notes_version = 0
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
        self._refresh_notes()
        self.costs.refresh(self.stages, self.running, has_changed)
        whole, overview = self.whole, models.Overview.of(self.search, self.folder.name)
        overview.master_alive = self.master_alive
        if whole.ranked.best is not None:
            overview.best = RankedTrial.model_validate(whole.ranked.best)
            overview.best_drawn = way_of(overview.best.drawn, overview.best.parents)
        if whole.guessing is not None:
            overview.guessing = models.Guessing.model_validate(whole.guessing.as_json)
        overview.measured, overview.version = whole.n_measured, whole.ranked.version
        now_s = float(math.ceil(time.time()))  # whole, so that numbers change once a second
        climbs = self._climb(now_s)
        overview.stages = [
            self._progress(view, climbs[view.stage.name], now_s) for view in self.stages
        ]
        begun = [climbs[view.stage.name] for view in self.stages if view.launched]
        others = [climbs[view.stage.name] for view in self.stages if not view.launched]
        overview.estimate = estimate_of(begun, now_s)
        overview.to_come = estimate_of(begun, now_s, sum(far.left_epochs for far in others))
        overview.cost = self.costs.row()
        self._add_notes(overview)
        self.overview = overview

    def add_workers(self, workers: Sequence[models.WorkerRow], served: set[str]) -> None:
        """Add what each worker does for this search to the overview.

        Args:
            workers: The workers that train for this search, or may.
            served: The workers that train for any search now.
        """
        self.overview.at_work = who_trains(workers, self.running, served)

    def _refresh_notes(self) -> None:
        """Read the notes, if their file is another one than before."""
        stamp = read_mtime_ns(notes_file(self.folder))
        # Two writes in quick succession may have the same time stamp.
        if stamp == self._notes_stamp and time.time() - stamp / 1e9 > FRESH_S:
            return
        try:
            notes = read_notes(self.folder)
        except CheckpointError as error:
            self._warn(str(error))
            notes = self.notes
        self._notes_stamp = stamp
        if notes != self.notes:
            self.notes = notes
            self._notes_version += 1

    def _add_notes(self, overview: models.Overview) -> None:
        overview.noted, overview.notes_version = note_row(self.notes.search), self._notes_version
        noted = [(trial, own) for trial, own in self.notes.trials.items() if not own.is_empty]
        noted.sort(key=lambda one: -one[1].at)
        overview.n_noted = len(noted)
        overview.noted_trials = [
            models.NotedTrial(trial=trial, **note_row(own).model_dump())
            for trial, own in noted[:MOST_NOTED]
        ]

    def _count_ended(self, view: StageView) -> int:
        """Return how many of a stage's trials have ended, by Redis."""
        counts = (self.counts or {}).get(view.stage.name, {})
        return sum(counts.get(state, 0) for state in ENDED)

    def _climb(self, now_s: float) -> dict[str, Climb]:
        """Return how far each stage is."""
        records = self.records()
        lately = (one for view in self.stages for one in view.lately())
        seen = sorted(lately, key=lambda one: one.ended)[-MOST_SEEN:]
        if not self.running and seen and now_s - seen[-1].ended > SILENT_S:
            seen = []  # a search that rests has no pace
        return {
            view.stage.name: climb(
                view.stage,
                self.promotions.of(view.stage),
                records,
                self.running,
                seen,
                max(self._count_ended(view), len(view.records)),
                self.search.strategy.resumes,
                now_s,
            )
            for view in self.stages
        }

    def _progress(self, view: StageView, far: Climb, now_s: float) -> models.StageProgress:
        ranked = view.ranked
        told = (self.counts or {}).get(view.stage.name)
        counts = {state.value: (told or ranked.counts).get(state.value, 0) for state in TrialState}
        ended = sum(counts[state] for state in ENDED)
        total = max(sum(counts.values()) if told else 0, view.stage.trials)
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
            rungs=[_rung_row(step) for step in far.steps],
            **estimate_of([far], now_s).model_dump(),
            cost=self.costs.row(view.stage.name),
            best=RankedTrial.model_validate(ranked.best) if ranked.best else None,
            borders=[
                models.BorderWarning.model_validate(border.as_json)
                for border in self.whole.borders_of(view.stage.name)
            ],
            version=self.version(view),
        )


def note_row(own: Note) -> models.NoteRow:
    """Return tags and a note as the API has them."""
    return models.NoteRow(tags=list(own.tags), note=own.note, edit=own.edit, at=own.at or None)


def _rung_row(step: Step) -> models.RungProgress:
    return models.RungProgress(
        epochs=step.rung.epochs,
        planned=step.planned,
        awaited=step.awaited,
        trained=step.trained,
        running=step.running,
        promoted=step.rung.promoted,
        decided=step.rung.is_decided,
    )


def _stamp(folder: SearchFolder) -> int:
    """Return the time stamp of ``search.toml`` in ns, or 0 if there is none."""
    try:
        return folder.search_file.stat().st_mtime_ns
    except OSError:
        return 0
