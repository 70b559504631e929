"""A search that was launched, read from its folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import CheckpointError, ConfigError
from common.folder.chosen import Chosen, choose
from common.folder.record import Record, format_metric
from common.folder.records import SearchFolder, searches
from common.options import Shared
from common.search.values import Value
from master.export.ended import Ended
from master.report.plotting import draw_figure
from master.results import ranking
from master.scripting.frames import curves_frame, rank_trials, stages_frame, trials_frame

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


def load(path: str | os.PathLike[str]) -> Search:
    """Load a search from its folder. Nothing is read before it is asked for.

    Args:
        path: The folder, such as ``checkpoints/digits``; or the name of a search in the checkpoint
            root [CHECKPOINT_DIR; ./checkpoints].

    Raises:
        ConfigError: There is no such folder, or it holds no search. The message lists those
            there are.
        CheckpointError: The folder is damaged.
    """
    root = Path(os.environ.get("CHECKPOINT_DIR") or Shared().checkpoints)
    for place in (Path(path).absolute(), (root / path).absolute()):
        folder = SearchFolder(place.parent, place.name)
        if folder.launched:
            return Search(folder)
    raise ConfigError(_explain_nothing(Path(path), root))


@dataclass(frozen=True)
class BestTrial:
    """The best trial of a search.

    Attributes:
        trial: Its name, such as ``fine-0007``.
        stage: Its stage.
        hyperparameters: Its configuration.
        metric: The metric that the search ranks by.
        value: That metric, at the best epoch.
        metrics: All metrics at the best epoch.
        epochs: The epochs that it trained.
        checkpoint: The file of its weights; None if they are not in the folder now.
        diagnosis: Its diagnosis in a word; None if it has none.
    """

    trial: str
    stage: str
    hyperparameters: Mapping[str, Value]
    metric: str
    value: float
    metrics: Mapping[str, float]
    epochs: float
    checkpoint: Path | None
    diagnosis: str | None


class Search:
    """A search in its folder.

    Each call reads the folder anew and needs no Redis, so it may be called while the search runs.
    """

    def __init__(self, folder: SearchFolder) -> None:
        """Refer to the folder of a launched search.

        Raises:
            ConfigError: The name of the folder is not that of the search.
            CheckpointError: The folder is damaged.
        """
        self._folder = SearchFolder(folder.root.absolute(), folder.name)
        self.name = self._choose().search.name

    @property
    def path(self) -> Path:
        """The folder of the search."""
        return self._folder.path

    @property
    def stages(self) -> pd.DataFrame:
        """The stages in their order, launched or not.

        The index is the name. The columns are ``kind``, ``trials`` and ``epochs`` as planned,
        ``launched``, how many trials have ended in each state, and ``best`` and ``best_trial``.
        """
        chosen = self._choose()
        return stages_frame(chosen.search, chosen.folder, self._records(chosen))

    @property
    def best(self) -> BestTrial:
        """The best trial, the first that ``master rank`` shows.

        Raises:
            CheckpointError: No trial has ended well yet.
        """
        records = self._records(self._choose())
        best = ranking.best(records, 1)
        own = best[0] if best else None
        if own is None or own.measured is None:
            raise CheckpointError(
                f"search {self.name!r}: no trial has ended well yet "
                f"({len(records)} have ended); trials() shows how they ended"
            )
        (trial,) = rank_trials(best, self._folder)
        return BestTrial(
            own.trial,
            own.stage,
            dict(own.hyperparameters),
            own.metric,
            own.measured,
            _metrics(own),
            own.epochs,
            Path(trial.checkpoint) if trial.checkpoint is not None else None,
            own.diagnosis.word if own.diagnosis else None,
        )

    def trials(self, stage: str | None = None, *, curves: bool = False) -> pd.DataFrame:
        """Return the trials that have ended, best first; a frame without rows if there are none.

        The columns are those of ``master export``: rank, trial, stage, state, metrics, budget,
        parents, one for each hyperparameter, diagnosis, reason, attempt, checkpoint, worker,
        seconds, and when it ended; and tags and notes if any trial has them.

        Args:
            stage: Only this stage's trials, ranked among themselves.
            curves: Add the column ``curves``: in each row a data frame with a column for each
                curve, by epoch.

        Raises:
            ConfigError: There is no such stage.
        """
        return trials_frame(self._ranked(stage), curves)

    def curves(self, *trials: str) -> pd.DataFrame:
        """Return the curves, a row for each evaluation of each trial, and a column for each curve.

        Args:
            trials: Only these trials; without any, all that have ended.

        Raises:
            ConfigError: No trial of such a name has ended.
        """
        ended = {trial.record.trial: trial for trial in self._ranked(None)}
        for name in trials:
            if name not in ended:
                raise ConfigError(
                    f"{name!r}: no trial of that name has ended in search {self.name!r}; trials() "
                    "lists them"
                )
        return curves_frame([ended[name] for name in trials or ended])

    def plot(self, name: str, *trials: str, stage: str | None = None) -> go.Figure:
        """Draw a figure. A notebook shows a cell's last value, and ``.show()`` shows it anywhere.

        Args:
            name: A figure as ``master plot`` names them; a wrong name lists them all.
            trials: The trials to show, in a figure that shows chosen ones.
            stage: The stage; without it, that of the first trial that is named, or else the last
                one in which a trial has ended.

        Raises:
            ConfigError: There is no such figure, stage or trial.
            CheckpointError: No trial has ended.
        """
        chosen = self._choose()
        if stage is None:
            own = trials[0].rpartition("-")[0] if trials else ""
            stage = own or self._last_with_trials(chosen)
        return draw_figure(chosen, name, stage, trials, _warn)

    def __repr__(self) -> str:
        chosen = self._choose()
        records = self._records(chosen)
        best = ranking.best(records, 1)
        told = (
            f"; best {best[0].metric} {format_metric(best[0].measured)}, {best[0].trial}"
            if best
            else ""
        )
        stages = ", ".join(stage.name for stage in chosen.search.stages)
        return (
            f"search {self.name!r} in {self.path} (stages {stages}): {len(records)} trials have "
            f"ended{told}"
        )

    def _choose(self) -> Chosen:
        return choose(self._folder.root, None, self._folder.name, _warn)

    def _records(self, chosen: Chosen, stage: str | None = None) -> list[Record]:
        names = (
            [chosen.search.stage(stage).name] if stage else [s.name for s in chosen.search.stages]
        )
        return [record for name in names for record in chosen.folder.stage(name).records(_warn)]

    def _ranked(self, stage: str | None) -> list[Ended]:
        chosen = self._choose()
        return rank_trials(self._records(chosen, stage), chosen.folder)

    def _last_with_trials(self, chosen: Chosen) -> str | None:
        names = [stage.name for stage in reversed(chosen.search.stages)]
        return next((name for name in names if self._records(chosen, name)), None)


def _metrics(record: Record) -> dict[str, float]:
    shared = {"val_acc": record.val_acc, "val_loss": record.val_loss}
    return {name: value for name, value in shared.items() if value is not None} | record.metrics


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _explain_nothing(path: Path, root: Path) -> str:
    inside = path if path.is_dir() else root
    known = ", ".join(str(folder.path) for folder in searches(inside))
    there = f"load one of {known}" if known else "give the folder of a search that was launched"
    what = "holds no search (no search.toml)" if path.is_dir() else "no such folder"
    return f"{path}: {what}; {there}"
