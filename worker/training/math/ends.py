"""Gradients of outputs whose own gradients are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def join(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return a number whose gradient with respect to each output is the given one.

    ``torch.autograd.grad`` takes such gradients itself, but it imports sympy for that, which takes
    every process half a second.

    Args:
        outputs: at least one, of any shapes.
        gradients: of the same shapes.
    """
    with torch.enable_grad():
        end: Tensor = _Join.apply(tuple(gradients), *outputs)  # type: ignore[no-untyped-call]
    return end


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: tuple[Tensor, ...], *outputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients
