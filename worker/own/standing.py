"""How far a loop's trial is: its curves, its best epoch, and whether a report is the last one. Values in, verdicts out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from common.search import Search, Stage
from common.trial import TrialState
from worker.own.trial import Report
from worker.training.interface import Curves
from worker.training.policy import at_chance, no_progress

FORMAT = 1
ROUNDING_EPOCHS = 1e-9
PLAIN = ("epoch", "seconds", "paces", "firsts")


class Verdict(NamedTuple):
    """The trial is over."""

    state: TrialState
    reason: str | None


@dataclass(frozen=True)
class Best:
    """The best epoch so far, by the search's metric, then validation loss."""

    value: float
    epoch: float
    values: dict[str, float]
    state: Any  # frozen

    @property
    def val_loss(self) -> float:
        """Infinite where none was reported: it then loses every tie."""
        loss = self.values.get("val_loss", math.inf)
        return loss if math.isfinite(loss) else math.inf


@dataclass
class Standing:
    """Of one trial."""

    search: Search
    stage: Stage
    epochs: float  # the budget
    epoch: float = 0.0
    seconds: float = 0.0
    paces: list[float] = field(default_factory=list)  # seconds an epoch, one a report
    firsts: dict[str, float] = field(default_factory=dict)  # first value of each curve
    curves: Curves = field(default_factory=lambda: {"epoch": [], "seconds": []})
    best: Best | None = None
    saved: dict[str, Any] | None = None  # all of this as it was when a state was given last

    def note(self, report: Report, seconds: float, n_classes: int | None, n_val: int | None) -> Verdict | None:
        """Takes in a report.

        Args:
            report: what the loop said.
            seconds: since the last report.
            n_classes: where the loop has said it.
            n_val: examples in its validation part, where it has said it.

        Returns:
            Why the trial is over, None if it goes on.
        """
        self.paces.append(seconds / (report.epoch - self.epoch))
        self.epoch, self.seconds = report.epoch, self.seconds + seconds
        self._extend(report.values)
        verdict = self._exploded(report.values)
        if verdict is None:
            self._compare(report)
        if report.state is not None:
            self.saved = self._snapshot(report.state)
        return verdict or self._stopped(n_classes, n_val)

    @property
    def beyond(self) -> bool:
        """Whether the budget is used up."""
        return self.epoch >= self.epochs - ROUNDING_EPOCHS

    @property
    def epoch_s(self) -> float | None:
        """Median seconds of an epoch, the first left out."""
        return median(self.paces[1:]) if len(self.paces) > 1 else None

    @property
    def last_epoch_s(self) -> float | None:
        """Seconds of the last epoch, the first left out."""
        return self.paces[-1] if len(self.paces) > 1 else None

    def content(self, trial_id: str) -> dict[str, Any]:
        """What a later attempt resumes from; without a state it begins anew."""
        return {"format": FORMAT, "trial": trial_id, "loop": self.saved}

    def resume(self, content: dict[str, Any], trial_id: str) -> Any:
        """The inverse of ``content``, into this; returns the state, frozen.

        Raises:
            KeyError: something is missing.
            ValueError: it is another trial's, or of another format.
        """
        if (content["format"], content["trial"]) != (FORMAT, trial_id):
            raise ValueError(f"it is of trial {content['trial']} in format {content['format']}")
        saved = content["loop"]
        if saved is None:
            return None
        for name in PLAIN:
            setattr(self, name, saved[name])
        self.curves = {name: list(values) for name, values in saved["curves"].items()}
        self.best = Best(**saved["best"]) if saved["best"] else None
        self.saved = saved
        return saved["state"]

    def _snapshot(self, state: Any) -> dict[str, Any]:
        curves = {name: list(values) for name, values in self.curves.items()}
        best = vars(self.best) if self.best else None
        plain = {"epoch": self.epoch, "seconds": self.seconds, "paces": list(self.paces), "firsts": dict(self.firsts)}
        return {**plain, "curves": curves, "best": best, "state": state}

    def _extend(self, values: dict[str, float]) -> None:
        n_points = len(self.curves["epoch"])
        point: dict[str, float] = {"epoch": self.epoch, "seconds": self.seconds, **values}
        for name in {**self.curves, **point}:
            self.curves.setdefault(name, [None] * n_points).append(point.get(name))
        for name, value in values.items():
            self.firsts.setdefault(name, value)

    def _compare(self, report: Report) -> None:
        value = report.values.get(self.search.metric)
        if value is None:
            return
        new = Best(value, report.epoch, dict(report.values), report.state)
        if self.best is None or self._rank(new) < self._rank(self.best):
            self.best = new

    def _rank(self, best: Best) -> tuple[float, float]:
        return (best.value if self.search.mode == "min" else -best.value), best.val_loss

    def _exploded(self, values: dict[str, float]) -> Verdict | None:
        """As the notes say: leave when the loss has passed a multiple of its first value.

        Source: CS231n notes, "Hyperparameter optimization".
        """
        metric = self.search.metric
        for name in ("train_loss", "val_loss", metric):
            if name in values and not math.isfinite(values[name]):
                return Verdict(TrialState.EXPLODED, f"{name} is not finite ({values[name]}) after {self.epoch:g} epochs")
        names = ("train_loss", "val_loss", *((metric,) if self.search.mode == "min" else ()))
        watched = next((name for name in names if name in values), None)
        if watched is None:
            return None
        first, factor = self.firsts[watched], self.search.explosion_factor
        if first > 0 and values[watched] > factor * first:  # a multiple of what is negative says nothing
            reason = f"{watched} {values[watched]:.4g} above {factor:g} x its first value {first:.4g} after {self.epoch:g} epochs"
            return Verdict(TrialState.EXPLODED, reason)
        return None

    def _stopped(self, n_classes: int | None, n_val: int | None) -> Verdict | None:
        """By the stage's policy; not at the end of the budget, where there is nothing left to save."""
        if self.beyond:
            return None
        epochs = [epoch for epoch in self.curves["epoch"] if epoch is not None]
        reason = None
        if self.stage.patience is not None:
            reason = no_progress(self.curves.get(self.search.metric, [None] * len(epochs)), epochs, self.search.mode, self.stage.patience)
        if reason is None and self.stage.chance_epochs is not None and n_classes is not None and n_val is not None:
            reason = at_chance(
                self.curves.get("val_acc", []),
                self.curves.get("val_loss", []),
                epochs,
                grace=self.stage.chance_epochs,
                n_classes=n_classes,
                n_examples=n_val,
            )
        return Verdict(TrialState.STOPPED, reason) if reason else None
