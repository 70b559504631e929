"""A spiral with three arms in the plane: a synthetic data set.

A linear model cannot separate the arms.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from common.search.values import Scalar
from worker.tasks.base import Data, Part
from worker.tasks.models import built_in, perceptron

N_CLASSES = 3
TRAIN_PER_CLASS = 100  # as in the CS231n notes
VAL_PER_CLASS = 100
TEST_PER_CLASS = 200
SEEDS = {"train": 231, "val": 232, "test": 233}  # never change them: the points depend on them
TURN = 4.0  # radians that an arm covers, and also the angle between the starts of two arms
NOISE = 0.2  # standard deviation of the angle, radians


class Spiral:
    """The built-in task ``spiral``: 300 training, 300 validation and 600 test points.

    Its model is a perceptron with two inputs.

    Source: CS231n notes, "Putting it together: Minimal Neural Network Case Study".
    """

    def data(self) -> Data:
        """Return the three parts, each drawn with its own seed. Coordinates are in [-1, 1]."""
        sizes = {"train": TRAIN_PER_CLASS, "val": VAL_PER_CLASS, "test": TEST_PER_CLASS}
        train, val, test = (spiral(n, SEEDS[name]) for name, n in sizes.items())
        return Data(train, val, test, n_classes=N_CLASSES)

    @built_in
    def model(self, hp: Mapping[str, Scalar]) -> nn.Module:
        """Return a perceptron; see ``worker.tasks.models``.

        Raises:
            TaskError: a hyperparameter has a value that a perceptron cannot have.
        """
        return perceptron(hp, 2, N_CLASSES)


def spiral(n_per_class: int, seed: int) -> Part:
    """Return points (3 n, 2) on three arms, those of class 0 first.

    The radii are evenly spaced from 1 / n to 1. In the notes they begin at 0, where the arms meet.
    Then one and the same point belongs to three classes, in each part.
    """
    # NumPy guarantees that the numbers of this generator never change.
    generator = np.random.RandomState(seed)
    radius = np.linspace(1 / n_per_class, 1.0, n_per_class)
    points, labels = [], []
    for label in range(N_CLASSES):
        angle = (
            np.linspace(label * TURN, (label + 1) * TURN, n_per_class)
            + generator.randn(n_per_class) * NOISE
        )
        points.append(np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1))
        labels.append(np.full(n_per_class, label))
    return Part(
        torch.from_numpy(np.concatenate(points).astype(np.float32)),
        torch.from_numpy(np.concatenate(labels).astype(np.int64)),
    )
