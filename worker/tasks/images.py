"""What the built-in image tasks have in common: images laid flat, and a choice of models for them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from common.errors import TaskError
from common.space import Scalar
from worker.tasks.base import Part
from worker.tasks.models import convnet, perceptron

FULL = 255  # the brightest pixel of a byte


def image_model(hp: Mapping[str, Scalar], shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """The model that ``hp`` asks for (``model``: perceptron or convnet) for images (n, channels x height x width) laid flat.

    Raises:
        TaskError: a hyperparameter that it cannot have.
    """
    kind = hp.get("model", "perceptron")
    if kind == "perceptron":
        return perceptron(hp, math.prod(shape), n_classes)
    if kind != "convnet":
        raise TaskError(f"model = {kind!r}: use one of perceptron, convnet; correct [space]")
    if (done := hp.get("preprocess")) in ("pca", "whiten"):
        raise TaskError(
            f'preprocess = {done!r}: its outputs are no images, which a convnet needs; use "centre" or "normalise", or model = "perceptron"'
        )
    return nn.Sequential(nn.Unflatten(1, shape), *convnet(hp, shape, n_classes))


def image_part(pixels: np.ndarray, labels: np.ndarray) -> Part:
    """A part from bytes (n, ...), laid flat and scaled to [0, 1], and class numbers (n,)."""
    inputs = torch.from_numpy(pixels.reshape(len(pixels), -1).astype(np.float32)).div_(FULL)
    return Part(inputs, torch.from_numpy(labels.astype(np.int64)))
