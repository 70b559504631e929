"""Update rules for stacked parameters. Each hyperparameter is a column with one row per slot.

Formulas, their order and defaults are those of ``torch.optim``, so that a slot's weights agree with
those of a plain optimizer to rounding. Weight decay is coupled: it is added to the gradient before
``apply``, like torch's ``weight_decay``. If a rule is ``decoupled``, the decayed weights shrink by
the factor ``1 - learning_rate * weight_decay`` before ``apply`` instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.optim.sgd import sgd

Columns = dict[str, Tensor]


class UpdateRule(Protocol):
    """A rule by which gradients change parameters.

    It works in place and allocates no large tensor, so that memory cannot run out half-way.
    """

    name: ClassVar[str]
    states: ClassVar[tuple[str, ...]]  # its state tensors for each parameter
    # Its hyperparameters besides learning_rate and weight_decay.
    defaults: ClassVar[dict[str, float]]
    decoupled: ClassVar[bool]  # whether weight decay bypasses the gradient
    uses_scratch: ClassVar[bool]  # whether ``apply`` needs memory of the size of the parameters

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """Return what ``apply`` needs at each step: (n, K, 1) each.

        Args:
            values: hyperparameters, (K,), or (n, K) where a schedule changes them.
            steps: (n, K) step numbers of the slots, from 0.
        """
        ...

    def apply(
        self,
        flat: Tensor,
        gradients: Tensor,
        states: Sequence[Tensor],
        columns: Columns,
        scratch: Tensor,
    ) -> None:
        """Update (K, P) parameters once.

        ``gradients`` and ``scratch`` (K, P) are overwritten. Columns here are (K, 1).
        """
        ...


def _spread_out(made: Mapping[str, Tensor], steps: Tensor) -> Columns:
    """Return each value at each step, as (n, K, 1)."""
    return {name: value.expand_as(steps).unsqueeze(-1) for name, value in made.items()}


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum.

    The momentum may change from step to step. The buffer is momentum x buffer + gradient, whatever
    the momentum was before.

    Source: Sutskever et al., "On the importance of initialization and momentum", ICML 2013, in the
    form of torch.optim.SGD.
    """

    nesterov: bool = False

    name: ClassVar[str] = "sgd"
    states: ClassVar[tuple[str, ...]] = ("momentum_buffer",)
    defaults: ClassVar[dict[str, float]] = {"momentum": 0.0}
    decoupled: ClassVar[bool] = False
    uses_scratch: ClassVar[bool] = False

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """Return the learning rate and the momentum."""
        return _spread_out({name: values[name] for name in ("learning_rate", "momentum")}, steps)

    def apply(
        self,
        flat: Tensor,
        gradients: Tensor,
        states: Sequence[Tensor],
        columns: Columns,
        scratch: Tensor,
    ) -> None:
        """Move along the negative momentum buffer, with a look-ahead if ``nesterov``."""
        buffer = states[0].mul_(columns["momentum"]).add_(gradients)
        step = gradients.addcmul_(buffer, columns["momentum"]) if self.nesterov else buffer
        flat.addcmul_(step, columns["learning_rate"], value=-1)

    def apply_fused(
        self,
        flat: Tensor,
        gradients: Tensor,
        states: Sequence[Tensor],
        columns: Columns,
        l2: Tensor | None,
    ) -> bool:
        """Do the same as ``apply`` by torch's fused kernel, one slot at a time.

        It passes over memory once.

        Args:
            flat: (K, P), on a CPU.
            gradients: (K, P) of the loss alone.
            states: (K, P) each.
            columns: (K, 1) each.
            l2: (K, 1) weight decay, which is added to the gradient. None if no slot has any.

        Returns:
            False if some slot has no momentum now. The kernel would not update its buffer, so
            nothing was changed.
        """
        rates, momenta = (
            columns["learning_rate"].flatten().tolist(),
            columns["momentum"].flatten().tolist(),
        )
        if not all(momenta):
            return False
        decays = l2.flatten().tolist() if l2 is not None else [0.0] * len(rates)
        for row, gradient, buffer, rate, momentum, decay in zip(
            flat, gradients, states[0], rates, momenta, decays, strict=True
        ):
            sgd(
                [row],
                [gradient],
                [buffer],
                fused=True,
                weight_decay=decay,
                momentum=momentum,
                lr=rate,
                dampening=0.0,
                nesterov=self.nesterov,
                maximize=False,
            )
        return True


@dataclass(frozen=True)
class Adagrad:
    """Learning rates that fall with the sum of the squares of all past gradients.

    Source: Duchi, Hazan and Singer, "Adaptive subgradient methods", JMLR 12, 2011, in the form of
    torch.optim.Adagrad.
    """

    name: ClassVar[str] = "adagrad"
    states: ClassVar[tuple[str, ...]] = ("sum",)
    # torch's default. Sums start at 0, and a larger eps would damp the first steps.
    defaults: ClassVar[dict[str, float]] = {"eps": 1e-10}
    decoupled: ClassVar[bool] = False
    uses_scratch: ClassVar[bool] = True

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """Return the learning rate and eps."""
        return _spread_out({name: values[name] for name in ("learning_rate", "eps")}, steps)

    def apply(
        self,
        flat: Tensor,
        gradients: Tensor,
        states: Sequence[Tensor],
        columns: Columns,
        scratch: Tensor,
    ) -> None:
        """Move by the gradient divided by the root of the sum."""
        total = states[0].addcmul_(gradients, gradients)
        gradients.mul_(columns["learning_rate"])
        flat.addcdiv_(gradients, torch.sqrt(total, out=scratch).add_(columns["eps"]), value=-1)


@dataclass(frozen=True)
class RMSprop:
    """Learning rates that fall with a running mean of the squares of the gradients.

    The quotient may have momentum.

    Source: Tieleman and Hinton, "Lecture 6.5: RMSprop", COURSERA 2012, in the form of
    torch.optim.RMSprop (not centred; ``rho`` is its ``alpha``).
    """

    name: ClassVar[str] = "rmsprop"
    states: ClassVar[tuple[str, ...]] = ("square_avg", "momentum_buffer")
    defaults: ClassVar[dict[str, float]] = {"momentum": 0.0, "rho": 0.99, "eps": 1e-8}
    decoupled: ClassVar[bool] = False
    uses_scratch: ClassVar[bool] = True

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """Return the learning rate, the momentum, eps and the two weights of the mean square."""
        made = {name: values[name] for name in ("learning_rate", "momentum", "rho", "eps")}
        return _spread_out({**made, "fresh": 1 - values["rho"]}, steps)

    def apply(
        self,
        flat: Tensor,
        gradients: Tensor,
        states: Sequence[Tensor],
        columns: Columns,
        scratch: Tensor,
    ) -> None:
        """Move along the negative momentum of gradient / root mean square."""
        squares, buffer = states
        torch.mul(gradients, gradients, out=scratch)
        squares.mul_(columns["rho"]).addcmul_(scratch, columns["fresh"])
        buffer.mul_(columns["momentum"]).addcdiv_(
            gradients, torch.sqrt(squares, out=scratch).add_(columns["eps"])
        )
        flat.addcmul_(buffer, columns["learning_rate"], value=-1)


@dataclass(frozen=True)
class Adam:
    """Adam: adaptive moment estimation.

    Source: Kingma and Ba, "Adam", ICLR 2015, algorithm 1, in the form of torch.optim.Adam.
    """

    name: ClassVar[str] = "adam"
    states: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    defaults: ClassVar[dict[str, float]] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    decoupled: ClassVar[bool] = False
    uses_scratch: ClassVar[bool] = True

    def columns(self, values: Mapping[str, Tensor], steps: Tensor) -> Columns:
        """Return the columns, with the bias corrections for moments that start at zero."""
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

    def apply(
        self,
        flat: Tensor,
        gradients: Tensor,
        states: Sequence[Tensor],
        columns: Columns,
        scratch: Tensor,
    ) -> None:
        """Move by the mean gradient divided by the root of its second moment."""
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
    """Adam with decoupled weight decay: the decay does not enter the moments.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2,
    in the form of torch.optim.AdamW.
    """

    name: ClassVar[str] = "adamw"
    decoupled: ClassVar[bool] = True


RULES: dict[str, type[SGD] | type[Adagrad] | type[RMSprop] | type[Adam]] = {
    rule.name: rule for rule in (SGD, Adagrad, RMSprop, Adam, AdamW)
}
