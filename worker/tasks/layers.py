"""Layers that ``torch.nn`` lacks. The built-in models use them; your own may, too."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Maxout(nn.Module):
    """Maxout: the maximum over ``pieces`` features (or channels).

    The input is (B, pieces x units, ...) and the output (B, units, ...). Feature u of the output is
    the maximum of the input features u, u + units, u + 2 units, ... Put a linear layer or a
    convolution before this layer.

    Source: Goodfellow et al., "Maxout Networks", ICML 2013.
    """

    def __init__(self, pieces: int = 2) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the maximum over the pieces, (B, units, ...)."""
        largest: Tensor = torch.unflatten(inputs, 1, (self.pieces, -1)).max(1).values
        return largest

    def extra_repr(self) -> str:
        """Return the text that ``print`` shows in parentheses."""
        return f"pieces={self.pieces}"


class GaussianDropout(nn.Module):
    """Multiplicative Gaussian noise, in training mode only.

    Each input is multiplied by normal noise of mean 1 and variance ``rate / (1 - rate)``. Inverted
    dropout of that rate has the same mean and variance.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
    JMLR 2014, section 10.
    """

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a dropout rate of {rate}: it lies in [0, 1)")
        self.rate = rate

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs with noise. In evaluation mode they are unchanged."""
        if not self.training or self.rate == 0:
            return inputs
        spread: float = (self.rate / (1 - self.rate)) ** 0.5
        return inputs * (1 + spread * torch.randn_like(inputs))

    def extra_repr(self) -> str:
        """Return the text that ``print`` shows in parentheses."""
        return f"rate={self.rate}"
