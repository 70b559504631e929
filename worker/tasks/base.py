"""What a task is: data, a model for a configuration, and nothing about how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from common.errors import TaskError
from common.space import Scalar


@dataclass(frozen=True)
class Part:
    """One part of the data."""

    inputs: Tensor  # (n, ...); floating types take the precision that is trained in
    targets: Tensor  # (n,) int64, class numbers from 0

    def __post_init__(self) -> None:
        """Raises TaskError where the parts do not fit together."""
        for name, value in (("inputs", self.inputs), ("targets", self.targets)):
            if not isinstance(value, Tensor):
                raise TaskError(f"a Part's {name} are a {type(value).__name__}, not a torch.Tensor; convert them in data()")
        if self.targets.dtype != torch.int64 or self.targets.ndim != 1:
            raise TaskError(
                f"targets are {self.targets.dtype} of shape {tuple(self.targets.shape)}; (n,) class numbers as int64 are needed"
            )
        if len(self.inputs) != len(self.targets) or not len(self.targets):
            raise TaskError(
                f"a Part has {len(self.inputs)} inputs and {len(self.targets)} targets; as many of each are needed, at least one"
            )

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Data:
    """All parts. The search looks at ``train`` and ``val`` alone; ``test`` is for the selected model, at the very end."""

    train: Part
    val: Part
    test: Part | None
    n_classes: int

    def __post_init__(self) -> None:
        """Raises TaskError where a target is no class."""
        for name, part in (("train", self.train), ("val", self.val), ("test", self.test)):
            if part is not None and not 0 <= int(part.targets.min()) <= int(part.targets.max()) < self.n_classes:
                low, high = int(part.targets.min()), int(part.targets.max())
                raise TaskError(
                    f"{name} targets run from {low} to {high}; with n_classes = {self.n_classes} they lie in 0 to {self.n_classes - 1}"
                )


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
