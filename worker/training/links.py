"""The layers of a stacked perceptron with forward and backward by hand, which is two to four times as fast as autograd on a CPU.

A link works on activations (K, B, ..., n) of K models. It may write its result over its input where nobody needs that any more, and always
over the gradient that it is handed. What a forward keeps for the backward lives in the link until the next forward.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Named = dict[str, Tensor]
CHANNELS = "a perceptron's layer that goes by features was given more than a row of features for each example"


class Link:
    """One layer. ``bind`` before use; ``forward`` in training, ``apply`` in evaluation, ``backward`` once after each forward."""

    keeps_output: ClassVar[bool] = False  # whether its backward needs what it put out, so that nobody may write over it
    keeps_sign: ClassVar[bool] = False  # if so, whether only where it is positive, which factors of 0 or more leave as good as it was
    watched: ClassVar[str | None] = None  # the kind of an activation

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.module = module
        self.over_input = False  # whether it may write over its input: set by who puts the links in a row
        self.inwards = True  # whether the gradient with respect to its input is needed

    @staticmethod
    def takes(module: Any) -> bool:
        """Whether this module, of the right type, is one that the link computes."""
        return True

    def bind(self, parameters: Named, gradients: Named, buffers: Named) -> None:
        """Works on these, all (K, ...) and by the model's names, from now on."""

    def apply(self, h: Tensor) -> Tensor:
        """The layer's output in evaluation mode; nothing is kept."""
        raise NotImplementedError

    def forward(self, h: Tensor) -> Tensor:
        """The layer's output in training mode."""
        raise NotImplementedError

    def backward(self, g: Tensor) -> Tensor:
        """Fills the gradients of its own parameters; returns that with respect to its input, for that with respect to its output."""
        raise NotImplementedError

    def _own(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


class LinearLink(Link):
    """y = x W' + b."""

    def bind(self, parameters: Named, gradients: Named, buffers: Named) -> None:
        """See ``Link``."""
        weight, bias = self._own("weight"), self._own("bias")
        self._weight, self._weight_gradient = parameters[weight], gradients[weight]  # (K, out, in)
        self._bias, self._bias_gradient = parameters.get(bias), gradients.get(bias)  # (K, out)

    def apply(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        rows = h if h.ndim == 3 else h.flatten(1, -2)
        weight = self._weight.transpose(1, 2)  # (K, in, out)
        out = torch.bmm(rows, weight) if self._bias is None else torch.baddbmm(self._bias.unsqueeze(1), rows, weight)
        return out if h.ndim == 3 else out.view(*h.shape[:-1], -1)

    def forward(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        self._input = h
        return self.apply(h)

    def backward(self, g: Tensor) -> Tensor:
        """See ``Link``."""
        h = self._input
        rows, out = (h, g) if h.ndim == 3 else (h.flatten(1, -2), g.flatten(1, -2))
        self._weight_gradient.copy_(torch.bmm(out.transpose(1, 2), rows))
        if self._bias_gradient is not None:
            self._bias_gradient.copy_(out.sum(1))
        return torch.bmm(out, self._weight).view(h.shape) if self.inwards else g


class FlattenLink(Link):
    """(K, B, ...) to (K, B, n)."""

    @staticmethod
    def takes(module: nn.Flatten) -> bool:
        """See ``Link``."""
        return (module.start_dim, module.end_dim) == (1, -1)

    def apply(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        return h.flatten(2)

    def forward(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        self._shape = h.shape
        return h.flatten(2)

    def backward(self, g: Tensor) -> Tensor:
        """See ``Link``."""
        return g.reshape(self._shape)


class DropoutLink(Link):
    """Multiplied by a mask in training; an empty one does nothing."""

    mask: Tensor

    def apply(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        return h

    def forward(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        if not self.mask.numel():
            return h
        return h.mul_(self.mask) if self.over_input else h * self.mask

    def backward(self, g: Tensor) -> Tensor:
        """See ``Link``."""
        return g.mul_(self.mask) if self.mask.numel() else g


class BatchNormLink(Link):
    """Standardises each feature over the batch, then scales and shifts it; in evaluation by running statistics, as torch keeps them.

    Source: Ioffe, Szegedy, "Batch Normalization", ICML 2015; the running variance is that with n - 1.
    """

    @staticmethod
    def takes(module: nn.BatchNorm1d) -> bool:
        """See ``Link``. Without ``momentum`` the average is over all batches so far."""
        return module.track_running_stats and module.momentum is not None

    def bind(self, parameters: Named, gradients: Named, buffers: Named) -> None:
        """See ``Link``."""
        self._mean, self._variance, self._count = (buffers[self._own(n)] for n in ("running_mean", "running_var", "num_batches_tracked"))
        weight, bias = self._own("weight"), self._own("bias")
        self._affine = weight in parameters
        if self._affine:
            self._weight, self._bias = parameters[weight].unsqueeze(1), parameters[bias].unsqueeze(1)  # (K, 1, n)
            self._weight_gradient, self._bias_gradient = gradients[weight], gradients[bias]  # (K, n)

    def apply(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        check_features(h)
        inverse = (self._variance + self.module.eps).rsqrt().unsqueeze(1)  # (K, 1, n)
        normal = (h - self._mean.unsqueeze(1)).mul_(inverse)
        return torch.addcmul(self._bias, normal, self._weight) if self._affine else normal

    def forward(self, h: Tensor) -> Tensor:
        """See ``Link``. Moves the running statistics.

        Raises:
            ValueError: there is one example: it has no variance.
        """
        check_features(h)
        n = h.shape[1]
        if n == 1:
            raise ValueError("batch norm needs more than one example in a batch; use a larger batch_size")
        mean = h.mean(1, keepdim=True)  # (K, 1, n)
        normal = h - mean
        variance = normal.square().mean(1, keepdim=True)
        self._count.add_(1)
        self._mean.lerp_(mean.squeeze(1), self.module.momentum)
        self._variance.lerp_(variance.squeeze(1) * (n / (n - 1)), self.module.momentum)
        self._inverse = (variance + self.module.eps).rsqrt_()
        self._normal = normal.mul_(self._inverse)
        return torch.addcmul(self._bias, self._normal, self._weight) if self._affine else self._normal.clone()

    def backward(self, g: Tensor) -> Tensor:
        """See ``Link``. What moves the mean or the spread of the batch is taken out of the gradient."""
        n = g.shape[1]
        along, total = (g * self._normal).sum(1, keepdim=True), g.sum(1, keepdim=True)  # (K, 1, n)
        factor = self._inverse
        if self._affine:
            self._weight_gradient.copy_(along.squeeze(1))
            self._bias_gradient.copy_(total.squeeze(1))
            factor = factor * self._weight
        return torch.addcmul(g.sub_(total / n), self._normal, along / n, value=-1).mul_(factor)


def check_features(h: Tensor) -> None:
    """Raises ValueError where an example is more than a row of features."""
    if h.ndim != 3:
        raise ValueError(CHANNELS)
