"""The tasks of the benchmark that are not built in, written as a user would.

`Table` is generated: 20,000 examples of 64 normal numbers, ten classes. The first 16 numbers pass
through a fixed random network (16-24-10, tanh). The label is the index of the largest of its ten
outputs plus noise. The other 48 numbers are irrelevant. That network itself would be right on
95.8 % of the examples. Networks that are trained on 16,000 reach about 78 %: they have to find out
which inputs matter, and they overfit.
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from worker.tasks import Data, Part
from worker.tasks.mnist import read_pair
from worker.tasks.models import perceptron

# Environment variable: the folder with the two files of MNIST's test set.
MNIST_FOLDER = "MNIST_PART"
SPLIT_SEED = 20  # fixed, so that every process has the same split
PIXELS, BRIGHTEST, N_CLASSES = 784, 255, 10
EXAMPLES, COLUMNS, MEANINGFUL, TEACHER = 20_000, 64, 16, 24
SLOPE = 0.8  # standard deviation of the inputs of tanh: curved, but not saturated
NOISE = 0.05  # standard deviation of the noise added to the teacher's outputs (their own: 1)


def split(inputs, targets, n_val, n_test):
    """Shuffle inputs (n, d) and targets (n,), and split them into Data.

    The last examples are for validation and test.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(targets))
    inputs = torch.from_numpy(inputs[order].astype(np.float32))
    targets = torch.from_numpy(targets[order].astype(np.int64))
    sizes = [len(targets) - n_val - n_test, n_val, n_test]
    parts = zip(inputs.split(sizes), targets.split(sizes), strict=True)
    train, val, test = (Part(x, y) for x, y in parts)
    return Data(train, val, test, n_classes=N_CLASSES)


class MnistPart:
    """MNIST's 10,000 test images: 8,000 for training, 1,000 for validation, 1,000 for test."""

    preprocess = "centre"

    def data(self):
        """Return the flattened images, with pixels in [0, 1]."""
        folder = Path(os.environ[MNIST_FOLDER])
        names = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
        images, labels = read_pair(*(folder / name for name in names))
        return split(
            images.reshape(-1, PIXELS).astype(np.float32) / BRIGHTEST, labels, 1_000, 1_000
        )

    def model(self, hp):
        """Return a perceptron 784-256-256-10."""
        return perceptron(hp, PIXELS, N_CLASSES)


class Table:
    """The generated table, 20,000 x 64: 16,000 for training, 2,000 for validation and test each."""

    preprocess = "normalise"

    def data(self):
        """Return the table, the same in every process."""
        rng = np.random.default_rng(20_064)
        inputs = rng.normal(size=(EXAMPLES, COLUMNS))
        first = rng.normal(size=(MEANINGFUL, TEACHER)) * SLOPE / MEANINGFUL**0.5
        second = rng.normal(size=(TEACHER, N_CLASSES))
        outputs = np.tanh(inputs[:, :MEANINGFUL] @ first) @ second
        outputs = (outputs - outputs.mean(0)) / outputs.std(0)
        labels = (outputs + NOISE * rng.normal(size=outputs.shape)).argmax(1)
        return split(inputs, labels, 2_000, 2_000)

    def model(self, hp) -> nn.Module:
        """Return a perceptron with two hidden layers."""
        return perceptron(hp, COLUMNS, N_CLASSES)
