"""The figures of a stage as plotly's JSON.

They are drawn from the records that the dashboard holds, and kept until the ranking changes.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from common.errors import ConfigError
from common.folder import pictures
from common.folder.record import Record
from common.search.space import Space
from master.dashboard.views.search_view import SearchView
from master.dashboard.views.stage_view import Ranked, StageView
from master.figures.catalogue import NARROW_COLUMNS, OF_ALL, WIDE_COLUMNS, Material, draw
from master.figures.curves import BEST_CHOSEN
from master.figures.table import table, with_shares
from master.report.figure_data import PROPOSED, read_following
from master.strategy.ranges import read_proposal

# Figures that need curves or histograms. The dashboard does not hold these, so the chosen records
# are read again.
WITH_CURVES = ("losses", "accuracies", "ratios", "histograms")
# A figure is not drawn again before this multiple of its drawing time has passed. A random forest
# of 10,000 trials takes a while.
REST = 5.0
MOST_PROPOSED = 1000  # trials of a running stage from which the next ranges are proposed each time
MOST_KEPT = 150  # drawings; each filter has its own


@dataclass(frozen=True)
class Drawn:
    """A figure as it was drawn."""

    version: int
    json: str
    again_at: float  # monotonic time from which it may be drawn again


class Drawings:
    """The drawn figures of all stages.

    One figure is drawn at a time, so that several open pages do not take the machine from the
    search.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, str, int, str], Drawn] = OrderedDict()
        self._materials: dict[tuple[str, str], tuple[int, Material]] = {}
        self._mutex = threading.Lock()

    def figure(
        self,
        view: SearchView,
        stage: StageView,
        name: str,
        columns: int,
        words: str = "",
        matching: Collection[str] | None = None,
    ) -> str:
        """Return the figure of that name, as JSON.

        Args:
            view: The search.
            stage: A stage of which at least one trial has ended.
            name: The name of the figure.
            columns: The number of panels side by side.
            words: The filter that trials must pass; empty for all.
            matching: The trials that pass it, of this stage and those before it. The ``meta`` of a
                figure that follows the filter says how many they are.

        Raises:
            SearchError: What the stage sampled cannot be read.
        """
        key = (
            str(view.search.id),
            stage.stage.name,
            name,
            WIDE_COLUMNS if columns > 1 else NARROW_COLUMNS,
            words,
        )
        with self._mutex:
            kept, now = self._kept.get(key), time.monotonic()
            if kept is None or (kept.version != view.version(stage) and now >= kept.again_at):
                kept = self._kept[key] = self._draw(view, stage, name, key[3], matching)
            self._kept.move_to_end(key)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            return kept.json

    def _draw(
        self,
        view: SearchView,
        stage: StageView,
        name: str,
        columns: int,
        matching: Collection[str] | None,
    ) -> Drawn:
        began, ranked, current = time.monotonic(), stage.ranked, view.version(stage)
        chosen = _choose_records(stage, ranked, matching) if name in WITH_CURVES else []
        light = self._light(view, stage, ranked)
        material = replace(light, trials=_add_curves(light.trials, chosen), matching=matching)
        figure = draw(name, material, _find_shown(name, chosen), columns)
        if matching is not None and name not in OF_ALL:
            count = {"matching": len(matching), "of": len(view.rows_until(stage))}
            figure.update_layout(meta={**(figure.layout.meta or {}), **count})
        json = str(figure.to_json())
        ended = time.monotonic()
        return Drawn(current, json, ended + REST * (ended - began))

    def _light(self, view: SearchView, stage: StageView, ranked: Ranked) -> Material:
        """Return the material of the figures that need no curves.

        It is made from the held records, and figures of the same version share it.
        """
        key = (str(view.search.id), stage.stage.name)
        version, material = self._materials.get(key, (-1, None))
        current = view.version(stage)
        if material is None or version != current:
            material = _material(view, stage, ranked)
            self._materials[key] = current, material
        return material


def _material(view: SearchView, stage: StageView, ranked: Ranked) -> Material:
    """Do what ``master.report.figure_data.gather`` does, without reading all records again."""
    records = list(ranked.records)
    until = view.until(stage)
    earlier = [record for one in until[:-1] for record in one.ranked.records]
    superseded = [record for one in until for record in one.ranked.superseded]
    ranges = {one.stage.name: space for one in until if (space := one.space()) is not None}
    proposal = _read_proposed(view, stage, ranked) if stage.stage.name in ranges else {}
    trials = table(records)
    history = table([*earlier, *records]) if earlier else trials
    attempts = table([*superseded, *earlier, *records]) if superseded else history
    return Material(
        stage=stage.stage.name,
        trials=trials,
        history=history,
        attempts=with_shares(attempts, view.search.strategy.resumes),
        ranges=ranges,
        following={name: space for name, space in ranges.items() if space.sampled} | proposal,
        picture=lambda trial: _picture(stage, trial),
    )


def _read_proposed(view: SearchView, stage: StageView, ranked: Ranked) -> dict[str, Space]:
    """Return the ranges that the next stage will sample, by their title; empty if unknown.

    While a large stage runs they are unknown, since a proposal is made from all complete records.
    """
    following = view.search.after(stage.stage.name)
    if following is None or not (stage.stage.searches and following.searches):
        return {}
    try:
        space = read_proposal(stage.folder.ranges, view.search.space)
    except ConfigError:  # edited into something wrong; the launch of the next stage says what
        space = None
    if space is None and len(ranked.records) <= MOST_PROPOSED:
        made = read_following(view.search, view.folder, stage.stage, ranked.records)
        space = made.space if made else None
    return {} if space is None else {PROPOSED.format(stage=following.name): space}


def _add_curves(trials: pd.DataFrame, chosen: Sequence[Record]) -> pd.DataFrame:
    """Return the trials with the curves and histograms of the chosen ones."""
    full = {record.trial: record for record in chosen}
    rows = trials["trial"].isin(full)
    if not rows.any():
        return trials
    added = trials.copy()
    for name in ("curves", "portrait"):
        values = [getattr(full[trial], name) for trial in trials["trial"][rows]]
        added.loc[rows, name] = pd.Series(values, index=trials.index[rows], dtype=object)
    return added


def _choose_records(
    stage: StageView, ranked: Ranked, matching: Collection[str] | None
) -> list[Record]:
    """Read the complete records of some trials, of those that match.

    These are the best three, the median and the last of those that ended well, and one that
    exploded.
    """
    matched = [row for row in ranked.rows if matching is None or row["trial"] in matching]
    good = [
        row
        for row in matched
        if row["state"] in ("completed", "stopped") and row["value"] is not None
    ]
    places = [*range(min(BEST_CHOSEN, len(good))), len(good) // 2, len(good) - 1] if good else []
    rows = [good[place] for place in places] + [
        row for row in matched if row["state"] == "exploded"
    ][:1]
    names = {row["trial"]: row["attempt"] for row in rows}
    found = (stage.folder.record(trial, attempt) for trial, attempt in names.items())
    return [record for record in found if record is not None]


def _find_shown(name: str, chosen: Sequence[Record]) -> list[str]:
    """Return the chosen trials that have what a figure shows.

    A figure that draws a line for each layer shows only the best trial.
    """
    if name == "histograms":
        return [record.trial for record in chosen if record.portrait is not None][:1]
    with_curves = [record.trial for record in chosen if record.curves]
    return with_curves[:1] if name == "ratios" else with_curves


def _picture(stage: StageView, trial: str) -> bytes | None:
    record = stage.records.get(trial)
    try:
        return (
            pictures.read(stage.folder.picture_path(trial, record.attempt))
            if record and record.checkpoint
            else None
        )
    except OSError:
        # Not every kept trial has a picture, the janitor may just have removed it, and a damaged
        # one must not break the page.
        return None
