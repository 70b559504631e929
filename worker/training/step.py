"""What one step of an array reads, moves and leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from worker.training.optimizers import Columns


class Frame(NamedTuple):
    """What of the data a step has to know."""

    per_epoch: int  # steps
    batch_shape: tuple[int, ...]  # (B, ...) of one slot's inputs
    image_shape: tuple[int, ...] | None  # (H, W) or (C, H, W) of an input that is an image


class Pace(NamedTuple):
    """Where each slot stands, for schedules; lists of K."""

    steps: Sequence[int]  # done
    totals: Sequence[int]  # the budgets, in steps
    drops: Sequence[int]  # by plateaus so far
    momentum_off: Sequence[bool]  # by a plateau

    @classmethod
    def start(cls, width: int) -> Pace:
        """Slots at their first step."""
        return cls([0] * width, [1] * width, [0] * width, [False] * width)


class Plan(NamedTuple):
    """What the steps of a segment need, made beforehand; index 0 is the step."""

    batches: Tensor  # (n, B) row numbers where all slots share them, else (n, K, B)
    shared: bool
    keys: Tensor  # (n, K, L + 2, 2) of the dropout noise, then those of OTHER_KEYS
    columns: Columns  # (n, K, 1) each
    rates: Tensor  # (n, K) learning rates
    seeds: list[int]  # (n) for a module that draws its own noise, where it is alone


class Looked(NamedTuple):
    """What a step that is looked at leaves besides."""

    before: Tensor  # (K, P) the parameters before the update
    gradients: Tensor  # (K, n) norms of parts of the gradient of the loss on the batch, before clipping and regularisation


class StepResult(NamedTuple):
    """What a step leaves of each slot, on the device."""

    loss: Tensor  # (K,) data loss before the update
    correct: Tensor  # (K,) examples of the batch
    penalty: Tensor  # (K,) the regularisation term that belongs to the loss, before the update
    looked: Looked | None = None


class Tensors(NamedTuple):
    """What a step reads and moves, by name; the parameters' own shapes, (K, ...) each."""

    weights: Columns
    states: Mapping[str, Columns]  # of the update rule
    averages: Columns  # of the weights; empty where none are kept
    buffers: Columns
    masks: Sequence[Tensor]
    limits: Columns
    values: Columns  # what the objective reads
    tables: Sequence[Tensor]  # that noise is hashed from

    def listed(self) -> list[Tensor]:
        """All of them, in an order of their own."""
        named = (self.weights, *self.states.values(), self.averages, self.buffers, self.limits, self.values)
        return [*(tensor for columns in named for tensor in columns.values()), *self.masks, *self.tables]

    def relisted(self, tensors: Sequence[Tensor]) -> Tensors:
        """The same names for other tensors, which come in the order of ``listed``."""
        rest = iter(tensors)
        weights = {name: next(rest) for name in self.weights}
        states = {state: {name: next(rest) for name in columns} for state, columns in self.states.items()}
        averages_, buffers, limits, values = (
            {name: next(rest) for name in columns} for columns in (self.averages, self.buffers, self.limits, self.values)
        )
        masks, tables = [next(rest) for _ in self.masks], [next(rest) for _ in self.tables]
        return Tensors(weights, states, averages_, buffers, masks, limits, values, tables)


class Batch(NamedTuple):
    """What changes from step to step."""

    inputs: Tensor
    targets: Tensor
    columns: Columns


class Whole(Protocol):
    """A whole step as one call, from augmented inputs to moved weights."""

    compiled: bool  # whether it gives gradients, so that it can be looked at, and hashes

    def __call__(self, static: Sequence[Tensor], inputs: Tensor, targets: Tensor, columns: Columns, next_keys: Tensor) -> Sequence[Tensor]:
        """Moves what ``static`` lists (``Tensors.listed``).

        Returns:
            Loss, correct, penalty, (K,) each; if it is compiled, then the gradients (K, ...), and the hashes of ``next_keys``.
        """
        ...
