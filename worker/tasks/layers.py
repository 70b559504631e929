"""Layers that ``torch.nn`` lacks, for the built-in models and for your own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Maxout(nn.Module):
    """The largest of ``pieces`` features (channels) that lie ``units`` apart: (B, pieces x units, ...) to (B, units, ...).

    A linear layer or a convolution goes before.

    Source: Goodfellow et al., "Maxout Networks", ICML 2013.
    """

    def __init__(self, pieces: int = 2) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, inputs: Tensor) -> Tensor:
        """See the class."""
        largest: Tensor = torch.unflatten(inputs, 1, (self.pieces, -1)).max(1).values
        return largest

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"pieces={self.pieces}"


class GaussianDropout(nn.Module):
    """In training, multiplies with normal noise of mean 1 and variance ``rate / (1 - rate)``, that of inverted dropout of that rate.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 2014, section 10.
    """

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a dropout rate of {rate}: it lies in [0, 1)")
        self.rate = rate

    def forward(self, inputs: Tensor) -> Tensor:
        """See the class; the identity in evaluation mode."""
        if not self.training or self.rate == 0:
            return inputs
        spread: float = (self.rate / (1 - self.rate)) ** 0.5
        return inputs * (1 + spread * torch.randn_like(inputs))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"rate={self.rate}"
