"""Inputs and results of one training step of an array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from worker.tasks.trees import Tree
from worker.training.math.losses import NO_PARTS, LossParts
from worker.training.math.optimizers import Columns


class Frame(NamedTuple):
    """The facts about the data that a step needs."""

    per_epoch: int  # steps
    batch_shape: tuple[int, ...]  # (B, ...) of the first tensor of one slot's inputs
    image_shape: tuple[int, ...] | None  # (H, W) or (C, H, W); None if inputs are no images


class Pace(NamedTuple):
    """The progress of each slot, for schedules. Each list has K values."""

    steps: Sequence[int]  # steps done
    # Steps that schedules run over: those of the longest budget that the trial may get.
    totals: Sequence[int]
    drops: Sequence[int]  # drops of the rate by plateaus so far
    momentum_off: Sequence[bool]  # whether a plateau switched momentum off

    @classmethod
    def start(cls, width: int) -> Pace:
        """Return the pace of slots at their first step."""
        return cls([0] * width, [1] * width, [0] * width, [False] * width)


class Plan(NamedTuple):
    """The prepared inputs of the steps of a segment. Dimension 0 is the step."""

    batches: Tensor  # (n, B) row numbers if all slots share them, else (n, K, B)
    shared: bool
    keys: Tensor  # (n, K, L + 2, 2) for the dropout layers, then the OTHER_KEYS
    columns: Columns  # (n, K, 1) each
    rates: Tensor  # (n, K) learning rates
    seeds: list[int]  # (n) for a module that draws its own noise and trains alone


class Looked(NamedTuple):
    """Additional results of a watched step."""

    before: Tensor  # (K, P) parameters before the update
    # (K, n) norms of the parts of the gradient of the batch loss, before clipping and
    # regularisation.
    gradients: Tensor


class StepResult(NamedTuple):
    """The result of a step for each slot, on the device."""

    loss: Tensor  # (K,) data loss before the update
    correct: Tensor  # (K,) correct examples of the batch
    penalty: Tensor  # (K,) regularisation term of the loss before the update
    looked: Looked | None = None
    parts: LossParts = NO_PARTS  # (K,) parts of the data loss before the update, by name


class Tensors(NamedTuple):
    """All tensors that a step reads or changes, by name.

    Each parameter has its own shape, (K, ...).
    """

    weights: Columns
    states: Mapping[str, Columns]  # of the update rule
    averages: Columns  # running averages of the weights; empty if none are kept
    buffers: Columns
    masks: Sequence[Tensor]
    limits: Columns
    values: Columns  # hyperparameters that the objective reads
    tables: Sequence[Tensor]  # tables for hashing noise

    def list_tensors(self) -> list[Tensor]:
        """Return all tensors in a fixed order."""
        named = (
            self.weights,
            *self.states.values(),
            self.averages,
            self.buffers,
            self.limits,
            self.values,
        )
        return [
            *(tensor for columns in named for tensor in columns.values()),
            *self.masks,
            *self.tables,
        ]

    def relist(self, tensors: Sequence[Tensor]) -> Tensors:
        """Return the same names with other tensors, given in the order of ``list_tensors``."""
        rest = iter(tensors)
        weights = {name: next(rest) for name in self.weights}
        states = {
            state: {name: next(rest) for name in columns} for state, columns in self.states.items()
        }
        averages_, buffers, limits, values = (
            {name: next(rest) for name in columns}
            for columns in (self.averages, self.buffers, self.limits, self.values)
        )
        masks, tables = [next(rest) for _ in self.masks], [next(rest) for _ in self.tables]
        return Tensors(weights, states, averages_, buffers, masks, limits, values, tables)


class Batch(NamedTuple):
    """The inputs of a step that change from step to step."""

    inputs: Tree
    targets: Tree
    columns: Columns


class Whole(Protocol):
    """A whole step as one call, from augmented inputs to updated weights."""

    compiled: bool  # whether it also returns gradients, for watched steps, and hashes
    parts: Sequence[str]  # names of the parts of the loss

    def __call__(
        self,
        static: Sequence[Tensor],
        inputs: Tree,
        targets: Tree,
        columns: Columns,
        next_keys: Tensor,
    ) -> Sequence[Tensor]:
        """Update the tensors in ``static``, which are in the order of ``Tensors.list_tensors``.

        Returns:
            Loss, correct, penalty and each of the parts, (K,) each. If it is compiled, then the
                gradients (K, ...), and the hashes of ``next_keys``.
        """
        ...
