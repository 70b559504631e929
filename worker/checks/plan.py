"""The configurations to check: the centre of the space, and its variants.

Each variant changes one choice of the centre to another option.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from common.search.hyperparameters import ENGINE
from common.search.parameters import Choice, Parameter
from common.search.space import Space
from common.search.values import Hyperparameters, Value

# Neutral values for checks without regularisation, noise and schedules. Only hyperparameters of the
# configuration are changed, because the defaults are neutral already.
NEUTRAL: dict[str, Value] = {
    "weight_decay": 0.0,
    "l1": 0.0,
    "activation_l1": 0.0,
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

    name: str  # of the choice that differs
    differs: str  # the difference, as written in a search file
    values: Hyperparameters


def centre(space: Space) -> Hyperparameters:
    """Return the centre of the space.

    For a range it has the middle on the scale that is sampled (the geometric middle of a log
    scale). For a choice it has the first option. What does not exist under its condition is
    absent.
    """
    return space.prune(_middles(space))


def _middles(space: Space) -> Hyperparameters:
    return {name: _middle(parameter) for name, parameter in space.parameters.items()}


def _middle(parameter: Parameter) -> Value:
    return parameter.options[0] if isinstance(parameter, Choice) else parameter.from_unit(0.5)


def variants(space: Space) -> list[Configuration]:
    """Return the centre with each other option of each choice, one at a time.

    Choices of words and switches come first, then those of numbers (widths, depths). What exists
    only under another option is in that variant. A choice that the centre lacks is left out.
    """
    middles, middle = _middles(space), centre(space)
    choices = {name: space.parameters[name] for name in middle}
    # The sort is stable and keeps the file's order.
    ordered = sorted(
        ((name, p) for name, p in choices.items() if isinstance(p, Choice)),
        key=lambda item: not isinstance(item[1].options[0], bool | str),
    )
    return [
        Configuration(
            name, f"{name} = {_format_option(option)}", space.prune({**middles, name: option})
        )
        for name, parameter in ordered
        for option in parameter.options[1:]
    ]


def quiet(values: Mapping[str, Value], changes: Mapping[str, Value]) -> Hyperparameters:
    """Return the configuration without regularisation, noise, schedule and running average.

    ``changes`` are applied last.
    """
    return {
        **values,
        **{name: value for name, value in NEUTRAL.items() if name in values},
        **changes,
    }


def _format_option(option: Value) -> str:
    return json.dumps(option)  # as in the search file: "tanh", true, 128
