"""Which configurations are checked: the centre of the space, and the centre with each other option of its kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from common.practice import ENGINE
from common.space import Choice, Hyperparameters, Parameter, Scalar, Space

# What is switched off for the checks that need it off. Only names that the configuration has are changed: the defaults are neutral.
NEUTRAL: dict[str, Scalar] = {
    "weight_decay": 0.0,
    "l1": 0.0,
    "max_norm": 0.0,
    "fade": 0.0,
    "dropout": 0.0,
    "input_dropout": 0.0,
    "label_smoothing": 0.0,
    "clip_norm": 0.0,
    "clip_value": 0.0,
    "ema": 0.0,
    "val_passes": 0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "momentum_start": -1.0,
    "plateau_momentum_off": False,
    **{name: 0.0 for name in ENGINE if name.startswith("augment_")},
}


@dataclass(frozen=True)
class Configuration:
    """A point of the space that differs from the centre in one option of a choice."""

    name: str  # of the choice
    differs: str  # as the search file would have it
    values: Hyperparameters


def centre(space: Space) -> Hyperparameters:
    """The middle of each range in the scale it is sampled on (the geometric middle of a log scale), the first option of each choice."""
    return {name: _middle(parameter) for name, parameter in space.parameters.items()}


def _middle(parameter: Parameter) -> Scalar:
    return parameter.options[0] if isinstance(parameter, Choice) else parameter.from_unit(0.5)


def variants(space: Space) -> list[Configuration]:
    """The centre with each other option of each choice, one at a time: words and switches first, then numbers (widths, depths)."""
    middle = centre(space)
    choices = {name: p for name, p in space.parameters.items() if isinstance(p, Choice)}
    ordered = sorted(choices.items(), key=lambda item: not isinstance(item[1].options[0], bool | str))  # stable: the file's order
    return [
        Configuration(name, f"{name} = {_written(option)}", {**middle, name: option})
        for name, parameter in ordered
        for option in parameter.options[1:]
    ]


def quiet(values: Mapping[str, Scalar], changes: Mapping[str, Scalar]) -> Hyperparameters:
    """The configuration without regularisation, noise, schedule and running average; ``changes`` on top."""
    return {**values, **{name: value for name, value in NEUTRAL.items() if name in values}, **changes}


def _written(option: Scalar) -> str:
    return json.dumps(option)  # as the search file has it: "tanh", true, 128
