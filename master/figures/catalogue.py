"""All figures by name, drawn from what is known of a stage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import plotly.graph_objects as go

from common.search.space import Space
from master.figures.curves import accuracies, choose_trials, losses, ratios
from master.figures.hyperparameters import hyperparameters
from master.figures.inside import histograms, weights
from master.figures.names import FIGURE_TITLES
from master.figures.outcomes import outcomes
from master.figures.parallel import parallel
from master.figures.progress import best_so_far
from master.figures.rungs import rungs
from master.figures.style import empty
from master.figures.telling import importance, telling
from master.figures.timeline import timeline

NARROW_COLUMNS, WIDE_COLUMNS = 1, 2  # columns of panels: on a phone, on a screen
# Number of best trials that are searched for a picture. Kept trials have one, and 50 are kept by
# default.
LOOKED_AT = 50
OF_ALL = ("importance",)  # figures of all trials, also if only some match


@dataclass(frozen=True)
class Material:
    """The data that the figures of a stage are made from.

    Attributes:
        stage: The name of the stage.
        trials: The trials of the stage.
        history: The trials of this stage and of those before it.
        attempts: All records of the same stages, also those of shorter budgets and of lost
            attempts, see ``with_shares``.
        ranges: What the stages up to this one sampled, in order.
        following: The same, with the ranges proposed for the next stage.
        picture: Returns the first layer's weights of a trial as a PNG, given its name. None if it
            has none.
        matching: The names of the trials to draw. None for all.
    """

    stage: str
    trials: pd.DataFrame
    history: pd.DataFrame
    attempts: pd.DataFrame
    ranges: Mapping[str, Space]
    following: Mapping[str, Space]
    picture: Callable[[str], bytes | None] = lambda trial: None
    matching: Collection[str] | None = None

    @property
    def sampled(self) -> dict[str, Space]:
        """The ranges of the stages that sample, up to this one."""
        return {stage: space for stage, space in self.ranges.items() if space.sampled}

    @property
    def selected(self) -> Material:
        """The material without the trials that do not match."""
        if self.matching is None:
            return self
        tables = (self.trials, self.history, self.attempts)
        trials, history, attempts = (one[one["trial"].isin(self.matching)] for one in tables)
        return replace(self, trials=trials, history=history, attempts=attempts)


Drawer = Callable[[Material, Sequence[str], int], go.Figure]


def draw(
    name: str, material: Material, trials: Sequence[str] = (), columns: int = WIDE_COLUMNS
) -> go.Figure:
    """Draw one figure.

    Args:
        name: A key of ``names.FIGURES``.
        material: The data of the stage.
        trials: The names of the trials to show, in a figure that shows chosen ones. If empty, the
            figure chooses.
        columns: The number of panels side by side, in a figure that has several.

    Raises:
        KeyError: There is no figure of that name.
    """
    if material.matching is not None and name not in (*OF_ALL, "parallel"):
        chosen = material.selected
        if not len(chosen.history):
            return empty(FIGURE_TITLES[name], "No trial matches the filter.")
        if name == "outcomes":  # the axes stay when the filter changes
            axes = telling(material.history, material.sampled)
            return outcomes(chosen.history, material.sampled, axes)
        material = chosen
    return _DRAWERS[name](material, trials, columns)


def _weights(material: Material, trials: Sequence[str]) -> go.Figure:
    best = material.trials[material.trials["good"]].sort_values("rank")["trial"].head(LOOKED_AT)
    for name in trials or best:
        picture = material.picture(name)
        if picture is not None:
            return weights(picture, name)
    return weights(None)


_DRAWERS: dict[str, Drawer] = {
    "hyperparameters": lambda m, _, columns: hyperparameters(m.history, m.following, columns),
    "rungs": lambda m, *_: rungs(m.history),
    "parallel": lambda m, *_: parallel(m.history, m.sampled, m.matching),
    "importance": lambda m, *_: importance(m.history, m.sampled),
    "outcomes": lambda m, *_: outcomes(m.history, m.sampled),
    "losses": lambda m, trials, _: losses(m.trials, trials or choose_trials(m.trials)),
    "accuracies": lambda m, trials, _: accuracies(m.trials, trials or choose_trials(m.trials)),
    "ratios": lambda m, trials, _: ratios(m.trials, trials),
    "histograms": lambda m, trials, columns: histograms(
        m.trials, trials[0] if trials else None, columns
    ),
    "weights": lambda m, trials, _: _weights(m, trials),
    "progress": lambda m, _, columns: best_so_far(m.attempts, columns),
    "timeline": lambda m, *_: timeline(m.attempts),
}
