"""Handwritten digits: 1,797 real images of 8x8 pixels from scikit-learn, and models for them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from common.space import Scalar
from worker.tasks.base import Data, Part
from worker.tasks.images import image_model

SPLIT_SEED = 231  # fixed for ever: another value would move images between the parts
VAL_SHARE = TEST_SHARE = 0.2
SHAPE = (1, 8, 8)
BRIGHTEST = 16  # of a pixel
N_CLASSES = 10


class Digits:
    """The built-in task: 1,077 images to train on, 360 to validate, 360 to test. Models: see ``image_model``."""

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

        return Data(part(train), part(val), part(test), n_classes=N_CLASSES)

    def model(self, hp: Mapping[str, Scalar]) -> nn.Sequential:
        """See ``image_model``.

        Raises:
            TaskError: a hyperparameter that the model cannot have.
        """
        return image_model(hp, SHAPE, N_CLASSES)
