"""Activations of stacked perceptrons with a hand-written forward and backward pass.

See ``manual_layers.py`` for the interface.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worker.training.model.manual_layers import Link, Named, check_features


class Activation(Link):
    """An elementwise activation. It computes the same in training and in evaluation."""

    watched = "other"

    def apply(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        return self.forward(h)


class ReLULink(Activation):
    """max(0, x).

    The link keeps its output: the gradient passes where the output is positive. If a dropout mask
    has since set an output to zero, its gradient is zero too.
    """

    keeps_output = keeps_sign = True
    watched = "relu"

    def forward(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        self._output = h.relu_() if self.over_input else h.relu()
        return self._output

    def backward(self, g: Tensor) -> Tensor:
        """See ``Link``."""
        found: Tensor = torch.ops.aten.threshold_backward.grad_input(
            g, self._output, 0, grad_input=g
        )
        return found


class SigmoidLink(Activation):
    """1 / (1 + exp(-x)). The gradient is y (1 - y)."""

    keeps_output = True
    watched = "sigmoid"

    def forward(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        self._output = h.sigmoid_() if self.over_input else h.sigmoid()
        return self._output

    def backward(self, g: Tensor) -> Tensor:
        """See ``Link``."""
        found: Tensor = torch.ops.aten.sigmoid_backward.grad_input(g, self._output, grad_input=g)
        return found


class TanhLink(Activation):
    """The hyperbolic tangent. The gradient is 1 - y^2."""

    keeps_output = True
    watched = "tanh"

    def forward(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        self._output = h.tanh_() if self.over_input else h.tanh()
        return self._output

    def backward(self, g: Tensor) -> Tensor:
        """See ``Link``."""
        found: Tensor = torch.ops.aten.tanh_backward.grad_input(g, self._output, grad_input=g)
        return found


class GELULink(Activation):
    """x times the normal distribution function at x, or its tanh approximation.

    The gradient needs the input.

    Source: Hendrycks, Gimpel, "Gaussian Error Linear Units", 2016.
    """

    def forward(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        self._input = h
        return nn.functional.gelu(h, approximate=self.module.approximate)

    def backward(self, g: Tensor) -> Tensor:
        """See ``Link``."""
        found: Tensor = torch.ops.aten.gelu_backward(
            g, self._input, approximate=self.module.approximate
        )
        return found


class Sloped(Activation):
    """x where x is positive, else x times a slope.

    The gradient needs the input, because a slope may be negative.
    """

    _slope: Tensor  # (K, 1) or (K, n)

    def forward(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        self._input = h
        return h.clamp(max=0).mul_(_over(self._slope, h)).add_(h.relu())

    def backward(self, g: Tensor) -> Tensor:
        """See ``Link``."""
        return _bent(g, self._input, _over(self._slope, g))


class LeakyReLULink(Sloped):
    """Leaky ReLU with one fixed slope for each slot.

    Source: Maas et al., "Rectifier Nonlinearities Improve Neural Network Acoustic Models", 2013.
    """

    def bind(self, parameters: Named, gradients: Named, buffers: Named) -> None:
        """See ``Link``."""
        self._slope = buffers[self._own("negative_slope")].unsqueeze(1)


class PReLULink(Sloped):
    """Leaky ReLU with trained slopes: one in all, or one for each feature.

    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, section 2.1.
    """

    def bind(self, parameters: Named, gradients: Named, buffers: Named) -> None:
        """See ``Link``."""
        # (K, 1) or (K, n) each
        self._slope, self._gradient = (
            parameters[self._own("weight")],
            gradients[self._own("weight")],
        )

    def forward(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        if self._slope.shape[1] > 1:
            check_features(h)
        return super().forward(h)

    def backward(self, g: Tensor) -> Tensor:
        """See ``Link``."""
        through = g * self._input.clamp(max=0)
        self._gradient.copy_(
            through.sum(1) if self._slope.shape[1] > 1 else through.flatten(1).sum(1, keepdim=True)
        )
        return super().backward(g)


class ELULink(Activation):
    """x where x is positive, else alpha (exp(x) - 1), with one alpha for each slot.

    Source: Clevert, Unterthiner, Hochreiter, "Fast and Accurate Deep Network Learning by
    Exponential Linear Units", ICLR 2016.
    """

    def bind(self, parameters: Named, gradients: Named, buffers: Named) -> None:
        """See ``Link``."""
        self._alpha = buffers[self._own("alpha")].unsqueeze(1)

    def forward(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        alpha = _over(self._alpha, h)
        below = h.clamp(max=0).expm1_().mul_(alpha)
        # _factor: (K, B, n), alpha exp(x) where x is not positive
        self._input, self._factor = (h, below + alpha)
        return below.add_(h.relu())

    def backward(self, g: Tensor) -> Tensor:
        """See ``Link``."""
        return _bent(g, self._input, self._factor)


class MaxoutLink(Activation):
    """The maximum over groups of features.

    The gradient goes to the largest feature. Among equal ones it goes to the first.
    """

    def forward(self, h: Tensor) -> Tensor:
        """See ``Link``."""
        check_features(h)
        self._pieces = h.chunk(self.module.pieces, 2)  # (K, B, units) each
        self._output = self._pieces[0]
        for piece in self._pieces[1:]:
            self._output = torch.maximum(self._output, piece)
        return self._output.clone()

    def backward(self, g: Tensor) -> Tensor:
        """See ``Link``."""
        shares, left = [], g
        for piece in self._pieces:
            shares.append(torch.eq(piece, self._output, out=torch.empty_like(g)).mul_(left))
            left = left - shares[-1]
        return torch.cat(shares, 2)


def _over(column: Tensor, h: Tensor) -> Tensor:
    """Reshape (K, n) to (K, 1, ..., n), so that it broadcasts over ``h``."""
    return column.view(len(column), *[1] * (h.ndim - 2), column.shape[1])


def _bent(g: Tensor, inputs: Tensor, factor: Tensor) -> Tensor:
    """Return ``g`` where the input is positive, else ``g * factor``.

    The result is exact, and it takes a third of the time of ``torch.where``.
    """
    above = torch.ops.aten.threshold_backward(g, inputs, 0)
    below: Tensor = g.sub_(above).mul_(factor).add_(above)
    return below
