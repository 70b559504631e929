"""The hyperparameters that the engine and the built-in models read: kinds, bounds and defaults.

The master checks configurations against them, and the worker trains by them. A kind, such as
``optimizer``, is structure: trials of different kinds never share an array. A number is a vector
with an element for each trial of an array, so it never splits one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.search.values import Value


@dataclass(frozen=True)
class Number:
    """A number in [low, high). If ``default`` is None, it has to be given."""

    default: float | None
    low: float = 0.0
    high: float = math.inf
    meaning: str = ""

    def refusal(self, value: object) -> str | None:
        """Return why ``value`` cannot be used; None if it can."""
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not self.low <= value < self.high
        ):
            return f"a number in [{self.low:g}, {self.high:g}) is needed"
        return None


@dataclass(frozen=True)
class Whole:
    """A whole number of at least ``low``."""

    default: int
    low: int = 0
    meaning: str = ""

    def refusal(self, value: object) -> str | None:
        """Return why ``value`` cannot be used; None if it can."""
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or value != int(value)
            or value < self.low
        ):
            return f"a whole number of at least {self.low} is needed"
        return None


@dataclass(frozen=True)
class Kind:
    """One of several words, or true and false."""

    default: str | bool
    options: tuple[str | bool, ...]
    meaning: str = ""

    def refusal(self, value: object) -> str | None:
        """Return why ``value`` cannot be used; None if it can."""
        if any(type(value) is type(option) and value == option for option in self.options):
            return None
        told = [
            str(option).lower() if isinstance(option, bool) else option for option in self.options
        ]
        return f"use one of {', '.join(told)}"


Entry = Number | Whole | Kind
SWITCH = (False, True)
SHARE = 1.0  # excluded upper bound of rates and shares
LARGEST_SHARE = 1 - 1e-6  # the largest end of a range that is below it

UPDATES: dict[str, Entry] = {
    "optimizer": Kind("sgd", ("sgd", "adagrad", "rmsprop", "adam", "adamw"), "update rule"),
    "learning_rate": Number(None, meaning="step size; the only one without a default"),
    "momentum": Number(0.0, high=SHARE, meaning="of sgd and rmsprop"),
    "nesterov": Kind(False, SWITCH, "sgd looks ahead along its momentum"),
    "beta1": Number(0.9, high=SHARE, meaning="of adam and adamw: decay of the mean gradient"),
    "beta2": Number(0.999, high=SHARE, meaning="of adam and adamw: decay of the mean square"),
    "rho": Number(0.99, high=SHARE, meaning="of rmsprop: decay of the mean square (torch's alpha)"),
    "eps": Number(
        1e-8, meaning="added to the root of the mean square (adagrad's default is 1e-10)"
    ),
    "batch_size": Whole(64, low=1, meaning="examples in a step"),
    "accumulate": Whole(1, low=1, meaning="pieces that a batch is computed in, to save memory"),
    "precision": Kind(
        "fp32", ("fp32", "tf32", "bf16"), "of products in the model; weights stay in float32"
    ),
    "compile": Kind(False, SWITCH, "torch.compile the steps of a model that trains alone"),
    "clip_norm": Number(0.0, meaning="largest norm of a trial's whole gradient; 0 for none"),
    "clip_value": Number(0.0, meaning="largest size of each element of the gradient; 0 for none"),
    "ema": Number(
        0.0, high=SHARE, meaning="decay a step of the running average of the parameters; 0 for none"
    ),
}
SCHEDULES: dict[str, Entry] = {
    "schedule": Kind(
        "constant",
        ("constant", "step", "exponential", "inverse", "plateau", "cosine"),
        "of the learning rate, in epochs",
    ),
    "warmup_epochs": Number(0.0, meaning="epochs of linear warm-up of the rate, from 0"),
    "step_epochs": Number(5.0, low=1e-6, meaning="of step: epochs between two drops"),
    "drop": Number(
        0.5, high=1.0 + 1e-12, meaning="of step and plateau: the rate is multiplied by it"
    ),
    "decay_rate": Number(
        0.1, meaning="an epoch: exp(-rate t) of exponential, 1 / (1 + rate t) of inverse"
    ),
    "final_share": Number(
        0.0,
        high=1.0 + 1e-12,
        meaning="of cosine: share of the rate that is left at the end of the budget",
    ),
    "plateau_epochs": Number(
        3.0, low=1e-6, meaning="of plateau: epochs without a lower validation loss before a drop"
    ),
    "momentum_start": Number(
        -1.0,
        low=-1.0,
        high=SHARE,
        meaning="momentum rises linearly from here to momentum; -1 for none",
    ),
    "momentum_epochs": Number(0.0, meaning="epochs over which momentum rises"),
    "plateau_momentum_off": Kind(
        False, SWITCH, "momentum becomes 0 at the first plateau (see plateau_epochs)"
    ),
    "fade": Number(
        0.0,
        high=1.0 + 1e-12,
        meaning="share of the budget at its end in which weight_decay, l1 and activation_l1 fade "
        "linearly to 0",
    ),
}
REGULARISATION: dict[str, Entry] = {
    "weight_decay": Number(
        0.0,
        meaning="L2: 0.5 x weight_decay x the sum of squares is added to the loss (adamw: "
        "decoupled)",
    ),
    "l1": Number(
        0.0, meaning="l1 x the sum of sizes is added to the loss; with weight_decay: elastic net"
    ),
    "activation_l1": Number(
        0.0,
        meaning="activation_l1 x the sum of the sizes of an example's hidden activations is added "
        "to the loss",
    ),
    "max_norm": Number(
        0.0, meaning="largest norm of the weights into a unit, after each update; 0 for none"
    ),
    "decay_biases": Kind(
        False, SWITCH, "weight_decay and l1 act on biases and scales of normalisation too"
    ),
}
LOSSES: dict[str, Entry] = {
    "loss": Kind("cross_entropy", ("cross_entropy", "hinge"), "what is minimised"),
    "label_smoothing": Number(
        0.0,
        high=SHARE,
        meaning="of cross_entropy: share of each target that is spread over all classes",
    ),
    "margin": Number(1.0, meaning="of hinge: how much the right class's score has to lead"),
    "val_passes": Whole(
        0,
        meaning="stochastic passes whose probabilities are averaged in validation; 0: a plain pass",
    ),
}
DATA: dict[str, Entry] = {
    "preprocess": Kind(
        "none",
        ("none", "centre", "normalise", "pca", "whiten"),
        "of the inputs, from the training part's statistics",
    ),
    "augment_noise": Number(0.0, meaning="standard deviation of Gaussian noise on the inputs"),
    "augment_shift": Number(
        0.0, meaning="of images: largest shift in pixels, up or down and left or right"
    ),
    "augment_flip": Number(
        0.0, high=1.0 + 1e-12, meaning="of images: probability of a mirror image, left to right"
    ),
    "augment_rotate": Number(
        0.0, high=180.0 + 1e-9, meaning="of images: largest rotation in degrees, either way"
    ),
    "augment_zoom": Number(
        0.0, high=SHARE, meaning="of images: largest relative change of size, either way"
    ),
}
DISTILLATION: dict[str, Entry] = {  # only read in stages of kind "distill"
    "distill_temperature": Number(
        4.0, low=0.1, meaning="divides the scores of teacher and model before they are compared"
    ),
    "distill_mix": Number(
        0.5,
        high=1.0 + 1e-12,
        meaning="share of the comparison with the teacher in the loss; the rest is `loss`",
    ),
}
ENGINE: dict[str, Entry] = {
    **UPDATES,
    **SCHEDULES,
    **REGULARISATION,
    **LOSSES,
    **DATA,
    **DISTILLATION,
}

PERCEPTRON: dict[str, Entry] = {
    "hidden": Whole(64, low=1, meaning="units of each hidden layer"),
    "depth": Whole(2, meaning="hidden layers"),
    "activation": Kind(
        "relu",
        ("relu", "leaky_relu", "prelu", "elu", "gelu", "sigmoid", "tanh", "maxout"),
        "after each hidden layer",
    ),
    "negative_slope": Number(0.01, meaning="of leaky_relu; where prelu starts"),
    "elu_alpha": Number(1.0, meaning="of elu"),
    "pieces": Whole(2, low=2, meaning="of maxout: linear pieces a unit"),
    "init": Kind("he", ("he", "xavier", "gaussian"), "how weights start"),
    "init_scale": Number(0.01, meaning="of gaussian: standard deviation"),
    "batch_norm": Kind(False, SWITCH, "before each activation"),
    "dropout": Number(0.0, high=SHARE, meaning="rate, after each hidden layer"),
    "input_dropout": Number(0.0, high=SHARE, meaning="rate, on the inputs"),
    "dropout_kind": Kind(
        "bernoulli", ("bernoulli", "gaussian"), "gaussian: multiplied by noise of the same variance"
    ),
}
CONVNET: dict[str, Entry] = {
    "model": Kind("perceptron", ("perceptron", "convnet"), "of image tasks"),
    "filters": Whole(
        16, low=1, meaning="of convnet: channels of the first block, doubled in each next"
    ),
    "blocks": Whole(2, low=1, meaning="of convnet: convolution, activation, pooling"),
}
BUILT_IN_TASKS: dict[str, dict[str, Entry]] = {  # hyperparameters of each built-in task's models
    "digits": {**PERCEPTRON, **CONVNET},
    "spiral": PERCEPTRON,
    "mnist": {**PERCEPTRON, **CONVNET},
    "fashion_mnist": {**PERCEPTRON, **CONVNET},
    "cifar10": {**PERCEPTRON, **CONVNET},
}


def known_entries(task: str | None) -> Mapping[str, Entry]:
    """Return every hyperparameter that a built-in task reads, or with None the engine alone."""
    return {**ENGINE, **(BUILT_IN_TASKS[task] if task is not None else {})}


def refusal(name: str, value: Value, task: str | None) -> str | None:
    """Return why a hyperparameter cannot have this value; None if it can or is not known here."""
    entry = known_entries(task).get(name)
    return entry.refusal(value) if entry is not None else None


def never_splits(name: str, values: Iterable[Value]) -> bool:
    """Return whether these values of a hyperparameter are numbers to the engine.

    Trials of one array may differ in such a hyperparameter.
    """
    return isinstance(_NUMBERS.get(name), Number) and not any(
        isinstance(value, bool | str | list | dict) for value in values
    )


def bounds(name: str) -> tuple[float, float]:
    """Return the lowest and highest value of a number, both included.

    These are the values that the engine and the built-in models accept.
    """
    entry = _NUMBERS.get(name)
    if entry is None:
        return -math.inf, math.inf
    high = entry.high if isinstance(entry, Number) else math.inf
    return entry.low, LARGEST_SHARE if high == SHARE else high if math.isinf(high) else math.floor(
        high
    )


_NUMBERS = {
    name: entry
    for entries in (ENGINE, *BUILT_IN_TASKS.values())
    for name, entry in entries.items()
    if isinstance(entry, Number | Whole)
}
