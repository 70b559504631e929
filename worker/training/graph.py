"""A whole step as a graph of tensor operations: forward, loss, backward, penalties, update. It can be run as it is, or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from worker.training.called import LoneNetwork
from worker.training.losses import Objective
from worker.training.network import Network
from worker.training.networks import ChainNetwork, network_for
from worker.training.noise import DropoutMasks
from worker.training.optimizers import Columns
from worker.training.stack import Stack
from worker.training.step import Batch, Tensors
from worker.training.structure import Model
from worker.training.update import Piece, update

MOST_CLASSES = 64  # to compare an index with each of them is cheaper than to fetch; with many it is not


class Untraceable(Exception):
    """A step that does not become a graph, and why."""


class Step:
    """One step as a function of nothing but tensors; it moves those of ``Tensors`` in place."""

    def __init__(
        self, model: Model, network: Network, objective: Objective, n_decayed: int, shared: bool, noise: DropoutMasks | None
    ) -> None:
        """``network`` is used up: it is bound to whatever the step is called with. With ``noise`` it gives what a compiled one does."""
        self._model, self._network, self._objective = model, network, objective
        self._n_decayed, self._shared = n_decayed, shared
        self._noise = noise

    def __call__(self, tensors: Tensors, inputs: Tensor, targets: Tensor, columns: Columns, next_keys: Tensor) -> list[Tensor]:
        """See ``stack.Whole``."""
        weights = tensors.weights
        with torch.no_grad():
            gradients = {name: torch.empty(weight.shape, dtype=weight.dtype, device=weight.device) for name, weight in weights.items()}
            self._network.bind_views(weights, gradients, tensors.buffers)
            outputs = self._network.forward(inputs, self._shared, tensors.masks)
            losses = self._objective(outputs, targets, tensors.values)
            self._network.backward(losses.gradient)
            kept = [gradient.clone() for gradient in gradients.values()] if self._noise is not None else []
            kept += self._noise.hashes(next_keys, tensors.tables) if self._noise is not None else []
            penalty = update(self._model.recipe.rule, self._pieces(tensors, gradients), weights, columns, tensors.limits)
        return [losses.mean, losses.correct, penalty, *kept]

    def _pieces(self, tensors: Tensors, gradients: Columns) -> list[Piece]:
        pieces, column = [], 0
        for name, weight in tensors.weights.items():
            flat, gradient = weight.flatten(1), gradients[name].flatten(1)
            states = [of_one[name].flatten(1) for of_one in tensors.states.values()]
            average = tensors.averages[name].flatten(1) if tensors.averages else None
            decays = column < self._n_decayed
            pieces.append(Piece(flat, gradient, states, average, torch.empty_like(gradient), flat.shape[1] if decays else 0))
            column += flat.shape[1]
        return pieces


class Graph:
    """A traced step, called with the list that a stack keeps."""

    def __init__(self, run: Callable[..., Sequence[Tensor]], names: Sequence[str], compiled: bool) -> None:
        """``names``: of the columns, in the order that ``run`` takes them after the static tensors, inputs, targets and keys."""
        self.run = run
        self.compiled = compiled
        self._names = names

    def __call__(self, static: Sequence[Tensor], inputs: Tensor, targets: Tensor, columns: Columns, next_keys: Tensor) -> Sequence[Tensor]:
        """See ``stack.Whole``."""
        return self.run(*static, inputs, targets, next_keys, *(columns[name] for name in self._names))


def given(stack: Stack, batch: Batch, keys: Tensor) -> list[Tensor]:
    """All that a step of the stack is called with, each tensor with memory of its own, so that a compiler sees that none overlap."""
    names = sorted(batch.columns)
    return [_apart(t) for t in (*stack.tensors.listed(), batch.inputs, batch.targets, keys, *(batch.columns[name] for name in names))]


def trace(stack: Stack, shared: bool, batch: Batch, keys: Tensor, to_compile: bool) -> GraphModule:
    """The step of a stack as a graph; nothing of the stack is moved.

    Args:
        stack: the array's tensors.
        shared: whether all slots see the same inputs.
        batch: of one step, augmented.
        keys: (K, L, 2) of its noise.
        to_compile: whether the graph gives what compiled steps do, which costs an uncompiled one some time.

    Raises:
        Untraceable: the step draws random numbers of its own, or is not the same each time.
        Exception: whatever the model does under the tracer.
    """
    if stack.model.structure.alone:
        raise Untraceable("what cannot be stacked is trained as it is")
    network = LoneNetwork(stack.model) if isinstance(stack.network, LoneNetwork) else network_for(stack.model, lone=False)
    step = Step(stack.model, network, stack.objective, stack.n_decayed, shared, stack.noise if to_compile else None)
    example, names = stack.tensors, sorted(batch.columns)
    n_static = len(example.listed())

    def flat_step(*tensors: Tensor) -> list[Tensor]:
        static, (x, y, next_keys), own = tensors[:n_static], tensors[n_static : n_static + 3], tensors[n_static + 3 :]
        return step(example.relisted(static), x, y, dict(zip(names, own, strict=True)), next_keys)

    apart = given(stack, batch, keys)
    graph = _traced(flat_step, apart)
    _check_steady(graph, flat_step, apart, again=not isinstance(network, ChainNetwork))
    return graph


def _traced(step: Callable[..., Any], tensors: Sequence[Tensor]) -> GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx  # takes most of a second: only who traces pays for it

    return make_fx(step, decomposition_table=DECOMPOSITIONS)(*tensors)


def _apart(tensor: Tensor) -> Tensor:
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor.detach())


def _check_steady(graph: GraphModule, step: Callable[..., Any], tensors: Sequence[Tensor], again: bool) -> None:
    """Refuses what a graph would freeze: random numbers, and Python that does something else at each call."""
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Untraceable(f"the model draws random numbers by {node.target}")
    if not again:
        return
    second = _traced(step, tensors)
    if second.code != graph.code or not _same_constants(graph, second):
        raise Untraceable("the model does not do the same at each call")


def _same_constants(one: GraphModule, other: GraphModule) -> bool:
    mine, theirs = dict(one.named_buffers()), dict(other.named_buffers())
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def _product_and_sum(bias: Tensor, rows: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Apart, so that a compiler adds the bias where it applies the activation."""
    product: Tensor = torch.bmm(rows, weight)
    return (product if alpha == 1 else product * alpha) + (bias if beta == 1 else bias * beta)


def _is_column(tensor: Tensor, dim: int, index: Tensor) -> bool:
    """Whether one number of each row is meant, of few."""
    return (
        dim in (-1, tensor.dim() - 1)
        and index.shape[-1] == 1
        and index.shape[:-1] == tensor.shape[:-1]
        and tensor.shape[-1] <= MOST_CLASSES
    )


def _numbers(tensor: Tensor) -> Tensor:
    """Of the classes, in the precision of the outputs: a compiler makes vectors of equal types only."""
    return torch.arange(tensor.shape[-1], device=tensor.device, dtype=tensor.dtype)


def _largest(tensor: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The first of the largest numbers of each row."""
    if dim not in (-1, tensor.dim() - 1) or not tensor.is_floating_point() or tensor.shape[-1] > MOST_CLASSES:
        return NotImplemented
    largest = tensor.amax(-1, keepdim=True)
    return torch.where(tensor == largest, _numbers(tensor), float(tensor.shape[-1])).amin(-1, keepdim=keepdim).to(torch.int64)


def _hot(tensor: Tensor, index: Tensor) -> Tensor:
    return torch.eq(index.to(tensor.dtype), _numbers(tensor))


def _chosen(tensor: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Any:
    """One number of each row, by comparison: a compiler makes no vectors of indices."""
    if not _is_column(tensor, dim, index):
        return NotImplemented
    return torch.where(_hot(tensor, index), tensor, 0.0).sum(-1, keepdim=True)


def _added(tensor: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    """A number added to one of each row, by comparison."""
    if not _is_column(tensor, dim, index) or source.shape != index.shape:
        return NotImplemented
    return torch.where(_hot(tensor, index), tensor + source, tensor)


def _added_in_place(tensor: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    found = _added(tensor, dim, index, source)
    return found if found is NotImplemented else tensor.copy_(found)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.baddbmm.default: _product_and_sum,
    torch.ops.aten.argmax.default: _largest,
    torch.ops.aten.gather.default: _chosen,
    torch.ops.aten.scatter_add.default: _added,
    torch.ops.aten.scatter_add_.default: _added_in_place,
}
