"""Update rules for stacked parameters: each hyperparameter is a column, a row a slot.

The formulas, their order and their defaults are those of ``torch.optim``, so that a slot's weights agree with a plain
optimiser's to rounding. Weight decay is coupled (added to the gradient before ``apply``), as ``weight_decay`` is there, but where a rule
is ``decoupled``: then the decayed weights shrink by ``1 - learning_rate * weight_decay`` before ``apply``.
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
    decoupled: ClassVar[bool]  # whether weight decay bypasses the gradient
    uses_scratch: ClassVar[bool]  # whether ``apply`` needs memory of the size of the parameters

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """What ``apply`` needs at each step: (n, K, 1) each.

        Args:
            values: hyperparameters, (K,) or, where a schedule moves them, (n, K).
            steps: (n, K) the slots' step numbers, from 0.
        """
        ...

    def apply(self, flat: Tensor, gradients: Tensor, states: Sequence[Tensor], columns: Columns, scratch: Tensor) -> None:
        """One update of (K, P) parameters; ``gradients`` and ``scratch`` (K, P) are used up. Columns here are (K, 1)."""
        ...


def _spread_out(made: Mapping[str, Tensor], steps: Tensor) -> Columns:
    """Each value at each step, as (n, K, 1)."""
    return {name: value.expand_as(steps).unsqueeze(-1) for name, value in made.items()}


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum.

    The momentum may change from step to step: the buffer is momentum x buffer + gradient, whatever the momentum was before.

    Source: Sutskever et al., "On the importance of initialization and momentum", ICML 2013, in the form of torch.optim.SGD.
    """

    nesterov: bool = False

    name: ClassVar[str] = "sgd"
    states: ClassVar[tuple[str, ...]] = ("momentum_buffer",)
    defaults: ClassVar[dict[str, float]] = {"momentum": 0.0}
    decoupled: ClassVar[bool] = False
    uses_scratch: ClassVar[bool] = False

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """The rate and the momentum."""
        return _spread_out({name: values[name] for name in ("learning_rate", "momentum")}, steps)

    def apply(self, flat: Tensor, gradients: Tensor, states: Sequence[Tensor], columns: Columns, scratch: Tensor) -> None:
        """Moves against the momentum, or with Nesterov's look ahead."""
        buffer = states[0].mul_(columns["momentum"]).add_(gradients)
        step = gradients.addcmul_(buffer, columns["momentum"]) if self.nesterov else buffer
        flat.addcmul_(step, columns["learning_rate"], value=-1)


@dataclass(frozen=True)
class Adagrad:
    """Rates that fall with the sum of the squares of all past gradients.

    Source: Duchi, Hazan and Singer, "Adaptive subgradient methods", JMLR 12, 2011, in the form of torch.optim.Adagrad.
    """

    name: ClassVar[str] = "adagrad"
    states: ClassVar[tuple[str, ...]] = ("sum",)
    defaults: ClassVar[dict[str, float]] = {"eps": 1e-10}  # torch's: sums start at 0, and a larger one would damp the first steps
    decoupled: ClassVar[bool] = False
    uses_scratch: ClassVar[bool] = True

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """The rate and eps."""
        return _spread_out({name: values[name] for name in ("learning_rate", "eps")}, steps)

    def apply(self, flat: Tensor, gradients: Tensor, states: Sequence[Tensor], columns: Columns, scratch: Tensor) -> None:
        """Moves by the gradient over the root of the sum."""
        total = states[0].addcmul_(gradients, gradients)
        gradients.mul_(columns["learning_rate"])
        flat.addcdiv_(gradients, torch.sqrt(total, out=scratch).add_(columns["eps"]), value=-1)


@dataclass(frozen=True)
class RMSprop:
    """Rates that fall with a running mean of the squares of the gradients; the quotient may have momentum.

    Source: Tieleman and Hinton, "Lecture 6.5: RMSprop", COURSERA 2012, in the form of torch.optim.RMSprop (not centred; ``rho`` is
    its ``alpha``).
    """

    name: ClassVar[str] = "rmsprop"
    states: ClassVar[tuple[str, ...]] = ("square_avg", "momentum_buffer")
    defaults: ClassVar[dict[str, float]] = {"momentum": 0.0, "rho": 0.99, "eps": 1e-8}
    decoupled: ClassVar[bool] = False
    uses_scratch: ClassVar[bool] = True

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """The rate, the momentum, and the two shares of the mean square."""
        made = {name: values[name] for name in ("learning_rate", "momentum", "rho", "eps")}
        return _spread_out({**made, "fresh": 1 - values["rho"]}, steps)

    def apply(self, flat: Tensor, gradients: Tensor, states: Sequence[Tensor], columns: Columns, scratch: Tensor) -> None:
        """Moves against the momentum of gradient over root mean square."""
        squares, buffer = states
        torch.mul(gradients, gradients, out=scratch)
        squares.mul_(columns["rho"]).addcmul_(scratch, columns["fresh"])
        buffer.mul_(columns["momentum"]).addcdiv_(gradients, torch.sqrt(squares, out=scratch).add_(columns["eps"]))
        flat.addcmul_(buffer, columns["learning_rate"], value=-1)


@dataclass(frozen=True)
class Adam:
    """Adaptive moments.

    Source: Kingma and Ba, "Adam", ICLR 2015, algorithm 1, in the form of torch.optim.Adam.
    """

    name: ClassVar[str] = "adam"
    states: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    defaults: ClassVar[dict[str, float]] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    decoupled: ClassVar[bool] = False
    uses_scratch: ClassVar[bool] = True

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """With the corrections for moments that start at zero."""
        beta1, beta2 = values["beta1"], values["beta2"]
        correction1, correction2 = 1 - beta1 ** (steps + 1), 1 - beta2 ** (steps + 1)
        made = {
            "step_size": values["learning_rate"] / correction1,
            "spread": correction2.sqrt(),
            "fresh1": 1 - beta1,
            "beta2": beta2,
            "fresh2": 1 - beta2,
            "eps": values["eps"],
        }
        return _spread_out(made, steps)

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


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay is not part of the gradient, so that its moments do not see it.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2, in the form of torch.optim.AdamW.
    """

    name: ClassVar[str] = "adamw"
    decoupled: ClassVar[bool] = True


RULES: dict[str, type[SGD] | type[Adagrad] | type[RMSprop] | type[Adam]] = {
    rule.name: rule for rule in (SGD, Adagrad, RMSprop, Adam, AdamW)
}
