"""What a task is: data, a model for a configuration, and nothing about how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from common.space import Scalar


@dataclass(frozen=True)
class Part:
    """One part of the data."""

    inputs: Tensor  # (n, ...) of a floating type
    targets: Tensor  # (n,) int64, class numbers from 0

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Data:
    """All parts. The search looks at ``train`` and ``val`` alone; ``test`` is for the selected model, at the very end."""

    train: Part
    val: Part
    test: Part | None
    n_classes: int


class Task(Protocol):
    """What is trained. A user's own task is a class with these two methods and no constructor arguments."""

    def data(self) -> Data:
        """The data, the same in every process: splits are fixed, never drawn afresh."""
        ...

    def model(self, hp: Mapping[str, Scalar]) -> nn.Module:
        """A new model with initial weights for the configuration ``hp``: (n, ...) inputs to (n, n_classes) logits.

        The generator that ``torch`` draws initial weights from has been seeded for the trial.
        """
        ...
