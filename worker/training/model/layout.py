"""The parameters of n models as one matrix: one row per model, one column span per parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from worker.training.model.groups import Group


class Span(NamedTuple):
    """The columns of one parameter group. Those that weight decay acts on come first."""

    group: int  # 0 for the parameters that are in no group of the task
    start: int
    end: int
    n_decayed: int


@dataclass(frozen=True)
class Layout:
    """The assignment of matrix columns to parameters.

    The columns of a parameter group lie together. Within a group, the parameters that weight decay
    acts on come first, so that they form one span. Weights (two dimensions and more) decay; biases
    and the scales of normalization layers do not, unless their group has a decay of its own.
    """

    shapes: dict[str, tuple[int, ...]]  # shapes of the trained parameters, in column order
    n_decayed: int  # number of columns that weight decay acts on
    size: int  # number of columns in all
    groups: dict[str, int] = field(default_factory=dict)  # of the parameters that have one, from 1
    decayed: frozenset[int] = frozenset()  # groups of which all parameters decay

    @classmethod
    def of(cls, module: nn.Module, groups: Sequence[Group] = ()) -> Self:
        """Return the layout of the trained parameters of ``module``."""
        trained = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
        group = {name: place for place, one in enumerate(groups, start=1) for name in one.names}
        whole = frozenset(
            place for place, one in enumerate(groups, start=1) if one.weight_decay is not None
        )
        decays = {
            name: len(shape) >= 2 or group.get(name, 0) in whole for name, shape in trained.items()
        }
        # The sort is stable: within each kind the module's order is kept.
        ordered = sorted(trained, key=lambda name: (group.get(name, 0), not decays[name]))
        return cls(
            {name: trained[name] for name in ordered},
            sum(prod(shape) for name, shape in trained.items() if decays[name]),
            sum(prod(shape) for shape in trained.values()),
            group,
            whole,
        )

    def places(self, everything: bool) -> dict[str, tuple[int, bool]]:
        """Return the group of each parameter, and whether weight decay acts on it.

        ``everything`` says that it acts on all.
        """
        found = {}
        for name, shape in self.shapes.items():
            group = self.groups.get(name, 0)
            found[name] = group, everything or len(shape) >= 2 or group in self.decayed
        return found

    def spans(self, everything: bool) -> list[Span]:
        """Return the spans of the groups, in column order. See ``places`` for ``everything``."""
        found: list[Span] = []
        start = 0
        for name, (group, decays) in self.places(everything).items():
            size = prod(self.shapes[name])
            last = (
                found.pop() if found and found[-1].group == group else Span(group, start, start, 0)
            )
            found.append(
                last._replace(end=start + size, n_decayed=last.n_decayed + (size if decays else 0))
            )
            start += size
        return found

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return each parameter as a view of ``flat``: (..., size) becomes (..., *shape)."""
        parts = torch.split(flat, [prod(shape) for shape in self.shapes.values()], dim=-1)
        return {
            name: part.view((*flat.shape[:-1], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def row(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the parameters of one model as a row (size,). This is the inverse of ``views``.

        Raises:
            KeyError: a parameter is missing.
            ValueError: a parameter has another shape.
        """
        for name, shape in self.shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(
                    f"{name} has the shape {tuple(tensors[name].shape)} instead of {shape}"
                )
        parts = [tensors[name].detach().reshape(-1) for name in self.shapes]
        return torch.cat(parts) if parts else torch.zeros(0)


def constants(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that gradient descent does not change: buffers and frozen parameters."""
    frozen = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
    return {**frozen, **dict(module.named_buffers())}
