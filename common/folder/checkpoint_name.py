"""The names of weights files, which include the value of the metric."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from common.search.trial import TRIAL_PATTERN

CHECKPOINT_PATTERN = re.compile(
    rf"(?P<metric>[a-z][a-z0-9_]*)=(?P<value>-?\d+\.\d{{4,12}})"
    rf"-trial=(?P<trial>{TRIAL_PATTERN.pattern})"
    rf"-epoch=(?P<epoch>\d{{3,9}})-try=(?P<attempt>\d{{1,9}})\.pt",
    re.ASCII,
)
PREDICTIONS_SUFFIX = ".npz"
# A double cannot resolve four decimals of a larger metric, and its name would be unreadably long.
MOST_NAMED = 1e15
SMALLEST_NAMED = 1e-9  # anything smaller is named 0
# From this size on a name shows four decimals. Below it shows four digits, which tell small losses
# apart.
PLAIN_NAMED = 1e-3


@dataclass(frozen=True)
class CheckpointName:
    """The parts of a weights file's name."""

    value: float  # the metric at the best epoch
    trial_id: str
    epoch: int  # the best epoch; a fraction is rounded up
    attempt: int
    metric: str = "val_acc"

    def __str__(self) -> str:
        return (
            f"{self.metric}={format_value(self.value)}"
            f"-trial={self.trial_id}-epoch={self.epoch:03d}-try={self.attempt}.pt"
        )

    @property
    def predictions(self) -> str:
        """The name of the predictions of these weights: the same name with another ending."""
        return str(self).removesuffix(".pt") + PREDICTIONS_SUFFIX

    @property
    def tried(self) -> tuple[str, int]:
        """The trial's id and the attempt number."""
        return self.trial_id, self.attempt

    @classmethod
    def parse(cls, name: str) -> CheckpointName | None:
        """Parse a file name; return None if it is not that of a weights file."""
        match = CHECKPOINT_PATTERN.fullmatch(name)
        if not match:
            return None
        return cls(
            float(match["value"]),
            match["trial"],
            int(match["epoch"]),
            int(match["attempt"]),
            match["metric"],
        )

    @classmethod
    def parse_predictions(cls, name: str) -> CheckpointName | None:
        """Return the weights that a predictions file belongs to; None for any other file name."""
        return (
            cls.parse(name.removesuffix(PREDICTIONS_SUFFIX) + ".pt")
            if name.endswith(PREDICTIONS_SUFFIX)
            else None
        )


def format_value(value: float) -> str:
    """Format a metric's value for a file name: four decimals, or four digits if it is smaller."""
    if abs(value) < SMALLEST_NAMED:
        return f"{0:.4f}"
    rounded = float(f"{value:.3e}") if abs(value) < PLAIN_NAMED else value
    decimals = 4 if abs(rounded) >= PLAIN_NAMED else 3 - int(f"{rounded:e}".partition("e")[2])
    return f"{rounded:.{decimals}f}"


def epoch_number(epochs: float) -> int:
    """Round epochs up for a file name, so that half an epoch is ``epoch=001``."""
    return math.ceil(epochs - 1e-9)
