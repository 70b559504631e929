"""How far a loop's trial is, and whether a report is its last one.

This module only computes: no threads, no files, no Redis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from common.search.search_file import Search
from common.search.stage import TINY_LOSS, Stage, explosion_factor
from common.search.trial import TrialState
from worker.own.messages import Report
from worker.own.saved import unpacked
from worker.training.history.history import History

FORMAT = 2  # of a saved state; format 1 had no history
ROUNDING_EPOCHS = 1e-9


class Verdict(NamedTuple):
    """The trial is over: in this state, for this reason."""

    state: TrialState
    reason: str | None


@dataclass
class Standing:
    """The standing of one trial: its budget, progress, history and last state."""

    search: Search
    stage: Stage
    epochs: float  # the budget
    horizon: float = 0.0  # the longest budget that the trial may get; 0 means `epochs`
    epoch: float = 0.0
    firsts: dict[str, float] = field(default_factory=dict)  # first value of each curve
    # The state reported with the best epoch: frozen, perhaps packed.
    best_state: Any = None
    saved: dict[str, Any] | None = None  # the standing when a state was last reported

    def __post_init__(self) -> None:
        """Create the empty history."""
        self.history = History(self.search.metric, self.search.mode)

    def note(
        self, report: Report, seconds: float, n_classes: int | None, n_val: int | None
    ) -> Verdict | None:
        """Add a report.

        Args:
            report: the report of the loop.
            seconds: time since the last report.
            n_classes: number of classes, if the loop has set it.
            n_val: number of examples in the validation part, if the loop has set it.

        Returns:
            Why the trial is over, or None if it goes on.
        """
        self.history.epoch_seconds.append(seconds / (report.epoch - self.epoch))
        self.history.seconds += seconds
        self.epoch = report.epoch
        self.history.add_point(
            {"epoch": self.epoch, "seconds": self.history.seconds, **report.values}
        )
        self.firsts = {**report.values, **self.firsts}
        verdict = self._find_explosion(report.values)
        better = (
            verdict is None
            and math.isfinite(report.values.get(self.search.metric, math.nan))
            and self.history.note_metrics(report.epoch, report.values)
        )
        if better:
            self.best_state = report.state
        if report.state is not None:
            self.saved = self._snapshot(report.state)
        return verdict or self._find_stop(n_classes, n_val)

    @property
    def beyond(self) -> bool:
        """Whether the budget is used up."""
        return self.epoch >= self.epochs - ROUNDING_EPOCHS

    def content(self, trial_id: str) -> Callable[[], dict[str, Any]]:
        """Return a function that returns what a later attempt resumes from, as it is now.

        If the loop reported no state, that attempt starts again from epoch 0.
        """
        saved = self.saved
        return lambda: {
            "format": FORMAT,
            "trial": trial_id,
            "loop": None if saved is None else _unpack(saved),
        }

    def resume(self, content: dict[str, Any], trial_id: str) -> Any:
        """Restore what the function of ``content`` returned, and return the frozen state.

        The budget may have grown since.

        Raises:
            KeyError: a key is missing.
            ValueError: the content is of another trial, in another format, or beyond the budget.
        """
        if (content["format"], content["trial"]) != (FORMAT, trial_id):
            raise ValueError(f"it is of trial {content['trial']} in format {content['format']}")
        saved = content["loop"]
        if saved is None:
            return None
        if saved["epoch"] > self.epochs + ROUNDING_EPOCHS:
            raise ValueError(
                f"it has {saved['epoch']:g} epochs, more than its budget of {self.epochs:g}"
            )
        self.history.resume(saved["history"])
        self.epoch, self.firsts, self.best_state = (
            saved["epoch"],
            dict(saved["firsts"]),
            saved["best_state"],
        )
        self.saved = saved
        return saved["state"]

    def _snapshot(self, state: Any) -> dict[str, Any]:
        plain = {"epoch": self.epoch, "firsts": dict(self.firsts), "best_state": self.best_state}
        return {**plain, "history": self.history.state(), "state": state}

    def _find_explosion(self, values: dict[str, float]) -> Verdict | None:
        """Return a verdict if the loss has exceeded a multiple of its first value.

        The first value must be positive and not tiny. Also return a verdict if a loss or the metric
        is not finite. The search or the stage may switch off one of these or both.

        Source: CS231n notes, "Hyperparameter optimization".
        """
        metric, search = self.search.metric, self.search
        factor = explosion_factor(self.stage, search.explosion, search.explosion_factor)
        if factor is None:
            return None
        for name in ("train_loss", "val_loss", metric):
            if name in values and not math.isfinite(values[name]):
                return Verdict(
                    TrialState.EXPLODED,
                    f"{name} is not finite ({values[name]}) after {self.epoch:g} epochs",
                )
        names = ("train_loss", "val_loss", *((metric,) if self.search.mode == "min" else ()))
        watched = next((name for name in names if name in values), None)
        if watched is None:
            return None
        first = self.firsts[watched]
        if first > TINY_LOSS and values[watched] > factor * first:
            reason = (
                f"{watched} {values[watched]:.4g} above {factor:g} x its first value {first:.4g} "
                f"after {self.epoch:g} epochs"
            )
            return Verdict(TrialState.EXPLODED, reason)
        return None

    def _find_stop(self, n_classes: int | None, n_val: int | None) -> Verdict | None:
        """Return a verdict if the stage's policy stops the trial.

        At the end of the longest budget there is none, since nothing is left to save.
        """
        if self.epoch >= max(self.horizon, self.epochs) - ROUNDING_EPOCHS:
            return None
        reason = self.history.find_stop_reason(self.stage, n_classes, n_val)
        return Verdict(TrialState.STOPPED, reason) if reason else None


def _unpack(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the saved standing with its states as values. Equal states stay one object."""
    state = unpacked(saved["state"])
    same = saved["best_state"] is saved["state"]
    return {
        **saved,
        "state": state,
        "best_state": state if same else unpacked(saved["best_state"]),
    }
