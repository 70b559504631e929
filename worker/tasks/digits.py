"""Handwritten digits: 1,797 real images of 8x8 pixels from scikit-learn, and a perceptron for them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from common.errors import TaskError
from common.space import Scalar
from worker.tasks.base import Data, Part

SPLIT_SEED = 231  # fixed for ever: another value would move images between the parts
VAL_SHARE = TEST_SHARE = 0.2
SHAPE = (1, 8, 8)
BRIGHTEST = 16  # of a pixel
DEFAULTS: dict[str, Scalar] = {"hidden": 64, "depth": 2, "dropout": 0.0}


class Digits:
    """The built-in task. Hyperparameters: ``hidden`` (64), ``depth`` in hidden layers (2), ``dropout`` after each of them (0)."""

    image_shape = SHAPE
    preprocess = "normalise"

    def data(self) -> Data:
        """Stratified 60/20/20; inputs (n, 64), pixels in [0, 1]."""
        images, labels = load_digits(return_X_y=True)
        rest, test = train_test_split(np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED)
        share = VAL_SHARE / (1 - TEST_SHARE)
        train, val = train_test_split(rest, test_size=share, stratify=labels[rest], random_state=SPLIT_SEED)

        def part(rows: np.ndarray) -> Part:
            inputs = torch.from_numpy((images[rows] / BRIGHTEST).astype(np.float32))
            return Part(inputs, torch.from_numpy(labels[rows].astype(np.int64)))

        return Data(part(train), part(val), part(test), n_classes=10)

    def model(self, hp: Mapping[str, Scalar]) -> nn.Sequential:
        """A multilayer perceptron with ReLU and He's initial weights.

        Raises:
            TaskError: a width, depth or rate that no perceptron has.
        """
        hidden, depth = _whole(hp, "hidden", 1), _whole(hp, "depth", 0)
        rate = hp.get("dropout", DEFAULTS["dropout"])
        if isinstance(rate, str) or not 0 <= rate < 1:
            raise TaskError(f"dropout = {rate!r}: a rate lies in [0, 1); correct [space]")
        widths = [64, *[hidden] * depth]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [he_linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(float(rate))]
        return nn.Sequential(*layers, he_linear(widths[-1], 10))


def he_linear(fan_in: int, fan_out: int) -> nn.Linear:
    """A linear layer whose weights keep the variance of what passes through ReLUs; biases start at zero.

    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, equation 10.
    """
    layer = nn.Linear(fan_in, fan_out)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def _whole(hp: Mapping[str, Scalar], name: str, least: int) -> int:
    value = hp.get(name, DEFAULTS[name])
    if isinstance(value, bool | str) or int(value) != value or value < least:
        raise TaskError(f"{name} = {value!r}: the digits perceptron needs a whole number of at least {least}; correct [space]")
    return int(value)
