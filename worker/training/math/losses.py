"""Losses of stacked outputs, with their gradients. Slots do not affect one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from common.errors import TaskError
from common.search.search_file import METRIC_PATTERN
from worker.tasks import trees
from worker.tasks.base import CURVE_NAMES, PART_PREFIX
from worker.tasks.trees import Tree

# (K, 1) columns in the training dtype, by hyperparameter. One that no slot uses may be missing.
Values = Mapping[str, Tensor]
LossParts = Mapping[str, Tensor]
OwnLoss = Callable[[Tree, Tree, Mapping[str, Any]], Tensor | dict[str, Tensor]]
TOTAL = "loss"  # the part that is trained, if a loss in parts names it
NO_PARTS: LossParts = MappingProxyType({})


class Losses(NamedTuple):
    """The losses of a batch, per slot."""

    mean: Tensor  # (K,) mean loss over the examples
    # (K,) number of examples whose class has the highest output; 0 without classes
    correct: Tensor
    # (K, B, ...) gradient of each slot's mean loss with respect to its outputs
    gradient: Tree
    parts: LossParts = NO_PARTS  # (K,) means of the parts of a task's own loss, by name
    penalty: Tensor | None = None  # (K,) of hidden activations; None if no slot penalises them


class Evaluated(NamedTuple):
    """The losses of validation examples, per slot."""

    total: Tensor  # (K,) float64, the sum of the examples' losses
    correct: Tensor  # (K,) number of examples whose class has the highest output
    parts: LossParts = NO_PARTS  # (K,) float64, the sum of each part of a task's own loss


class Objective(Protocol):
    """A loss and its gradient, for all slots at once. Equal objectives may share an array."""

    reads: ClassVar[tuple[str, ...]]  # the engine's hyperparameters that it reads

    def __call__(self, outputs: Tree, targets: Tree, values: Values) -> Losses:
        """Return the training loss.

        Args:
            outputs: (K, B, C), or (K, B, ...) in any container for a task's own loss.
            targets: (B, ...) shared by all slots, or (K, B, ...).
            values: columns of the hyperparameters that it ``reads``. For a task's own loss, those
                that it finds in ``hp`` as tensors.
        """
        ...

    def evaluate(self, outputs: Tree, targets: Tree, values: Values) -> Evaluated:
        """Return the validation loss and the number of correct examples."""
        ...

    def chance(self, values: Mapping[str, float]) -> float | None:
        """Return the loss of a model that gives all classes the same output, or None if unknown.

        ``values`` are the hyperparameters of one slot.
        """
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy in nats, with label smoothing.

    With ``label_smoothing`` e, the targets are 1 - e + e / C for the right class and e / C for the
    others. The validation loss has no smoothing: it is the cross-entropy of the true class,
    whatever a trial was trained with, so that trials can be compared.

    Source: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 7;
    ``torch.nn.CrossEntropyLoss``.
    """

    n_classes: int | None = None
    name: ClassVar[str] = "cross_entropy"
    reads: ClassVar[tuple[str, ...]] = ("label_smoothing",)

    def __call__(self, outputs: Tensor, targets: Tensor, values: Values) -> Losses:
        """See ``Objective``."""
        index = _index(outputs, targets)  # (K, B, 1)
        shifted = outputs - outputs.amax(-1, keepdim=True)
        exponentials = shifted.exp()
        total = exponentials.sum(-1, keepdim=True)  # (K, B, 1)
        hit, spread = shifted.gather(-1, index), torch.full_like(total, -1.0)
        smoothing = values.get("label_smoothing")
        if smoothing is None:
            gradient = exponentials.div_(total)
        else:
            share = smoothing.unsqueeze(-1)  # (K, 1, 1)
            # torch.where instead of a sum: an output of -inf, which rules a class out, must have no
            # effect in slots without smoothing.
            hit = torch.where(
                share > 0, hit * (1 - share) + shifted.mean(-1, keepdim=True) * share, hit
            )
            spread = spread * (1 - share)
            gradient = exponentials.div_(total).sub_(share / outputs.shape[-1])
        mean = (total.log() - hit).mean((1, 2))
        gradient = gradient.scatter_add_(-1, index, spread).div_(outputs.shape[1])
        return Losses(mean, _correct(outputs, index), gradient)

    def evaluate(self, outputs: Tensor, targets: Tensor, values: Values) -> Evaluated:
        """See ``Objective``."""
        index = _index(outputs, targets)
        losses = outputs.logsumexp(-1, keepdim=True) - outputs.gather(-1, index)
        return Evaluated(losses.sum((1, 2), dtype=torch.float64), _correct(outputs, index))

    def chance(self, values: Mapping[str, float]) -> float | None:
        """Return log(C), whatever the smoothing."""
        return None if self.n_classes is None else math.log(self.n_classes)


@dataclass(frozen=True)
class Hinge:
    """The loss of the multi-class support vector machine.

    The loss of an example is the sum over wrong classes j of max(0, ``margin`` + s_j - s_y).
    ``torch.nn.MultiMarginLoss`` is the same divided by the number of classes.

    Source: Weston, Watkins, "Multi-Class Support Vector Machines", 1998; CS231n notes, "Linear
    Classification".
    """

    n_classes: int | None = None
    name: ClassVar[str] = "hinge"
    reads: ClassVar[tuple[str, ...]] = ("margin",)

    def __call__(self, outputs: Tensor, targets: Tensor, values: Values) -> Losses:
        """See ``Objective``. At a kink the gradient is that of the flat side, as in torch."""
        index = _index(outputs, targets)
        lacking = _lacking(outputs, index, values)
        mean = lacking.sum(-1).mean(1)
        gradient = (lacking > 0).to(outputs.dtype)
        gradient = gradient.scatter_(-1, index, -gradient.sum(-1, keepdim=True)).div_(
            outputs.shape[1]
        )
        return Losses(mean, _correct(outputs, index), gradient)

    def evaluate(self, outputs: Tensor, targets: Tensor, values: Values) -> Evaluated:
        """See ``Objective``. Each slot uses its own margin."""
        index = _index(outputs, targets)
        return Evaluated(
            _lacking(outputs, index, values).sum((1, 2), dtype=torch.float64),
            _correct(outputs, index),
        )

    def chance(self, values: Mapping[str, float]) -> float | None:
        """Return (C - 1) x margin."""
        return None if self.n_classes is None else (self.n_classes - 1) * values.get("margin", 1.0)


@dataclass(frozen=True)
class Own:
    """A task's own ``loss(outputs, targets, hp)``.

    It returns the mean over one trial's batch as a 0-d tensor, or a dict of such parts. Autograd
    gives the gradient, and ``torch.vmap`` stacks it. In ``hp``, numbers that have a column are 0-d
    tensors; strings, booleans and whole numbers are plain values. With one slot the loss is called
    without vmap, so that trials that train alone can use a loss that vmap does not support.

    Outputs and targets may be in containers. Outputs that are not floating-point numbers have no
    gradient.
    """

    loss: OwnLoss
    # Strings, booleans and whole numbers, the same for all slots of an array.
    plain: Mapping[str, Any] = field(default_factory=dict, hash=False)
    classes: bool = True  # whether targets are class numbers and outputs are logits
    # Number of dimensions of the first tensor of one batch's targets, (B,) or (B, ...). With one
    # more, each slot has its own targets.
    target_dims: int = 1
    name: ClassVar[str] = "own"
    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, outputs: Tree, targets: Tree, values: Values) -> Losses:
        """See ``Objective``.

        Raises:
            TaskError: the loss is not a 0-d tensor, nor a dict of such.
            Exception: whatever the loss raises.
        """
        tensors, structure = trees.flatten(outputs)
        tensors, columns = [tensor.detach() for tensor in tensors], _of_slots(values)
        moving = {n: one for n, one in enumerate(tensors) if one.is_floating_point()}
        fixed = {n: one for n, one in enumerate(tensors) if n not in moving}

        def lose(
            moving: dict[int, Tensor],
            fixed: dict[int, Tensor],
            targets: Tree,
            own: dict[str, Tensor],
        ) -> tuple[Tensor, LossParts]:
            both = moving | fixed
            return self._one(
                trees.unflatten([both[n] for n in range(len(both))], structure), targets, own
            )

        shared = self._is_shared(targets)
        if len(tensors[0]) == 1:
            own = {name: column[0] for name, column in columns.items()}
            # Plain autograd supports whatever a user's own loop would.
            with torch.enable_grad():
                leaves = {n: one[0].requires_grad_() for n, one in moving.items()}
                mean, parts = lose(
                    leaves,
                    {n: one[0] for n, one in fixed.items()},
                    targets if shared else trees.pick(targets, 0),
                    own,
                )
                found = (
                    torch.autograd.grad(mean, list(leaves.values()), allow_unused=True)
                    if mean.requires_grad
                    else [None] * len(leaves)
                )
            gradients = {
                n: (torch.zeros_like(leaf) if one is None else one).unsqueeze(0)
                for (n, leaf), one in zip(leaves.items(), found, strict=True)
            }
            mean, parts = (
                mean.detach().unsqueeze(0),
                {name: part.detach().unsqueeze(0) for name, part in parts.items()},
            )
        else:
            dims = (0, 0, None if shared else 0, 0)
            gradients, (mean, parts) = vmap(grad_and_value(lose, has_aux=True), in_dims=dims)(
                moving, fixed, targets, columns
            )
        gradient = trees.unflatten(
            [gradients.get(n, one) for n, one in enumerate(tensors)], structure
        )
        return Losses(mean, self._right(outputs, targets), gradient, parts)

    def evaluate(self, outputs: Tree, targets: Tree, values: Values) -> Evaluated:
        """See ``Objective``.

        Raises:
            TaskError: the loss is not a 0-d tensor, nor a dict of such.
            Exception: whatever the loss raises.
        """
        columns, first = _of_slots(values), trees.first_leaf(outputs)
        shared = self._is_shared(targets)
        if len(first) == 1:
            own = {name: column[0] for name, column in columns.items()}
            mean, parts = trees.map_leaves(
                lambda one: one.unsqueeze(0),
                self._one(
                    trees.pick(outputs, 0), targets if shared else trees.pick(targets, 0), own
                ),
            )
        else:
            mean, parts = vmap(self._one, in_dims=(0, None if shared else 0, 0))(
                outputs, targets, columns
            )
        n = first.shape[1]
        return Evaluated(
            mean.double() * n,
            self._right(outputs, targets),
            {name: part.double() * n for name, part in parts.items()},
        )

    def chance(self, values: Mapping[str, float]) -> float | None:
        """Return None: the chance loss of a task's own loss is unknown."""
        return None

    def _is_shared(self, targets: Tree) -> bool:
        return trees.first_leaf(targets).ndim == self.target_dims

    def _one(
        self, outputs: Tree, targets: Tree, own: dict[str, Tensor]
    ) -> tuple[Tensor, LossParts]:
        return take_apart(self.loss(outputs, targets, {**self.plain, **own}))

    def _right(self, outputs: Tree, targets: Tree) -> Tensor:
        if not self.classes:
            first = trees.first_leaf(outputs)
            return torch.zeros(len(first), dtype=torch.int64, device=first.device)
        return _correct(outputs, _index(outputs, targets))


def take_apart(loss: object) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total of what a task's own loss returned, and its parts by name.

    Raises:
        TaskError: it is not a 0-d tensor, nor a dict of such, or a name cannot be a metric's.
    """
    if not isinstance(loss, Mapping):
        return _check_number("loss(outputs, targets, hp)", loss), {}
    numbers = {
        name: _check_number(f"loss(outputs, targets, hp)[{name!r}]", one)
        for name, one in loss.items()
    }
    for name in numbers:
        metric = f"{PART_PREFIX}{name}"
        if name != TOTAL and (not METRIC_PATTERN.fullmatch(metric) or metric in CURVE_NAMES):
            raise TaskError(
                f"loss(outputs, targets, hp) names a part {name!r}, which would be measured as "
                f"{metric}; use another name, of small letters, digits and _"
            )
    if not numbers:
        raise TaskError("loss(outputs, targets, hp) gives an empty dict; return its parts in it")
    total = numbers.pop(TOTAL) if TOTAL in numbers else torch.stack([*numbers.values()]).sum()
    return total, numbers


def _check_number(what: str, number: object) -> Tensor:
    if not isinstance(number, Tensor) or number.shape != ():
        shape = tuple(number.shape) if isinstance(number, Tensor) else type(number).__name__
        raise TaskError(f"{what} gives {shape}; the mean over the batch as a 0-d tensor is needed")
    return number


OBJECTIVES: dict[str, type[CrossEntropy] | type[Hinge]] = {
    kind.name: kind for kind in (CrossEntropy, Hinge)
}


def cross_entropy(logits: Tensor, targets: Tensor) -> Losses:
    """Return the softmax cross-entropy of (K, B, C) logits.

    Targets are (B,), shared by all slots, or (K, B).
    """
    return CrossEntropy()(logits, targets, {})


def average(passes: Tensor) -> Tensor:
    """Average the probabilities of several passes (n, K, B, C). Return logits (K, B, C)."""
    logs = passes.log_softmax(-1).logsumexp(0)
    return logs - math.log(len(passes))


def _index(outputs: Tensor, targets: Tensor) -> Tensor:
    return targets.expand(outputs.shape[:2]).unsqueeze(-1)  # (K, B, 1)


def _correct(outputs: Tensor, index: Tensor) -> Tensor:
    return (outputs.argmax(-1, keepdim=True) == index).sum((1, 2))


def _lacking(outputs: Tensor, index: Tensor, values: Values) -> Tensor:
    """Return by how much each wrong class violates the margin, (K, B, C); 0 for the right class."""
    margin = values["margin"].unsqueeze(-1) if "margin" in values else 1.0
    lacking = (outputs - outputs.gather(-1, index) + margin).clamp_(min=0)
    return lacking.scatter_(-1, index, torch.zeros_like(index, dtype=outputs.dtype))


def _of_slots(values: Values) -> dict[str, Tensor]:
    return {name: column.squeeze(-1) for name, column in values.items()}  # (K,) each
