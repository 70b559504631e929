"""The figures of a stage as plotly's JSON, drawn from the records that the dashboard holds and kept until the ranking has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from common import pictures
from common.record import Record
from master.figures.catalogue import NARROW_COLUMNS, WIDE_COLUMNS, Material, draw
from master.figures.curves import BEST_CHOSEN
from master.figures.table import table
from master.material import PROPOSED, proposed
from master.serve.search_view import SearchView
from master.serve.stage_view import Ranked, StageView

WITH_CURVES = ("losses", "accuracies", "ratios", "histograms")  # need what the dashboard does not hold: they read chosen records again
REST = 5.0  # a figure is drawn again after so many times what drawing it took: a forest of 10,000 trials takes a while


@dataclass(frozen=True)
class Drawn:
    """A figure as it was drawn."""

    version: int
    json: str
    again_at: float  # monotonic


class Drawings:
    """Draws one figure at a time, so that several open pages do not take the machine from the search."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str, int], Drawn] = {}
        self._materials: dict[tuple[str, str], tuple[int, Material]] = {}
        self._mutex = threading.Lock()

    def figure(self, view: SearchView, stage: StageView, name: str, columns: int) -> str:
        """The figure of that name, as JSON.

        Args:
            view: the search.
            stage: of which at least one trial has ended.
            name: of the figure.
            columns: of panels side by side.

        Raises:
            SearchError: what the stage sampled cannot be read.
        """
        key = (str(view.search.id), stage.stage.name, name, WIDE_COLUMNS if columns > 1 else NARROW_COLUMNS)
        with self._mutex:
            kept, now = self._kept.get(key), time.monotonic()
            if kept is None or (kept.version != stage.ranked.version and now >= kept.again_at):
                kept = self._kept[key] = self._draw(view, stage, name, key[-1])
            return kept.json

    def _draw(self, view: SearchView, stage: StageView, name: str, columns: int) -> Drawn:
        began, ranked = time.monotonic(), stage.ranked
        chosen: list[Record] = _chosen(stage, ranked) if name in WITH_CURVES else []
        material = _material(view, stage, ranked, chosen) if chosen else self._light(view, stage, ranked)
        json = str(draw(name, material, _shown(name, chosen), columns).to_json())
        ended = time.monotonic()
        return Drawn(ranked.version, json, ended + REST * (ended - began))

    def _light(self, view: SearchView, stage: StageView, ranked: Ranked) -> Material:
        """From what is held; several figures of one version share it."""
        key = (str(view.search.id), stage.stage.name)
        version, material = self._materials.get(key, (-1, None))
        if material is None or version != ranked.version:
            material = _material(view, stage, ranked, [])
            self._materials[key] = ranked.version, material
        return material


def _material(view: SearchView, stage: StageView, ranked: Ranked, whole: Sequence[Record]) -> Material:
    """As ``master.material.gather``, without reading all records again."""
    full = {record.trial: record for record in whole}
    records = [full.get(record.trial, record) for record in ranked.records]
    until = view.stages[: view.stages.index(stage) + 1]
    ranges = {one.stage.name: space for one in until if (space := one.space()) is not None}
    following = proposed(view.search, view.folder, stage.stage, ranked.records) if stage.stage.name in ranges else None
    proposal = {PROPOSED.format(stage=following.stage.name): following.space} if following else {}
    return Material(
        stage=stage.stage.name,
        trials=table(records),
        history=table([*(record for one in until[:-1] for record in one.ranked.records), *records]),
        attempts=table([*ranked.superseded, *records]),
        ranges=ranges,
        following={name: space for name, space in ranges.items() if space.sampled} | proposal,
        picture=lambda trial: _picture(stage, trial),
    )


def _chosen(stage: StageView, ranked: Ranked) -> list[Record]:
    """The whole records of the best three, the median, the last that ended well, and one that exploded."""
    good = [row for row in ranked.rows if row["state"] in ("completed", "stopped") and row["value"] is not None]
    places = [*range(min(BEST_CHOSEN, len(good))), len(good) // 2, len(good) - 1] if good else []
    rows = [good[place] for place in places] + [row for row in ranked.rows if row["state"] == "exploded"][:1]
    names = {row["trial"]: row["attempt"] for row in rows}
    found = (stage.folder.record(trial, attempt) for trial, attempt in names.items())
    return [record for record in found if record is not None]


def _shown(name: str, chosen: Sequence[Record]) -> list[str]:
    """Those of the chosen trials that have what a figure shows; a figure that draws a line a layer shows the best alone."""
    if name == "histograms":
        return [record.trial for record in chosen if record.portrait is not None][:1]
    with_curves = [record.trial for record in chosen if record.curves]
    return with_curves[:1] if name == "ratios" else with_curves


def _picture(stage: StageView, trial: str) -> bytes | None:
    record = stage.records.get(trial)
    try:
        return pictures.read(stage.folder.picture_path(trial, record.attempt)) if record and record.checkpoint else None
    except OSError:
        return None  # not every kept trial has one, the janitor may have removed it a moment ago, and damage must not end a page
