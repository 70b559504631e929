"""Update rules for stacked parameters: each hyperparameter is a column, a row a slot.

The formulas, their order and their defaults are those of ``torch.optim``, so that a slot's weights agree with a plain
optimiser's to rounding. Weight decay is coupled (added to the gradient), as ``weight_decay`` is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

Columns = dict[str, Tensor]


class UpdateRule(Protocol):
    """How gradients move parameters. It works in place and makes no large tensor, so that memory cannot run out half-way."""

    name: ClassVar[str]
    states: ClassVar[tuple[str, ...]]  # what it remembers for each parameter
    defaults: ClassVar[dict[str, float]]  # its own hyperparameters besides learning_rate and weight_decay

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """What ``apply`` needs at each step: (n, K, 1) each, from hyperparameters (K,) and slots' step numbers (n, K), from 0."""
        ...

    def apply(self, flat: Tensor, gradients: Tensor, states: Sequence[Tensor], columns: Columns, scratch: Tensor) -> None:
        """One update of (K, P) parameters; ``gradients`` and ``scratch`` are used up. Columns here are (K, 1)."""
        ...


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum.

    Source: Sutskever et al., "On the importance of initialization and momentum", ICML 2013, in the form of torch.optim.SGD.
    """

    nesterov: bool = False

    name: ClassVar[str] = "sgd"
    states: ClassVar[tuple[str, ...]] = ("momentum_buffer",)
    defaults: ClassVar[dict[str, float]] = {"momentum": 0.0}

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """The same at each step."""
        return {name: values[name].expand_as(steps).unsqueeze(-1) for name in ("learning_rate", "momentum")}

    def apply(self, flat: Tensor, gradients: Tensor, states: Sequence[Tensor], columns: Columns, scratch: Tensor) -> None:
        """Moves against the momentum, or with Nesterov's look ahead."""
        buffer = states[0].mul_(columns["momentum"]).add_(gradients)
        step = gradients.addcmul_(buffer, columns["momentum"]) if self.nesterov else buffer
        flat.addcmul_(step, columns["learning_rate"], value=-1)


@dataclass(frozen=True)
class Adam:
    """Adaptive moments.

    Source: Kingma and Ba, "Adam", ICLR 2015, algorithm 1, in the form of torch.optim.Adam.
    """

    name: ClassVar[str] = "adam"
    states: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    defaults: ClassVar[dict[str, float]] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """With the corrections for moments that start at zero."""
        beta1, beta2 = values["beta1"], values["beta2"]
        correction1, correction2 = 1 - beta1 ** (steps + 1), 1 - beta2 ** (steps + 1)
        made = {
            "step_size": values["learning_rate"] / correction1,
            "spread": correction2.sqrt(),
            "fresh1": (1 - beta1).expand_as(steps),
            "beta2": beta2.expand_as(steps),
            "fresh2": (1 - beta2).expand_as(steps),
            "eps": values["eps"].expand_as(steps),
        }
        return {name: column.unsqueeze(-1) for name, column in made.items()}

    def apply(self, flat: Tensor, gradients: Tensor, states: Sequence[Tensor], columns: Columns, scratch: Tensor) -> None:
        """Moves by the mean gradient over its spread."""
        first, second = states
        torch.sub(gradients, first, out=scratch)
        first.addcmul_(scratch, columns["fresh1"])
        torch.mul(gradients, gradients, out=scratch)
        second.mul_(columns["beta2"]).addcmul_(scratch, columns["fresh2"])
        torch.sqrt(second, out=scratch).div_(columns["spread"]).add_(columns["eps"])
        torch.div(first, scratch, out=scratch)
        flat.addcmul_(scratch, columns["step_size"], value=-1)


RULES: dict[str, type[SGD] | type[Adam]] = {"sgd": SGD, "adam": Adam}
