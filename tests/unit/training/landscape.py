"""A small differentiable problem for rules that see only gradients, and its 16 starts.

It has a matrix, filters and a bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn

K, N_STEPS, PER_EPOCH = 16, 50, 10
SHAPES = {"matrix": (5, 4), "filters": (3, 2, 2, 2), "bias": (5,)}
SIZES = [20, 24, 5]
N_DECAYED = 44  # columns of the matrix and the filters
P = 49


def spread(low: float, high: float, log: bool = False, stride: int = 1) -> Tensor:
    """(K,) values from low to high, both included, in an order of its own for each odd stride."""
    even = torch.linspace(0, 1, K, dtype=torch.float64)[
        torch.tensor([(stride * i) % K for i in range(K)])
    ]
    return low * (high / low) ** even if log else low + (high - low) * even


def starts() -> Tensor:
    """(K, P) float64, some of them exactly 0."""
    rows = torch.randn(K, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows[:, ::7] = 0
    return rows


def views(flat: Tensor) -> dict[str, Tensor]:
    parts = flat.split(SIZES, dim=-1)
    return {
        name: part.view(*flat.shape[:-1], *shape)
        for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
    }


@lru_cache
def drawn(step: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Inputs, images, labels and slopes of that step."""
    generator = torch.Generator().manual_seed(step)
    x = 0.01 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    images = 0.01 * torch.randn(2, 2, 4, 4, generator=generator, dtype=torch.float64)
    slope = torch.randn(P, generator=generator, dtype=torch.float64)
    return x, images, torch.randint(5, (6,), generator=generator), views(slope)


def loss(weights: dict[str, Tensor], step: int) -> Tensor:
    """Return a convex loss with little curvature, so that rounding grows at no learning rate.

    Each step has another slope.
    """
    x, images, labels, slopes = drawn(step)
    scores = x @ weights["matrix"].T + 0.1 * weights["bias"]
    maps = nn.functional.conv2d(images, weights["filters"])
    tilt = sum((part * weights[name]).sum() for name, part in slopes.items())
    return (
        nn.functional.cross_entropy(scores, labels)
        + nn.functional.softplus(maps - 1).mean()
        + 0.1 * tilt
    )


def gradients(flat: Tensor, step: int) -> Tensor:
    """(K, P) of the loss at each row."""
    leaf = flat.clone().requires_grad_()
    total = torch.stack([loss(views(row), step) for row in leaf]).sum()
    return torch.autograd.grad(total, leaf)[0]


class Plain(nn.Module):
    """One row as the parameters of a module."""

    def __init__(self, row: Tensor) -> None:
        super().__init__()
        for name, view in views(row).items():
            self.register_parameter(name, nn.Parameter(view.clone()))

    def backward(self, step: int, penalty: Callable[[Plain], Tensor] | None = None) -> None:
        """Gradients of the loss of that step, and of the penalty where there is one."""
        self.zero_grad()
        total = loss(dict(self.named_parameters()), step)
        (total if penalty is None else total + penalty(self)).backward()

    def weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters()])

    def groups(self, weight_decay: float = 0.0) -> list[dict[str, object]]:
        """For an optimizer: what decays, and the bias."""
        return [
            {"params": [self.matrix, self.filters], "weight_decay": weight_decay},
            {"params": [self.bias], "weight_decay": 0.0},
        ]


def agree(found: Tensor, expected: Iterable[Tensor]) -> None:
    """Row by row to 1e-8, relative to the largest weight where that is above 1."""
    for slot, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert theirs.isfinite().all(), f"slot {slot} shows nothing: its reference is not finite"
        assert (mine - theirs).abs().max() <= 1e-8 * theirs.abs().max().clamp(min=1), f"slot {slot}"
