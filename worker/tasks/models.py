"""The built-in models: a perceptron and a small convolutional network.

``common/search/hyperparameters.py`` lists the hyperparameters that they read. Numbers such as
rates, slopes and scales of initial weights do not change a model's structure. So trials that differ
only in these can train together in one array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Any, TypeVar

from torch import Tensor, nn

from common.errors import TaskError
from common.search.hyperparameters import CONVNET, PERCEPTRON, Number
from common.search.values import Scalar, hashable
from worker.tasks.layers import GaussianDropout, Maxout

T = TypeVar("T")
ENTRIES = {**PERCEPTRON, **CONVNET}
# All others are numbers, which leave the layers as they are.
OF_LAYERS = tuple(name for name, entry in ENTRIES.items() if not isinstance(entry, Number))
BUILT_IN = "is_built_in"  # an attribute of the method ``model``
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
# A layer's tensor that a hyperparameter fills. The engine makes tensors of the attributes.
FILLED: dict[type[nn.Module], tuple[str, str]] = {
    nn.LeakyReLU: ("negative_slope", "negative_slope"),
    nn.PReLU: ("weight", "negative_slope"),
    nn.ELU: ("alpha", "elu_alpha"),
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


@cache
def mean_square_of_largest(n: int) -> float:
    """Return the mean square of the largest of ``n`` standard normal numbers.

    It is 1 for ``n`` = 2 and grows with ``n``.
    """
    normal, step = NormalDist(), 2 * TAIL / (POINTS - 1)
    points = [-TAIL + step * place for place in range(POINTS)]
    return step * sum(x * x * n * normal.cdf(x) ** (n - 1) * normal.pdf(x) for x in points)


def _he(fan_in: int, fan_out: int, chosen: Choices) -> float:
    return gain(chosen.kind("activation"), chosen) / math.sqrt(fan_in)


def _xavier(fan_in: int, fan_out: int, chosen: Choices) -> float:
    """Return the deviation of Xavier weights.

    Source: Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010, equation 12.
    """
    return math.sqrt(2 / (fan_in + fan_out))


def _gaussian(fan_in: int, fan_out: int, chosen: Choices) -> float:
    return chosen.number("init_scale")


# The standard deviation of a layer's initial weights, which are normal.
INITS: dict[str, Callable[[int, int, Choices], float]] = {
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
    nn.init.normal_(layer.weight, 0, INITS[chosen.kind("init")](*_fans(layer.weight), chosen))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _fans(weight: Tensor) -> tuple[int, int]:
    """Return how many inputs an output of a layer has, and how many outputs an input has."""
    return weight[0].numel(), weight[:, 0].numel()


def built_in(model: T) -> T:
    """Mark the method ``model`` of a task. Its models are those of this module, as they are."""
    setattr(model, BUILT_IN, True)
    return model


def is_built_in(task: object) -> bool:
    """Return whether a task's models are those of this module. A subclass may have its own."""
    return bool(getattr(getattr(task, "model", None), BUILT_IN, False))


def key_of_layers(hp: Mapping[str, Any]) -> Hashable:
    """Return what the layers of a built-in task's model depend on, and how their weights start."""
    kinds = [(name, type(hp[name]), hashable(hp[name])) for name in OF_LAYERS if name in hp]
    return *kinds, "input_dropout" in hp


@dataclass(frozen=True)
class Start:
    """What one trial begins with: the numbers of its model and its initial weights.

    Args:
        seed: of the weights.
        drawn: the normal weights, in the order in which they are drawn: the name, how many numbers
            the layer's constructor draws before, and the standard deviation.
        filled: by the name of a tensor, its value.
        rates: of the dropout layers.
    """

    seed: int
    drawn: tuple[tuple[str, int, float], ...]
    filled: dict[str, float]
    rates: tuple[float, ...]


class Layers:
    """The layers of a built-in model. Further trials start with them, without a module.

    Their weights are those that the constructors draw from the same seed, bit for bit.
    """

    def __init__(self, module: nn.Module) -> None:
        """Read the layers of a model that the engine has not changed yet."""
        # The name of a weight, how many numbers are drawn before it, inputs and outputs.
        self._drawn: list[tuple[str, int, tuple[int, int]]] = []
        self._filled: dict[str, str] = {}
        self._n_dropouts = 0
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                n_before = sum(parameter.numel() for parameter in layer.parameters())
                self._drawn.append((f"{name}.weight", n_before, _fans(layer.weight)))
            elif type(layer) in FILLED:
                tensor, number = FILLED[type(layer)]
                self._filled[f"{name}.{tensor}"] = number
            elif isinstance(layer, nn.Dropout | GaussianDropout):
                self._n_dropouts += 1

    def start(self, hp: Mapping[str, Scalar], seed: int) -> Start:
        """Return what a trial of these layers begins with.

        Raises:
            TaskError: a number is out of bounds.
        """
        chosen = Choices(hp)
        deviation = INITS[chosen.kind("init")]
        of_fans = {fans: deviation(*fans, chosen) for fans in {fans for _, _, fans in self._drawn}}
        rates = [chosen.number("input_dropout")] if chosen.names("input_dropout") else []
        if (n := self._n_dropouts - len(rates)) > 0:
            rates += [chosen.number("dropout")] * n
        return Start(
            seed,
            tuple((name, n_before, of_fans[fans]) for name, n_before, fans in self._drawn),
            {name: chosen.number(number) for name, number in self._filled.items()},
            tuple(rates),
        )
