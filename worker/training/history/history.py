"""The history of one trial, whatever trains it: curves, best epoch, seconds per epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from common.search.stage import Stage
from worker.training.history.stopping import at_chance, no_progress
from worker.training.types import Curves


@dataclass
class History:
    """The measurements of one trial.

    Args:
        metric: the search's, by which epochs are compared; then by a lower validation loss.
        mode: whether a high or a low value is better, "max" or "min".
        curves: one list per name, all of the same length. The curve "epoch" is their x axis.
        best_epoch: None before the first epoch.
        metrics: all measured metrics, at the best epoch.
        seconds: of training and evaluation so far.
        epoch_seconds: of each epoch.
    """

    metric: str
    mode: str
    curves: Curves = field(default_factory=lambda: {"epoch": [], "seconds": []})
    best_epoch: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    epoch_seconds: list[float] = field(default_factory=list)

    @property
    def value(self) -> float | None:
        """The search's metric at the best epoch."""
        return self.metrics.get(self.metric)

    @property
    def epoch_s(self) -> float | None:
        """Median seconds of an epoch. The first one is left out, since it includes warming up."""
        return median(self.epoch_seconds[1:]) if len(self.epoch_seconds) > 1 else None

    @property
    def last_epoch_s(self) -> float | None:
        """Seconds of the last epoch. The first one is left out."""
        return self.epoch_seconds[-1] if len(self.epoch_seconds) > 1 else None

    def add_point(self, point: Mapping[str, float | None]) -> None:
        """Append one value to every curve. A curve that the point does not name gets None."""
        n_before = len(self.curves["epoch"])
        for name, values in self.curves.items():
            values.append(point.get(name))
        for name in [name for name in point if name not in self.curves]:
            self.curves[name] = [*([None] * n_before), point[name]]

    def note_metrics(self, epoch: float, metrics: Mapping[str, float]) -> bool:
        """Compare an epoch with the best one. If it is better, keep it and return True."""
        if self.best_epoch is not None and self._key(metrics) <= self._key(self.metrics):
            return False
        self.best_epoch, self.metrics = epoch, dict(metrics)
        return True

    def collect_measurements(self) -> dict[str, Any]:
        """Return what it knows, by the names of ``Measurements``."""
        return {
            "metrics": dict(self.metrics),
            "value": self.value,
            "best_epoch": self.best_epoch,
            "curves": self.curves,
            "seconds": self.seconds,
            "epoch_s": self.epoch_s,
        }

    def _key(self, metrics: Mapping[str, float | None]) -> tuple[float, float]:
        """Return a key that is larger for a better epoch.

        Missing and non-finite values are the worst.
        """
        sign = 1 if self.mode == "max" else -1
        return _or_worst(metrics.get(self.metric), sign), _or_worst(metrics.get("val_loss"), -1)

    def find_stop_reason(
        self, stage: Stage, n_classes: int | None, n_val: int | None, chance: float | None = None
    ) -> str | None:
        """Return why the stage's policies end the trial now, or None to go on.

        Args:
            stage: its ``patience`` and ``chance_epochs``.
            n_classes: None if there are no classes.
            n_val: examples of the validation part, None if unknown.
            chance: the loss of guessing; None computes it from ``n_classes``.
        """
        epochs = [epoch for epoch in self.curves["epoch"] if epoch is not None]
        reason = None
        if stage.patience is not None:
            values = self.curves.get(self.metric, [None] * len(epochs))
            reason = no_progress(values, epochs, self.mode, stage.patience)
        if (
            reason is None
            and stage.chance_epochs is not None
            and n_classes is not None
            and n_val is not None
        ):
            reason = at_chance(
                self.curves.get("val_acc", []),
                self.curves.get("val_loss", []),
                epochs,
                grace=stage.chance_epochs,
                n_classes=n_classes,
                n_examples=n_val,
                chance=chance,
            )
        return reason

    def state(self) -> dict[str, Any]:
        """Return a copy as plain values, for a saved state."""
        return {
            "curves": {name: list(values) for name, values in self.curves.items()},
            "best": {"epoch": self.best_epoch, "metrics": dict(self.metrics)}
            if self.best_epoch is not None
            else None,
            "seconds": self.seconds,
            "epoch_seconds": list(self.epoch_seconds),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned.

        Raises:
            KeyError: a value is missing.
        """
        best = state["best"]
        self.curves = {name: list(values) for name, values in state["curves"].items()}
        self.best_epoch = best["epoch"] if best else None
        self.metrics = dict(best["metrics"]) if best else {}
        self.seconds = state["seconds"]
        self.epoch_seconds = list(state["epoch_seconds"])


def _or_worst(value: float | None, sign: int) -> float:
    return sign * value if value is not None and math.isfinite(value) else -math.inf
