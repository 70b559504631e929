"""The names of weights files, which carry the value of the metric."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from common.trial import TRIAL_PATTERN

CHECKPOINT_PATTERN = re.compile(
    rf"(?P<metric>[a-z][a-z0-9_]*)=(?P<value>-?\d+\.\d{{4,12}})"
    rf"-trial=(?P<trial>{TRIAL_PATTERN.pattern})-epoch=(?P<epoch>\d{{3,9}})-try=(?P<attempt>\d{{1,9}})\.pt",
    re.ASCII,
)
PREDICTIONS_SUFFIX = ".npz"
MOST_NAMED = 1e15  # a metric of this size is beyond what four decimals of a double tell, and makes a name nobody reads
SMALLEST_NAMED = 1e-9  # anything smaller is named 0
PLAIN_NAMED = 1e-3  # from here on four decimals; below, four digits, since a small loss is told apart by them


@dataclass(frozen=True)
class CheckpointName:
    """What the name of a weights file says."""

    value: float  # the metric's, of the best epoch
    trial_id: str
    epoch: int  # the best epoch, a fraction rounded up
    attempt: int
    metric: str = "val_acc"

    def __str__(self) -> str:
        return f"{self.metric}={named(self.value)}-trial={self.trial_id}-epoch={self.epoch:03d}-try={self.attempt}.pt"

    @property
    def predictions(self) -> str:
        """The name of what these weights predict: the same but for its ending."""
        return str(self).removesuffix(".pt") + PREDICTIONS_SUFFIX

    @property
    def tried(self) -> tuple[str, int]:
        """Which attempt of which trial."""
        return self.trial_id, self.attempt

    @classmethod
    def parse(cls, name: str) -> CheckpointName | None:
        """Reads a file name; None if it is not a checkpoint's."""
        match = CHECKPOINT_PATTERN.fullmatch(name)
        if not match:
            return None
        return cls(float(match["value"]), match["trial"], int(match["epoch"]), int(match["attempt"]), match["metric"])

    @classmethod
    def parse_predictions(cls, name: str) -> CheckpointName | None:
        """The weights that a file of predictions belongs to; None if the name is not one's."""
        return cls.parse(name.removesuffix(PREDICTIONS_SUFFIX) + ".pt") if name.endswith(PREDICTIONS_SUFFIX) else None


def named(value: float) -> str:
    """A metric's value as file names have it: four decimals, and four digits of what is smaller than those show."""
    if abs(value) < SMALLEST_NAMED:
        return f"{0:.4f}"
    rounded = float(f"{value:.3e}") if abs(value) < PLAIN_NAMED else value
    decimals = 4 if abs(rounded) >= PLAIN_NAMED else 3 - int(f"{rounded:e}".partition("e")[2])
    return f"{rounded:.{decimals}f}"


def epoch_number(epochs: float) -> int:
    """Epochs for a file name: a fraction rounded up, so that half an epoch is ``epoch=001``."""
    return math.ceil(epochs - 1e-9)
