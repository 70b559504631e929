"""The built-in models: a perceptron and a small convolutional net. ``common/practice.py`` says which hyperparameters they read.

Numbers (rates, slopes, scales of initial weights) leave the structure as it is, so that they never keep trials from training together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from statistics import NormalDist

import torch
from torch import nn

from common.errors import TaskError
from common.practice import CONVNET, PERCEPTRON
from common.space import Scalar
from worker.tasks.layers import GaussianDropout, Maxout

ENTRIES = {**PERCEPTRON, **CONVNET}
TANH_GAIN = 5 / 3  # keeps the variance through many tanh layers (torch.nn.init.calculate_gain)
TAIL, POINTS = 10.0, 4001  # of the integral over the normal distribution: nothing is left beyond ten deviations


class Choices:
    """A configuration as the models read it: with defaults, and refused where it is out of bounds."""

    def __init__(self, hp: Mapping[str, Scalar]) -> None:
        self._hp = hp

    def _value(self, name: str) -> Scalar:
        value = self._hp.get(name, ENTRIES[name].default)
        why = ENTRIES[name].refusal(value)
        if value is None or why is not None:
            raise TaskError(f"{name} = {value!r}: {why}; correct [space]")
        return value

    def number(self, name: str) -> float:
        """A number."""
        return float(self._value(name))

    def whole(self, name: str) -> int:
        """A whole number."""
        return int(self._value(name))

    def kind(self, name: str) -> str:
        """A word."""
        return str(self._value(name))

    def names(self, name: str) -> bool:
        """Whether the search says anything about ``name``."""
        return name in self._hp

    def switch(self, name: str) -> bool:
        """True or false."""
        return bool(self._value(name))

    @property
    def pieces(self) -> int:
        """Linear pieces of a hidden unit."""
        return self.whole("pieces") if self.kind("activation") == "maxout" else 1


ACTIVATIONS: dict[str, Callable[[Choices], nn.Module]] = {
    "relu": lambda chosen: nn.ReLU(),
    "leaky_relu": lambda chosen: nn.LeakyReLU(chosen.number("negative_slope")),
    "prelu": lambda chosen: nn.PReLU(init=chosen.number("negative_slope")),
    "elu": lambda chosen: nn.ELU(chosen.number("elu_alpha")),
    "gelu": lambda chosen: nn.GELU(),
    "sigmoid": lambda chosen: nn.Sigmoid(),
    "tanh": lambda chosen: nn.Tanh(),
    "maxout": lambda chosen: Maxout(chosen.pieces),
}
DROPOUTS: dict[str, Callable[[float], nn.Module]] = {"bernoulli": nn.Dropout, "gaussian": GaussianDropout}


def gain(activation: str, chosen: Choices) -> float:
    """By how much weights outweigh 1 / sqrt(inputs) so that the activation leaves the spread of what passes as it was.

    ELU and GELU are taken for ReLUs, which they resemble. Sigmoid's is 1, as torch has it.

    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, equations 10 and 14; ``torch.nn.init.calculate_gain``.
    """
    if activation in ("leaky_relu", "prelu"):
        return math.sqrt(2 / (1 + chosen.number("negative_slope") ** 2))
    if activation == "maxout":
        return 1 / math.sqrt(mean_square_of_largest(chosen.pieces))
    return {"sigmoid": 1.0, "tanh": TANH_GAIN}.get(activation, math.sqrt(2))


def mean_square_of_largest(n: int) -> float:
    """Of ``n`` standard normal numbers: 1 for two, more for more."""
    normal, step = NormalDist(), 2 * TAIL / (POINTS - 1)
    points = [-TAIL + step * place for place in range(POINTS)]
    return step * sum(x * x * n * normal.cdf(x) ** (n - 1) * normal.pdf(x) for x in points)


def _he(weight: torch.Tensor, chosen: Choices) -> None:
    fan_in = weight[0].numel()
    nn.init.normal_(weight, 0, gain(chosen.kind("activation"), chosen) / math.sqrt(fan_in))


def _xavier(weight: torch.Tensor, chosen: Choices) -> None:
    """Source: Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010, equation 12."""
    nn.init.xavier_normal_(weight)


def _gaussian(weight: torch.Tensor, chosen: Choices) -> None:
    nn.init.normal_(weight, 0, chosen.number("init_scale"))


INITS: dict[str, Callable[[torch.Tensor, Choices], None]] = {"he": _he, "xavier": _xavier, "gaussian": _gaussian}


def perceptron(hp: Mapping[str, Scalar], n_inputs: int, n_classes: int) -> nn.Sequential:
    """A multilayer perceptron for inputs (n, ``n_inputs``): ``depth`` hidden layers of ``hidden`` units, then logits.

    Raises:
        TaskError: a hyperparameter out of its bounds.
    """
    chosen = Choices(hp)
    widths = [n_inputs, *[chosen.whole("hidden")] * chosen.whole("depth")]
    layers = _input_noise(chosen)
    for fan_in, fan_out in pairwise(widths):
        layers += _hidden(chosen, fan_in, fan_out)
    return nn.Sequential(*layers, _started(nn.Linear(widths[-1], n_classes), chosen))


def convnet(hp: Mapping[str, Scalar], shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """A small convolutional net for images (n, C, H, W).

    ``blocks`` of 3x3 convolution, activation and 2x2 pooling, ``filters`` in the first and twice as many in each next; then a hidden layer
    of ``hidden`` units, then logits.

    Raises:
        TaskError: a hyperparameter out of its bounds, or more blocks than the image can be halved.
    """
    chosen = Choices(hp)
    channels, height, width = shape
    filters, blocks = chosen.whole("filters"), chosen.whole("blocks")
    if min(height, width) < 2**blocks:
        raise TaskError(f"blocks = {blocks}: each halves the image, and {height}x{width} pixels are too few for that; correct [space]")
    layers = _input_noise(chosen)
    for block in range(blocks):
        layers += [*_convolution(chosen, channels, filters * 2**block), nn.MaxPool2d(2)]
        channels = filters * 2**block
    flat = channels * (height >> blocks) * (width >> blocks)
    layers += [nn.Flatten(), *_hidden(chosen, flat, chosen.whole("hidden"))]
    return nn.Sequential(*layers, _started(nn.Linear(chosen.whole("hidden"), n_classes), chosen))


def _hidden(chosen: Choices, fan_in: int, fan_out: int) -> list[nn.Module]:
    linear = _started(nn.Linear(fan_in, fan_out * chosen.pieces), chosen)
    norm = [nn.BatchNorm1d(fan_out * chosen.pieces)] if chosen.switch("batch_norm") else []
    dropout = DROPOUTS[chosen.kind("dropout_kind")](chosen.number("dropout"))
    return [linear, *norm, ACTIVATIONS[chosen.kind("activation")](chosen), dropout]


def _convolution(chosen: Choices, channels: int, filters: int) -> list[nn.Module]:
    convolution = _started(nn.Conv2d(channels, filters * chosen.pieces, 3, padding=1), chosen)
    norm = [nn.BatchNorm2d(filters * chosen.pieces)] if chosen.switch("batch_norm") else []
    return [convolution, *norm, ACTIVATIONS[chosen.kind("activation")](chosen)]


def _input_noise(chosen: Choices) -> list[nn.Module]:
    """A layer only where the search speaks of it, whatever the rate: 0 and 0.2 share a structure, and other searches pay nothing."""
    if not chosen.names("input_dropout"):
        return []
    return [DROPOUTS[chosen.kind("dropout_kind")](chosen.number("input_dropout"))]


def _started(layer: nn.Linear | nn.Conv2d, chosen: Choices) -> nn.Module:
    """The layer with its initial weights; biases start at zero."""
    INITS[chosen.kind("init")](layer.weight, chosen)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
