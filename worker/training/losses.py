"""What is minimised: losses of stacked outputs, with their gradients. Nothing of one slot enters another's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from common.errors import TaskError
from common.space import Scalar

Values = Mapping[str, Tensor]  # (K, 1) columns in the training dtype, by hyperparameter; one that no slot uses may be missing
OwnLoss = Callable[[Tensor, Tensor, Mapping[str, "Scalar | Tensor"]], Tensor]


class Losses(NamedTuple):
    """What a batch says of each slot."""

    mean: Tensor  # (K,) mean loss of an example
    correct: Tensor  # (K,) number of examples whose class has the highest output; 0 where there are no classes
    gradient: Tensor  # (K, B, ...) of each slot's mean loss with respect to its outputs


class Objective(Protocol):
    """A loss and its gradient, for all slots at once. Equal objectives may share an array."""

    reads: ClassVar[tuple[str, ...]]  # the engine's numbers whose columns it takes

    def __call__(self, outputs: Tensor, targets: Tensor, values: Values) -> Losses:
        """The training loss.

        Args:
            outputs: (K, B, C), or (K, B, ...) for a task's own loss.
            targets: (B, ...) shared by all slots, or (K, B, ...).
            values: columns of what it ``reads``; for a task's own loss, of what it is to find in ``hp`` as tensors.
        """
        ...

    def evaluate(self, outputs: Tensor, targets: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        """(K,) sum of the examples' losses in float64, and (K,) how many are right, of validation outputs."""
        ...

    def chance(self, values: Mapping[str, float]) -> float | None:
        """The loss of who gives all classes the same output, for one slot's hyperparameters; None where nobody can say."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax and cross-entropy in nats. ``label_smoothing`` e: targets are 1 - e + e / C for the right class and e / C for the others.

    The validation loss leaves the smoothing out: it is the cross-entropy of the true class, whatever a trial was trained with, so that
    trials can be compared.

    Source: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 7; ``torch.nn.CrossEntropyLoss``.
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
            # chosen, not added: a class that is ruled out by an output of -inf stays without effect where nothing is smoothed
            hit = torch.where(share > 0, hit * (1 - share) + shifted.mean(-1, keepdim=True) * share, hit)
            spread = spread * (1 - share)
            gradient = exponentials.div_(total).sub_(share / outputs.shape[-1])
        mean = (total.log() - hit).mean((1, 2))
        gradient = gradient.scatter_add_(-1, index, spread).div_(outputs.shape[1])
        return Losses(mean, _correct(outputs, index), gradient)

    def evaluate(self, outputs: Tensor, targets: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        """See ``Objective``."""
        index = _index(outputs, targets)
        losses = outputs.logsumexp(-1, keepdim=True) - outputs.gather(-1, index)
        return losses.sum((1, 2), dtype=torch.float64), _correct(outputs, index)

    def chance(self, values: Mapping[str, float]) -> float | None:
        """The logarithm of C, whatever the smoothing."""
        return None if self.n_classes is None else math.log(self.n_classes)


@dataclass(frozen=True)
class Hinge:
    """The multi-class support vector machine: of each example the sum over wrong classes j of max(0, ``margin`` + s_j - s_y).

    ``torch.nn.MultiMarginLoss`` is the same divided by the number of classes.

    Source: Weston, Watkins, "Multi-Class Support Vector Machines", 1998; CS231n notes, "Linear Classification".
    """

    n_classes: int | None = None
    name: ClassVar[str] = "hinge"
    reads: ClassVar[tuple[str, ...]] = ("margin",)

    def __call__(self, outputs: Tensor, targets: Tensor, values: Values) -> Losses:
        """See ``Objective``. At a kink the gradient is that of the flat side, as torch's is."""
        index = _index(outputs, targets)
        lacking = _lacking(outputs, index, values)
        mean = lacking.sum(-1).mean(1)
        gradient = (lacking > 0).to(outputs.dtype)
        gradient = gradient.scatter_(-1, index, -gradient.sum(-1, keepdim=True)).div_(outputs.shape[1])
        return Losses(mean, _correct(outputs, index), gradient)

    def evaluate(self, outputs: Tensor, targets: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        """See ``Objective``. With each slot's own margin."""
        index = _index(outputs, targets)
        return _lacking(outputs, index, values).sum((1, 2), dtype=torch.float64), _correct(outputs, index)

    def chance(self, values: Mapping[str, float]) -> float | None:
        """(C - 1) margins."""
        return None if self.n_classes is None else (self.n_classes - 1) * values.get("margin", 1.0)


@dataclass(frozen=True)
class Own:
    """A task's ``loss(outputs, targets, hp)``: the mean over one trial's batch as a 0-d tensor, by autograd, stacked by ``torch.vmap``.

    In ``hp``, numbers that have a column arrive as 0-d tensors; kinds and whole numbers as they are. With one slot it is called
    without vmap, so that a loss which vmap does not understand can be used by trials that train alone.
    """

    loss: OwnLoss
    plain: Mapping[str, Scalar] = field(default_factory=dict, hash=False)  # kinds and whole numbers, the same for all slots of an array
    classes: bool = True  # whether targets are class numbers and outputs scores of classes
    target_dims: int = 1  # dimensions of the targets of one batch, (B,) or (B, ...): with one more they are each slot's own
    name: ClassVar[str] = "own"
    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, outputs: Tensor, targets: Tensor, values: Values) -> Losses:
        """See ``Objective``.

        Raises:
            TaskError: the loss is not a 0-d tensor.
            Exception: whatever the loss raises.
        """
        outputs, columns = outputs.detach(), _of_slots(values)
        if len(outputs) == 1:
            own = {name: column[0] for name, column in columns.items()}
            found = grad_and_value(self._one)(outputs[0], targets if self._shared(targets) else targets[0], own)
            gradient, mean = (tensor.unsqueeze(0) for tensor in found)
        else:
            dims = (0, None if self._shared(targets) else 0, 0)
            gradient, mean = vmap(grad_and_value(self._one), in_dims=dims)(outputs, targets, columns)
        return Losses(mean, self._right(outputs, targets), gradient)

    def evaluate(self, outputs: Tensor, targets: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        """See ``Objective``.

        Raises:
            TaskError: the loss is not a 0-d tensor.
            Exception: whatever the loss raises.
        """
        columns = _of_slots(values)
        if len(outputs) == 1:
            own = {name: column[0] for name, column in columns.items()}
            mean = self._one(outputs[0], targets if self._shared(targets) else targets[0], own).unsqueeze(0)
        else:
            mean = vmap(self._one, in_dims=(0, None if self._shared(targets) else 0, 0))(outputs, targets, columns)
        return mean.double() * outputs.shape[1], self._right(outputs, targets)

    def chance(self, values: Mapping[str, float]) -> float | None:
        """Nobody can say."""
        return None

    def _shared(self, targets: Tensor) -> bool:
        return targets.ndim == self.target_dims

    def _one(self, outputs: Tensor, targets: Tensor, own: dict[str, Tensor]) -> Tensor:
        loss = self.loss(outputs, targets, {**self.plain, **own})
        if not isinstance(loss, Tensor) or loss.shape != ():
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise TaskError(f"loss(outputs, targets, hp) gives {shape}; the mean over the batch as a 0-d tensor is needed")
        return loss

    def _right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not self.classes:
            return torch.zeros(len(outputs), dtype=torch.int64, device=outputs.device)
        return _correct(outputs, _index(outputs, targets))


OBJECTIVES: dict[str, type[CrossEntropy] | type[Hinge]] = {kind.name: kind for kind in (CrossEntropy, Hinge)}


def cross_entropy(logits: Tensor, targets: Tensor) -> Losses:
    """Plain softmax cross-entropy of (K, B, C) logits with targets (B,) shared by all slots, or (K, B)."""
    return CrossEntropy()(logits, targets, {})


def averaged(passes: Tensor) -> Tensor:
    """Logits (K, B, C) of the mean of the probabilities of several passes (n, K, B, C)."""
    logs = passes.log_softmax(-1).logsumexp(0)
    return logs - math.log(len(passes))


def _index(outputs: Tensor, targets: Tensor) -> Tensor:
    return targets.expand(outputs.shape[:2]).unsqueeze(-1)  # (K, B, 1)


def _correct(outputs: Tensor, index: Tensor) -> Tensor:
    return (outputs.argmax(-1, keepdim=True) == index).sum((1, 2))


def _lacking(outputs: Tensor, index: Tensor, values: Values) -> Tensor:
    """(K, B, C) by how much each wrong class's score is not a margin below the right one's; 0 for the right class."""
    margin = values["margin"].unsqueeze(-1) if "margin" in values else 1.0
    lacking = (outputs - outputs.gather(-1, index) + margin).clamp_(min=0)
    return lacking.scatter_(-1, index, torch.zeros_like(index, dtype=outputs.dtype))


def _of_slots(values: Values) -> dict[str, Tensor]:
    return {name: column.squeeze(-1) for name, column in values.items()}  # (K,) each
