"""The built-in models: a perceptron and a small convolutional network.

``common/search/hyperparameters.py`` lists the hyperparameters that they read. Numbers such as
rates, slopes and scales of initial weights do not change a model's structure. So trials that differ
only in these can train together in one array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from statistics import NormalDist

import torch
from torch import nn

from common.errors import TaskError
from common.search.hyperparameters import CONVNET, PERCEPTRON
from common.search.values import Scalar
from worker.tasks.layers import GaussianDropout, Maxout

ENTRIES = {**PERCEPTRON, **CONVNET}
TANH_GAIN = 5 / 3  # as torch.nn.init.calculate_gain; keeps the variance in many tanh layers
# Bounds and grid of the integral over the normal distribution. The rest beyond ten standard
# deviations is negligible.
TAIL, POINTS = 10.0, 4001


class Choices:
    """A configuration as the models read it, with defaults for what it does not set.

    Reading a value that is out of bounds raises TaskError.
    """

    def __init__(self, hp: Mapping[str, Scalar]) -> None:
        self._hp = hp

    def _value(self, name: str) -> Scalar:
        value = self._hp.get(name, ENTRIES[name].default)
        why = ENTRIES[name].refusal(value)
        if value is None or why is not None:
            raise TaskError(f"{name} = {value!r}: {why}; correct [space]")
        return value

    def number(self, name: str) -> float:
        """Return a number."""
        return float(self._value(name))

    def whole(self, name: str) -> int:
        """Return a whole number."""
        return int(self._value(name))

    def kind(self, name: str) -> str:
        """Return a word, such as the name of an activation."""
        return str(self._value(name))

    def names(self, name: str) -> bool:
        """Return whether the configuration sets ``name``."""
        return name in self._hp

    def switch(self, name: str) -> bool:
        """Return true or false."""
        return bool(self._value(name))

    @property
    def pieces(self) -> int:
        """The number of linear pieces of a hidden unit: 1 unless the activation is maxout."""
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
DROPOUTS: dict[str, Callable[[float], nn.Module]] = {
    "bernoulli": nn.Dropout,
    "gaussian": GaussianDropout,
}


def gain(activation: str, chosen: Choices) -> float:
    """Return the factor for initial weights that lets an activation keep the variance.

    With weights of standard deviation gain / sqrt(inputs), the outputs of a layer vary about as
    much as its inputs. ELU and GELU get the gain of ReLU, which they resemble. Sigmoid has gain 1,
    as in torch.

    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, equations 10 and 14;
    ``torch.nn.init.calculate_gain``.
    """
    if activation in ("leaky_relu", "prelu"):
        return math.sqrt(2 / (1 + chosen.number("negative_slope") ** 2))
    if activation == "maxout":
        return 1 / math.sqrt(mean_square_of_largest(chosen.pieces))
    return {"sigmoid": 1.0, "tanh": TANH_GAIN}.get(activation, math.sqrt(2))


def mean_square_of_largest(n: int) -> float:
    """Return the mean square of the largest of ``n`` standard normal numbers.

    It is 1 for ``n`` = 2 and grows with ``n``.
    """
    normal, step = NormalDist(), 2 * TAIL / (POINTS - 1)
    points = [-TAIL + step * place for place in range(POINTS)]
    return step * sum(x * x * n * normal.cdf(x) ** (n - 1) * normal.pdf(x) for x in points)


def _he(weight: torch.Tensor, chosen: Choices) -> None:
    fan_in = weight[0].numel()
    nn.init.normal_(weight, 0, gain(chosen.kind("activation"), chosen) / math.sqrt(fan_in))


def _xavier(weight: torch.Tensor, chosen: Choices) -> None:
    """Draw Xavier weights.

    Source: Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010, equation 12.
    """
    nn.init.xavier_normal_(weight)


def _gaussian(weight: torch.Tensor, chosen: Choices) -> None:
    nn.init.normal_(weight, 0, chosen.number("init_scale"))


INITS: dict[str, Callable[[torch.Tensor, Choices], None]] = {
    "he": _he,
    "xavier": _xavier,
    "gaussian": _gaussian,
}


def perceptron(hp: Mapping[str, Scalar], n_inputs: int, n_classes: int) -> nn.Sequential:
    """Return a multilayer perceptron for inputs (n, ``n_inputs``).

    It has ``depth`` hidden layers of ``hidden`` units, then logits.

    Raises:
        TaskError: a hyperparameter is out of bounds.
    """
    chosen = Choices(hp)
    widths = [n_inputs, *[chosen.whole("hidden")] * chosen.whole("depth")]
    layers = _input_noise(chosen)
    for fan_in, fan_out in pairwise(widths):
        layers += _hidden(chosen, fan_in, fan_out)
    return nn.Sequential(*layers, _initialise(nn.Linear(widths[-1], n_classes), chosen))


def convnet(hp: Mapping[str, Scalar], shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """Return a small convolutional network for images (n, C, H, W).

    It has ``blocks`` blocks of 3x3 convolution, activation and 2x2 pooling. The first has
    ``filters`` filters and each next one twice as many. Then come a hidden layer of ``hidden``
    units and logits.

    Raises:
        TaskError: a hyperparameter is out of bounds, or the image cannot be halved ``blocks``
            times.
    """
    chosen = Choices(hp)
    channels, height, width = shape
    filters, blocks = chosen.whole("filters"), chosen.whole("blocks")
    if min(height, width) < 2**blocks:
        raise TaskError(
            f"blocks = {blocks}: each halves the image, and {height}x{width} pixels are too few "
            "for that; correct [space]"
        )
    layers = _input_noise(chosen)
    for block in range(blocks):
        layers += [*_convolution(chosen, channels, filters * 2**block), nn.MaxPool2d(2)]
        channels = filters * 2**block
    flat = channels * (height >> blocks) * (width >> blocks)
    layers += [nn.Flatten(), *_hidden(chosen, flat, chosen.whole("hidden"))]
    return nn.Sequential(*layers, _initialise(nn.Linear(chosen.whole("hidden"), n_classes), chosen))


def _hidden(chosen: Choices, fan_in: int, fan_out: int) -> list[nn.Module]:
    linear = _initialise(nn.Linear(fan_in, fan_out * chosen.pieces), chosen)
    norm = [nn.BatchNorm1d(fan_out * chosen.pieces)] if chosen.switch("batch_norm") else []
    dropout = DROPOUTS[chosen.kind("dropout_kind")](chosen.number("dropout"))
    return [linear, *norm, ACTIVATIONS[chosen.kind("activation")](chosen), dropout]


def _convolution(chosen: Choices, channels: int, filters: int) -> list[nn.Module]:
    convolution = _initialise(nn.Conv2d(channels, filters * chosen.pieces, 3, padding=1), chosen)
    norm = [nn.BatchNorm2d(filters * chosen.pieces)] if chosen.switch("batch_norm") else []
    return [convolution, *norm, ACTIVATIONS[chosen.kind("activation")](chosen)]


def _input_noise(chosen: Choices) -> list[nn.Module]:
    """Return a dropout layer for the inputs if the search sets ``input_dropout``, else none.

    The layer is there whatever the rate, so that rates 0 and 0.2 share a structure. Searches that
    do not set it pay nothing.
    """
    if not chosen.names("input_dropout"):
        return []
    return [DROPOUTS[chosen.kind("dropout_kind")](chosen.number("input_dropout"))]


def _initialise(layer: nn.Linear | nn.Conv2d, chosen: Choices) -> nn.Module:
    """Set the initial weights of a layer and return it. Biases start at zero."""
    INITS[chosen.kind("init")](layer.weight, chosen)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
