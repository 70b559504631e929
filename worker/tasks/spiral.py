"""Three arms of a spiral in the plane: a made data set that no linear model can tell apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from common.space import Scalar
from worker.tasks.base import Data, Part
from worker.tasks.models import perceptron

N_CLASSES = 3
TRAIN_PER_CLASS = 100  # as in the notes
VAL_PER_CLASS = 100
TEST_PER_CLASS = 200
SEEDS = {"train": 231, "val": 232, "test": 233}  # fixed for ever: other values would draw other points
TURN = 4.0  # radians that an arm covers, and from the start of one to the start of the next
NOISE = 0.2  # standard deviation of the angle, radians


class Spiral:
    """The built-in task: 300 points to train on, 300 to validate, 600 to test; a perceptron of two inputs.

    Source: CS231n notes, "Putting it together: Minimal Neural Network Case Study".
    """

    def data(self) -> Data:
        """The three parts, each drawn by a seed of its own; coordinates lie in [-1, 1]."""
        sizes = {"train": TRAIN_PER_CLASS, "val": VAL_PER_CLASS, "test": TEST_PER_CLASS}
        train, val, test = (spiral(n, SEEDS[name]) for name, n in sizes.items())
        return Data(train, val, test, n_classes=N_CLASSES)

    def model(self, hp: Mapping[str, Scalar]) -> nn.Module:
        """A perceptron; see ``worker.tasks.models``.

        Raises:
            TaskError: a hyperparameter that no perceptron has.
        """
        return perceptron(hp, 2, N_CLASSES)


def spiral(n_per_class: int, seed: int) -> Part:
    """Points (3 n, 2) on three arms, those of class 0 first, at radii evenly spread from 1 / n to 1.

    Those of the notes begin at 0, where the arms meet: one point in three classes, and in every part.
    """
    generator = np.random.RandomState(seed)  # the one of numpy's generators whose numbers are promised never to change
    radius = np.linspace(1 / n_per_class, 1.0, n_per_class)
    points, labels = [], []
    for label in range(N_CLASSES):
        angle = np.linspace(label * TURN, (label + 1) * TURN, n_per_class) + generator.randn(n_per_class) * NOISE
        points.append(np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1))
        labels.append(np.full(n_per_class, label))
    return Part(torch.from_numpy(np.concatenate(points).astype(np.float32)), torch.from_numpy(np.concatenate(labels).astype(np.int64)))
