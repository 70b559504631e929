"""Which hyperparameters explain most of the trials' ranks.

There is a quick measure to choose axes by, and scikit-learn's permutation importance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from common.search.space import Space
from master.figures.names import FIGURE_TITLES
from master.figures.scales import scales
from master.figures.style import BLUE, empty, frame, safe

TITLE = FIGURE_TITLES["importance"]
BINS = 8  # with equal numbers of trials; enough to see a peak
LEAST_TRIALS = 30  # below this a random forest says nothing
FEW_TRIALS = 100  # below this the figure has a caution
WEAK_FIT = 0.3  # out-of-bag R squared below which the forest explains too little to rely on
MOST_TRIALS = 2000  # to train a forest on; more change nothing visible, and take seconds
TREES = 60
LEAF = 3  # minimum number of trials in a leaf, so that single lucky trials make no branch
REPEATS = 5


def telling(trials: pd.DataFrame, ranges: Mapping[str, Space], n: int = 2) -> list[str]:
    """Return the ``n`` hyperparameters that explain most of the variance of the trials' ranks.

    The variance is compared between bins of each hyperparameter. The first explains most.
    """
    names, features = _features(trials, ranges)
    score = _score(trials)
    explained = [_compute_share(column, score) for column in features.T]
    return (
        [names[place] for place in np.argsort(-np.array(explained), kind="stable")[:n]]
        if names
        else []
    )


def importance(trials: pd.DataFrame, ranges: Mapping[str, Space], seed: int = 0) -> go.Figure:
    """Draw how much worse a random forest predicts the ranks when one hyperparameter is shuffled.

    Args:
        trials: See ``table``. Killed and failed ones are left out, exploded ones rank last.
        ranges: What each stage sampled.
        seed: The seed of the forest.

    Source: Breiman, "Random Forests", Machine Learning 45 (2001), section 10; scikit-learn's
    ``permutation_importance``.
    """
    told = trials[trials["state"].isin(["completed", "stopped", "exploded"])]
    names, features = _features(told, ranges)
    if not names:
        return empty(TITLE, "These stages sample nothing: all values are fixed.")
    if len(told) < LEAST_TRIALS:
        return empty(
            TITLE, f"{len(told)} trials are too few for this; at least {LEAST_TRIALS} are needed."
        )
    means, deviations, fit = _forest(features, _score(told), seed)
    order = np.argsort(means)
    note = (
        f"Drop in R\u00b2 of a forest on the ranks of {len(told):,} trials "
        f"(out of bag: {fit:.2f}). {_caution(len(told), fit)}"
    ).strip()
    figure = frame(go.Figure(), TITLE, note, 150 + 34 * len(names))
    figure.add_bar(
        x=means[order],
        y=[safe(names[place]) for place in order],
        orientation="h",
        marker_color=BLUE,
        error_x={"type": "data", "array": deviations[order], "color": "#222222", "thickness": 1.2},
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        name="importance",
    )
    figure.update_layout(bargap=0.35, showlegend=False)
    figure.update_xaxes(title_text="importance (drop in R\u00b2)", rangemode="tozero")
    figure.update_yaxes(showgrid=False)
    return figure


def _caution(n: int, fit: float) -> str:
    if fit < WEAK_FIT:
        return "Caution: the forest explains little, so do not rely on this."
    return "Caution: few trials, so small bars mean nothing." if n < FEW_TRIALS else ""


def _features(
    trials: pd.DataFrame, ranges: Mapping[str, Space]
) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return the names and positions of the hyperparameters that vary.

    The positions are (n, names) in [0, 1]. A missing value lies in the middle.
    """
    varied = [
        (scale.name, scale.unit(trials)) for scale in scales(ranges) if f"hp.{scale.name}" in trials
    ]
    columns = [(name, np.nan_to_num(column, nan=0.5)) for name, column in varied]
    told = [
        (name, column) for name, column in columns if len(column) and column.max() > column.min()
    ]
    return [name for name, _ in told], np.column_stack(
        [column for _, column in told]
    ) if told else np.empty((len(trials), 0))


def _score(trials: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Return a score of each trial by its rank, (n,): 1 for the best, 0 for the last.

    Ranks are used because a few extreme values of a metric would dominate.
    """
    score = 1 - (trials["standing"].rank() - 1) / max(1, len(trials) - 1)
    exploded = ~trials["good"]
    return np.where(
        exploded, score.where(exploded).mean() if exploded.any() else 0.0, score
    ).astype(float)


def _compute_share(values: np.ndarray[Any, Any], score: np.ndarray[Any, Any]) -> float:
    """Return the share of the score's variance that lies between bins of the values.

    This is the correlation ratio.
    """
    total = float(((score - score.mean()) ** 2).sum())
    if not total:
        return 0.0
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, values, side="right")
    groups = [score[bins == number] for number in np.unique(bins)]
    return float(sum(len(group) * (group.mean() - score.mean()) ** 2 for group in groups)) / total


def _forest(
    features: np.ndarray[Any, Any], score: np.ndarray[Any, Any], seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float]:
    """Return means and deviations of the importance, and the out-of-bag R squared.

    scikit-learn is imported here because that takes most of a second.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    kept = np.linspace(0, len(score) - 1, min(len(score), MOST_TRIALS)).astype(int)
    forest = RandomForestRegressor(
        TREES, min_samples_leaf=LEAF, oob_score=True, random_state=seed, n_jobs=1
    )
    forest.fit(features[kept], score[kept])
    found = permutation_importance(
        forest, features[kept], score[kept], n_repeats=REPEATS, random_state=seed, n_jobs=1
    )
    return np.maximum(found.importances_mean, 0.0), found.importances_std, float(forest.oob_score_)
