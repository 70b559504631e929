"""Each figure by its name, from what is known of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from common.space import Space
from master.figures.curves import accuracies, chosen, losses, ratios
from master.figures.inside import histograms, weights
from master.figures.narrowing import hyperparameters
from master.figures.outcomes import outcomes
from master.figures.parallel import parallel
from master.figures.progress import best_so_far
from master.figures.telling import importance
from master.figures.timeline import timeline

NARROW_COLUMNS, WIDE_COLUMNS = 1, 2  # of panels: on a phone, on a screen
LOOKED_AT = 50  # of the best trials, for a picture: kept ones have it, and 50 are kept by default


@dataclass(frozen=True)
class Material:
    """What the figures of a stage are made from.

    ``trials``: of the stage; ``history``: of this stage and those before it; ``attempts``: all records of the stage, of superseded attempts
    too; ``ranges``: what the stages up to this one sampled, in order; ``following``: the same and the ranges proposed for the next one;
    ``picture``: of a trial by its name, its first layer's weights as a PNG, None if it has none.
    """

    stage: str
    trials: pd.DataFrame
    history: pd.DataFrame
    attempts: pd.DataFrame
    ranges: Mapping[str, Space]
    following: Mapping[str, Space]
    picture: Callable[[str], bytes | None] = lambda trial: None

    @property
    def own(self) -> dict[str, Space]:
        """The stage's ranges alone."""
        return {self.stage: self.ranges[self.stage]} if self.stage in self.ranges else {}


Drawer = Callable[[Material, Sequence[str], int], go.Figure]


def draw(name: str, material: Material, trials: Sequence[str] = (), columns: int = WIDE_COLUMNS) -> go.Figure:
    """One figure.

    Args:
        name: in ``names.FIGURES``.
        material: of the stage.
        trials: names of those to show, where a figure shows chosen ones; without any it chooses.
        columns: of panels side by side, where a figure has several.

    Raises:
        KeyError: no figure of that name.
    """
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
    "parallel": lambda m, *_: parallel(m.trials, m.own),
    "importance": lambda m, *_: importance(m.trials, m.own),
    "outcomes": lambda m, *_: outcomes(m.trials, m.own),
    "losses": lambda m, trials, _: losses(m.trials, trials or chosen(m.trials)),
    "accuracies": lambda m, trials, _: accuracies(m.trials, trials or chosen(m.trials)),
    "ratios": lambda m, trials, _: ratios(m.trials, trials),
    "histograms": lambda m, trials, columns: histograms(m.trials, trials[0] if trials else None, columns),
    "weights": lambda m, trials, _: _weights(m, trials),
    "progress": lambda m, _, columns: best_so_far(m.trials, columns),
    "timeline": lambda m, *_: timeline(m.attempts),
}
