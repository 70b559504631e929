"""A whole step as a graph of tensor operations, to be run as it is or compiled.

The step is forward, loss, backward, penalties and update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from worker.tasks import trees
from worker.tasks.trees import Tree
from worker.training.math.losses import Objective
from worker.training.math.noise import DropoutMasks
from worker.training.math.optimizers import Columns
from worker.training.math.regularization import activation_penalty
from worker.training.math.update import Piece, update
from worker.training.model.network import Network
from worker.training.model.networks import ChainNetwork, network_for
from worker.training.model.structure import Model
from worker.training.model.vmap_networks import LoneNetwork
from worker.training.stacked.stack import Stack
from worker.training.stacked.step import Batch, Tensors

# With few classes, comparing an index with each of them is cheaper than indexing.
MOST_CLASSES = 64


class Untraceable(Exception):
    """A step cannot become a graph. The message says why."""


class Step:
    """One step as a function of tensors only. It changes those of ``Tensors`` in place."""

    def __init__(
        self,
        model: Model,
        network: Network,
        objective: Objective,
        shared: bool,
        noise: DropoutMasks | None,
    ) -> None:
        """Set up the step.

        Args:
            model: the model of the array.
            network: is bound to the tensors of each call, so nothing else can use it.
            objective: the loss.
            shared: whether all slots see the same batch.
            noise: if given, the step also returns what a compiled step does: the gradients, and the
                hashes of the next step's noise.
        """
        self._model, self._network, self._objective = model, network, objective
        self._places = model.layout.places(bool(model.recipe.kinds["decay_biases"]))
        self._shared, self._noise = shared, noise
        self.parts: tuple[str, ...] = ()  # names of the parts of the loss, known after a call

    def __call__(
        self, tensors: Tensors, inputs: Tree, targets: Tree, columns: Columns, next_keys: Tensor
    ) -> list[Tensor]:
        """See ``step.Whole``."""
        weights = tensors.weights
        with torch.no_grad():
            gradients = {
                name: torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
                for name, weight in weights.items()
            }
            self._network.bind_views(weights, gradients, tensors.buffers)
            strength = columns.get("activation_l1")
            outputs = self._network.forward(
                inputs, self._shared, tensors.masks, activity=strength is not None
            )
            losses = self._objective(outputs, targets, tensors.values)
            self.parts = tuple(losses.parts)
            self._network.backward(
                losses.gradient, None if strength is None else strength.squeeze(-1)
            )
            kept = (
                [gradient.clone() for gradient in gradients.values()]
                if self._noise is not None
                else []
            )
            kept += self._noise.hashes(next_keys, tensors.tables) if self._noise is not None else []
            penalty = update(
                self._model.recipe.rule,
                self._pieces(tensors, gradients),
                weights,
                columns,
                tensors.limits,
            )
            if strength is not None:
                penalty = penalty + activation_penalty(self._network.activity, strength)
        return [losses.mean, losses.correct, penalty, *losses.parts.values(), *kept]

    def _pieces(self, tensors: Tensors, gradients: Columns) -> list[Piece]:
        pieces = []
        for name, weight in tensors.weights.items():
            flat, gradient = weight.flatten(1), gradients[name].flatten(1)
            states = [of_one[name].flatten(1) for of_one in tensors.states.values()]
            average = tensors.averages[name].flatten(1) if tensors.averages else None
            group, decays = self._places[name]
            pieces.append(
                Piece(
                    flat,
                    gradient,
                    states,
                    average,
                    torch.empty_like(gradient),
                    flat.shape[1] if decays else 0,
                    group=group,
                )
            )
        return pieces


class Graph:
    """A traced step, called with the list of tensors that a stack keeps."""

    def __init__(
        self,
        run: Callable[..., Sequence[Tensor]],
        names: Sequence[str],
        compiled: bool,
        parts: Sequence[str] = (),
    ) -> None:
        """Wrap ``run``.

        Args:
            run: takes the static tensors, inputs, targets, keys, and then the columns.
            names: the columns, in the order that ``run`` takes them.
            compiled: whether ``run`` is compiled.
            parts: the names of the parts of the loss.
        """
        self.run = run
        self.compiled = compiled
        self.parts = parts
        self._names = names

    def __call__(
        self,
        static: Sequence[Tensor],
        inputs: Tree,
        targets: Tree,
        columns: Columns,
        next_keys: Tensor,
    ) -> Sequence[Tensor]:
        """See ``step.Whole``."""
        return self.run(
            *static,
            *trees.list_leaves(inputs),
            *trees.list_leaves(targets),
            next_keys,
            *(columns[name] for name in self._names),
        )


def copy_inputs(stack: Stack, batch: Batch, keys: Tensor) -> list[Tensor]:
    """Copy all tensors that a step of the stack is called with.

    Each copy has its own memory, so that a compiler sees that none overlap.
    """
    names = sorted(batch.columns)
    return [
        _apart(t)
        for t in (
            *stack.tensors.list_tensors(),
            *trees.list_leaves(batch.inputs),
            *trees.list_leaves(batch.targets),
            keys,
            *(batch.columns[name] for name in names),
        )
    ]


def trace(
    stack: Stack, shared: bool, batch: Batch, keys: Tensor, to_compile: bool
) -> tuple[GraphModule, tuple[str, ...]]:
    """Trace the step of a stack into a graph. The stack is unchanged afterwards.

    Args:
        stack: the array's tensors.
        shared: whether all slots see the same inputs.
        batch: the augmented batch of one step.
        keys: (K, L, 2), the keys of its noise.
        to_compile: whether the graph returns what compiled steps do. This slows a graph that is not
            compiled.

    Returns:
        The graph, and the names of the parts of the loss.

    Raises:
        Untraceable: the step draws random numbers itself, or differs from call to call.
        Exception: whatever the model raises under the tracer.
    """
    if stack.model.structure.alone:
        raise Untraceable("a model that cannot be stacked trains alone")
    network = (
        LoneNetwork(stack.model)
        if isinstance(stack.network, LoneNetwork)
        else network_for(stack.model, lone=False)
    )
    step = Step(
        stack.model,
        network,
        stack.objective,
        shared,
        stack.noise if to_compile else None,
    )
    example, names = stack.tensors, sorted(batch.columns)
    n_static = len(example.list_tensors())
    given, structure = trees.flatten((batch.inputs, batch.targets))
    n_given = n_static + len(given)

    def flat_step(*tensors: Tensor) -> list[Tensor]:
        x, y = trees.unflatten(tensors[n_static:n_given], structure)
        next_keys, *own = tensors[n_given:]
        return step(
            example.relist(tensors[:n_static]), x, y, dict(zip(names, own, strict=True)), next_keys
        )

    apart = copy_inputs(stack, batch, keys)
    graph = _trace(flat_step, apart)
    _check_steady(graph, flat_step, apart, again=not isinstance(network, ChainNetwork))
    return graph, step.parts


def _trace(step: Callable[..., Any], tensors: Sequence[Tensor]) -> GraphModule:
    # The import takes most of a second, so it is done only when something is traced.
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(step, decomposition_table=DECOMPOSITIONS)(*tensors)


def _apart(tensor: Tensor) -> Tensor:
    copy = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return copy.copy_(tensor.detach())


def _check_steady(
    graph: GraphModule, step: Callable[..., Any], tensors: Sequence[Tensor], again: bool
) -> None:
    """Refuse what a graph would freeze: random numbers, and Python code that varies between calls.

    Raises:
        Untraceable: the step has one of them.
    """
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Untraceable(f"the model draws random numbers by {node.target}")
    if not again:
        return
    second = _trace(step, tensors)
    if second.code != graph.code or not _same_constants(graph, second):
        raise Untraceable("the model does not do the same at each call")


def _same_constants(one: GraphModule, other: GraphModule) -> bool:
    mine, theirs = dict(one.named_buffers()), dict(other.named_buffers())
    return mine.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in mine.items()
    )


def _product_and_sum(
    bias: Tensor, rows: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """Split baddbmm, so that a compiler fuses the bias with the activation."""
    product: Tensor = torch.bmm(rows, weight)
    return (product if alpha == 1 else product * alpha) + (bias if beta == 1 else bias * beta)


def _product_in_place(
    tensor: Tensor, rows: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    """Write a product over a tensor. A compiler would copy the old numbers first."""
    if beta != 0 or alpha != 1:
        return NotImplemented
    return tensor.copy_(torch.bmm(rows, weight))


def _is_column(tensor: Tensor, dim: int, index: Tensor) -> bool:
    """Return whether the index picks one of few numbers in each row."""
    return (
        dim in (-1, tensor.dim() - 1)
        and index.shape[-1] == 1
        and index.shape[:-1] == tensor.shape[:-1]
        and tensor.shape[-1] <= MOST_CLASSES
    )


def _numbers(tensor: Tensor) -> Tensor:
    """Return the class numbers in the dtype of the outputs.

    A compiler vectorizes operations on equal types only.
    """
    return torch.arange(tensor.shape[-1], device=tensor.device, dtype=tensor.dtype)


def _largest(tensor: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """Return the index of each row's largest number, the first of several."""
    if (
        dim not in (-1, tensor.dim() - 1)
        or not tensor.is_floating_point()
        or tensor.shape[-1] > MOST_CLASSES
    ):
        return NotImplemented
    largest = tensor.amax(-1, keepdim=True)
    return (
        torch.where(tensor == largest, _numbers(tensor), float(tensor.shape[-1]))
        .amin(-1, keepdim=keepdim)
        .to(torch.int64)
    )


def _hot(tensor: Tensor, index: Tensor) -> Tensor:
    return torch.eq(index.to(tensor.dtype), _numbers(tensor))


def _choose(tensor: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Any:
    """Pick one number of each row by comparison: a compiler does not vectorize indexing."""
    if not _is_column(tensor, dim, index):
        return NotImplemented
    return torch.where(_hot(tensor, index), tensor, 0.0).sum(-1, keepdim=True)


def _add(tensor: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    """Add a number to one number of each row, by comparison."""
    if not _is_column(tensor, dim, index) or source.shape != index.shape:
        return NotImplemented
    return torch.where(_hot(tensor, index), tensor + source, tensor)


def _add_in_place(tensor: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    found = _add(tensor, dim, index, source)
    return found if found is NotImplemented else tensor.copy_(found)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.baddbmm.default: _product_and_sum,
    torch.ops.aten.baddbmm_.default: _product_in_place,
    torch.ops.aten.argmax.default: _largest,
    torch.ops.aten.gather.default: _choose,
    torch.ops.aten.scatter_add.default: _add,
    torch.ops.aten.scatter_add_.default: _add_in_place,
}
