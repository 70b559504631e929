"""Tensors in tuples, lists and dicts, nested at will: inputs, targets and outputs.

A single tensor is the simplest tree, and passes through each function without further cost. The
outputs of a model may use any container that ``torch.utils._pytree`` knows, as ``torch.vmap`` does.
Inputs and targets are plain dicts, tuples and lists, so that a checkpoint can describe them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

Tree = Any  # a tensor, or a container of trees
DICT, TUPLE, LIST = "dict", "tuple", "list"


def flatten(tree: Tree) -> tuple[list[Any], _pytree.TreeSpec]:
    """Return the leaves of a tree in order, and its structure for ``unflatten``."""
    return _pytree.tree_flatten(tree)


def unflatten(leaves: Sequence[Any], structure: _pytree.TreeSpec) -> Tree:
    """Return a tree of that structure with these leaves."""
    return _pytree.tree_unflatten(leaves, structure)


def list_leaves(tree: Tree) -> list[Any]:
    """Return the leaves in order."""
    return [tree] if isinstance(tree, Tensor) else _pytree.tree_leaves(tree)


def first_leaf(tree: Tree) -> Tensor:
    """Return the first leaf. All leaves of a batch are on one device and have as many examples."""
    leaf: Tensor = list_leaves(tree)[0]
    return leaf


def map_leaves(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Return the tree with ``function`` applied to each leaf, and to those of ``others`` there."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    return _pytree.tree_map(function, tree, *others)


def pick(tree: Tree, index: Any) -> Tree:
    """Return ``leaf[index]`` of each leaf."""
    return tree[index] if isinstance(tree, Tensor) else map_leaves(lambda leaf: leaf[index], tree)


def count_rows(tree: Tree) -> int:
    """Return the length of the first dimension."""
    return len(first_leaf(tree))


def join(trees: Sequence[Tree], dim: int = 0) -> Tree:
    """Concatenate trees of one structure, leaf by leaf."""
    return map_leaves(lambda *leaves: torch.cat(leaves, dim=dim), *trees)


def stack(trees: Sequence[Tree]) -> Tree:
    """Stack trees of one structure, leaf by leaf, along a new first dimension."""
    return map_leaves(lambda *leaves: torch.stack(leaves), *trees)


def split(tree: Tree, size: int) -> Iterator[Tree]:
    """Yield the rows of a tree, at most ``size`` at a time."""
    for start in range(0, count_rows(tree), size):
        yield pick(tree, slice(start, start + size))


def move(tree: Tree, device: torch.device, dtype: torch.dtype, non_blocking: bool = False) -> Tree:
    """Return the tree on a device. Floating-point leaves get ``dtype``, others keep theirs."""
    return map_leaves(
        lambda leaf: leaf.to(
            device, dtype if leaf.is_floating_point() else leaf.dtype, non_blocking=non_blocking
        ),
        tree,
    )


def name_leaves(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of plain containers by name: keys and places joined by dots.

    The leaf of a tree that is a single tensor has the name ``prefix``. Any other container is one
    leaf.
    """
    if type(tree) is dict:
        items = [(str(key), value) for key, value in tree.items()]
    elif type(tree) in (tuple, list):
        items = [(str(place), value) for place, value in enumerate(tree)]
    else:
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= name_leaves(value, f"{prefix}.{key}" if prefix else key)
    return found


def describe(tree: Tree) -> dict[str, Any]:
    """Return the form of inputs as plain values, for a checkpoint.

    A tensor gives the ``shape`` of an example and whether it is ``floating``. A container gives its
    kind and the forms in it, such as ``{"dict": {"ids": {...}}}``.
    """
    if type(tree) is dict:
        return {DICT: {key: describe(value) for key, value in tree.items()}}
    if type(tree) in (tuple, list):
        return {TUPLE if type(tree) is tuple else LIST: [describe(value) for value in tree]}
    return {"shape": list(tree.shape[1:]), "floating": tree.is_floating_point()}


def build(
    form: Mapping[str, Any], make: Callable[[str, Mapping[str, Any]], Any], name: str = ""
) -> Tree:
    """Build a tree of the form that ``describe`` returned.

    Args:
        form: the form.
        make: returns the leaf for a name, as ``name_leaves`` names it, and the leaf's form.
        name: of the whole tree.
    """

    def inner(key: object) -> str:
        return f"{name}.{key}" if name else str(key)

    if DICT in form:
        return {key: build(value, make, inner(key)) for key, value in form[DICT].items()}
    for kind, container in ((TUPLE, tuple), (LIST, list)):
        if kind in form:
            return container(
                build(value, make, inner(place)) for place, value in enumerate(form[kind])
            )
    return make(name, form)
