"""What the built-in image tasks share: flattened images, and the choice of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from common.errors import TaskError
from common.search.values import Scalar
from worker.tasks.base import Part
from worker.tasks.models import convnet, perceptron

FULL = 255  # value of the brightest pixel


def image_model(
    hp: Mapping[str, Scalar], shape: tuple[int, int, int], n_classes: int
) -> nn.Sequential:
    """Return the model that ``hp["model"]`` names: perceptron or convnet.

    It takes flattened images (n, channels x height x width).

    Raises:
        TaskError: a hyperparameter has a value that the model cannot have.
    """
    kind = hp.get("model", "perceptron")
    if kind == "perceptron":
        return perceptron(hp, math.prod(shape), n_classes)
    if kind != "convnet":
        raise TaskError(f"model = {kind!r}: use one of perceptron, convnet; correct [space]")
    if (done := hp.get("preprocess")) in ("pca", "whiten"):
        raise TaskError(
            f"preprocess = {done!r}: its outputs are no images, which a convnet needs; use "
            '"centre" or "normalise", or model = "perceptron"'
        )
    return nn.Sequential(nn.Unflatten(1, shape), *convnet(hp, shape, n_classes))


def image_part(pixels: np.ndarray, labels: np.ndarray) -> Part:
    """Return a part with flattened inputs in [0, 1].

    Args:
        pixels: images as bytes, (n, ...).
        labels: class numbers, (n,).
    """
    inputs = torch.from_numpy(pixels.reshape(len(pixels), -1).astype(np.float32)).div_(FULL)
    return Part(inputs, torch.from_numpy(labels.astype(np.int64)))
