"""The parameters of n models as one matrix: a row a model, a span of columns a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Which columns are which parameter. Those that weight decay acts on come first, so that they are one span.

    Weights (two dimensions and more) decay; biases and the scales of normalisation do not.
    """

    shapes: dict[str, tuple[int, ...]]  # trained parameters, in column order
    n_decayed: int  # columns
    size: int  # columns

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """The layout of the parameters of ``module`` that are trained."""
        trained = [(name, tuple(p.shape)) for name, p in module.named_parameters() if p.requires_grad]
        ordered = sorted(trained, key=lambda item: len(item[1]) < 2)  # stable: the module's own order otherwise
        sizes = [(len(shape) >= 2, prod(shape)) for _, shape in ordered]
        return cls(dict(ordered), sum(size for decayed, size in sizes if decayed), sum(size for _, size in sizes))

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Each parameter as a view of ``flat``, (..., size) to (..., *shape)."""
        parts = torch.split(flat, [prod(shape) for shape in self.shapes.values()], dim=-1)
        return {name: part.view(*flat.shape[:-1], *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def row(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The inverse of ``views`` for one model: (size,).

        Raises:
            KeyError: a parameter is missing.
            ValueError: one has another shape.
        """
        for name, shape in self.shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)} instead of {shape}")
        parts = [tensors[name].detach().reshape(-1) for name in self.shapes]
        return torch.cat(parts) if parts else torch.zeros(0)


def constants(module: nn.Module) -> dict[str, Tensor]:
    """What a model carries and gradient descent does not move: buffers and frozen parameters."""
    frozen = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
    return {**frozen, **dict(module.named_buffers())}
