"""Made searches: trials whose goodness is a known function of their hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable

from common.search.space import Space
from common.search.stage import Strategy
from common.search.values import Hyperparameters
from master.strategy.drawing import draw_many
from master.strategy.freezing import Seen, freeze

SPACE = Space.parse(
    {
        "learning_rate": {"log_uniform": [1e-6, 1e-1]},
        "dropout": {"uniform": [0.0, 0.8]},
        "depth": {"int_uniform": [1, 4]},
        "hidden": {"log_int_uniform": [16, 512]},
        "activation": {"choice": ["relu", "tanh", "gelu"]},
        "optimizer": "sgd",
    }
)
PLAIN_ONLY, DENSITY_ONLY, CHILD_ONLY = (
    Strategy(plain=1.0),
    Strategy(plain=0.0, density=1.0),
    Strategy(plain=0.0, density=0.0),
)


def near(hyperparameters: Hyperparameters) -> float:
    """Best at a learning rate of 0.01 without dropout, with tanh."""
    distance = abs(math.log10(float(hyperparameters["learning_rate"])) + 2) + float(
        hyperparameters["dropout"]
    )
    return -distance - 0.5 * (hyperparameters["activation"] != "tanh")


def searched(
    n: int = 60,
    goodness: Callable[[Hyperparameters], float] = near,
    space: Space = SPACE,
    seed: int = 1,
    epochs: float = 1.0,
) -> list[Seen]:
    """A first stage as sampled, measured once."""
    drawn = draw_many(space, freeze(space, space, []), seed, "coarse", range(n), Strategy())
    return [
        seen(i, one.hyperparameters, (epochs, goodness(one.hyperparameters)))
        for i, one in enumerate(drawn)
    ]


def seen(
    index: int, hyperparameters: Hyperparameters, *measured: tuple[float, float], stage: int = 0
) -> Seen:
    return Seen(f"{'abcdef'[stage]}-{index:04d}", stage, index, hyperparameters, measured)
