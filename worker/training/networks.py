"""Forward and backward passes of stacked models: by hand for perceptrons, by ``torch.func`` for the rest, and one alone.

All three work on the rows of one parameter matrix, so that what surrounds them does not know which one it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from worker.training.layout import Layout
from worker.training.noise import SlotDropout
from worker.training.structure import Model, chain_of

Buffers = dict[str, Tensor]


class Network(Protocol):
    """K models of one structure."""

    def bind(self, flat: Tensor, gradients: Tensor, buffers: Buffers) -> None:
        """Works on these from now on: (K, P) parameters, (K, P) for their gradients, buffers (K, ...) by name."""
        ...

    def forward(self, inputs: Tensor, shared: bool, masks: Sequence[Tensor]) -> Tensor:
        """Logits (K, B, C) in training mode, of inputs (B, ...) if ``shared``, else (K, B, ...)."""
        ...

    def backward(self, gradient: Tensor) -> None:
        """Fills the bound gradients from that of the last forward's logits, which is used up."""
        ...

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits (K, B, C) in evaluation mode, of inputs (B, ...)."""
        ...


class ChainNetwork:
    """A perceptron: linear layers, ReLUs and dropout in a row. Three times as fast as autograd on a CPU."""

    def __init__(self, model: Model) -> None:
        links = chain_of(model.module)
        if links is None:
            raise ValueError("not a chain of linear layers, ReLUs and dropout")
        self._links = links
        self._layout = model.layout
        self._kept: list[Tensor] = []

    def bind(self, flat: Tensor, gradients: Tensor, buffers: Buffers) -> None:
        """See ``Network``."""
        self._width = len(flat)
        self._parameters = self._layout.views(flat)
        self._gradients = self._layout.views(gradients)

    def forward(self, inputs: Tensor, shared: bool, masks: Sequence[Tensor]) -> Tensor:
        """See ``Network``. Keeps each linear layer's input, which also tells where a ReLU let through."""
        self._kept, self._masks = [], masks
        h = inputs.expand(self._width, *inputs.shape) if shared else inputs
        n_masks = 0
        for name, layer in self._links:
            if isinstance(layer, nn.Linear):
                self._kept.append(h)
                h = self._linear(name, h)
            elif isinstance(layer, nn.ReLU):
                h = h.relu_()
                self._kept.append(h)
            elif isinstance(layer, SlotDropout):
                h = h.mul_(masks[n_masks])
                n_masks += 1
        return h

    def backward(self, gradient: Tensor) -> None:
        """See ``Network``. A ReLU's output may have been multiplied by a mask since: where that made it zero, the gradient is zero too."""
        n_masks, g = len(self._masks), gradient
        for position in range(len(self._links) - 1, -1, -1):
            name, layer = self._links[position]
            if isinstance(layer, nn.Linear):
                h = self._kept.pop()
                torch.bmm(g.transpose(1, 2), h, out=self._gradients[f"{name}.weight"])
                if layer.bias is not None:
                    torch.sum(g, 1, out=self._gradients[f"{name}.bias"])
                if position:
                    g = torch.bmm(g, self._parameters[f"{name}.weight"])
            elif isinstance(layer, nn.ReLU):
                g = torch.ops.aten.threshold_backward.grad_input(g, self._kept.pop(), 0, grad_input=g)
            elif isinstance(layer, SlotDropout):
                n_masks -= 1
                g.mul_(self._masks[n_masks])

    def predict(self, inputs: Tensor) -> Tensor:
        """See ``Network``."""
        h = inputs.expand(self._width, *inputs.shape)
        for name, layer in self._links:
            if isinstance(layer, nn.Linear):
                h = self._linear(name, h)
            elif isinstance(layer, nn.ReLU):
                h = h.relu_()
        return h

    def _linear(self, name: str, h: Tensor) -> Tensor:
        weight = self._parameters[f"{name}.weight"].transpose(1, 2)  # (K, in, out)
        bias = self._parameters.get(f"{name}.bias")
        return torch.bmm(h, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), h, weight)


class _Called:
    """What the two networks that call the module have in common."""

    def __init__(self, model: Model) -> None:
        self._module = model.module
        self._layout: Layout = model.layout
        self._mask_names = [f"{name}.mask" for name in model.dropouts]
        self._logits: Tensor | None = None

    def bind(self, flat: Tensor, gradients: Tensor, buffers: Buffers) -> None:
        """See ``Network``. Leaves are views of ``flat``: an update in place is seen by the next forward."""
        self._leaves = {name: view.detach().requires_grad_() for name, view in self._layout.views(flat).items()}
        self._gradients = self._layout.views(gradients)
        self._buffers = buffers

    def backward(self, gradient: Tensor) -> None:
        """See ``Network``. A parameter that the forward did not use gets a gradient of zero."""
        if self._logits is None:
            raise RuntimeError("backward before forward")
        leaves = list(self._leaves.values())
        found = torch.autograd.grad(self._logits, leaves, gradient, allow_unused=True)
        self._logits = None
        for (name, leaf), one in zip(self._leaves.items(), found, strict=True):
            self._gradients[name].copy_(one if one is not None else torch.zeros_like(leaf))

    def _call(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        logits: Tensor = functional_call(self._module, dict(tensors), (inputs,))
        return logits

    def _mode(self, training: bool) -> None:
        if self._module.training != training:
            self._module.train(training)


class StackedNetwork(_Called):
    """Any module that ``torch.vmap`` understands."""

    def forward(self, inputs: Tensor, shared: bool, masks: Sequence[Tensor]) -> Tensor:
        """See ``Network``. A module that draws its own noise is refused by vmap, and trains alone."""
        self._mode(True)
        tensors = {**self._leaves, **self._buffers, **dict(zip(self._mask_names, masks, strict=True))}
        with torch.enable_grad():
            self._logits = vmap(self._call, in_dims=(0, None if shared else 0))(tensors, inputs)
        return self._logits.detach()

    def predict(self, inputs: Tensor) -> Tensor:
        """See ``Network``."""
        self._mode(False)
        with torch.no_grad():
            logits: Tensor = vmap(self._call, in_dims=(0, None))({**self._leaves, **self._buffers}, inputs)
        return logits.detach()


class LoneNetwork(_Called):
    """One module as it is, in the same frame: where stacking does not pay or cannot be done."""

    def forward(self, inputs: Tensor, shared: bool, masks: Sequence[Tensor]) -> Tensor:
        """See ``Network``."""
        self._mode(True)
        fixed = {**self._first(self._buffers), **{name: mask[0] for name, mask in zip(self._mask_names, masks, strict=True)}}
        with torch.enable_grad():
            tensors = {**self._first(self._leaves), **fixed}
            self._logits = self._call(tensors, inputs if shared else inputs[0]).unsqueeze(0)
        return self._logits.detach()

    def predict(self, inputs: Tensor) -> Tensor:
        """See ``Network``."""
        self._mode(False)
        with torch.no_grad():
            return self._call({**self._first(self._leaves), **self._first(self._buffers)}, inputs).unsqueeze(0)

    @staticmethod
    def _first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor[0] for name, tensor in tensors.items()}


def network_for(model: Model, lone: bool) -> Network:
    """The fastest network that can train ``model``; ``lone`` for a width of one without stacking."""
    if chain_of(model.module) is not None:
        return ChainNetwork(model)
    return LoneNetwork(model) if lone else StackedNetwork(model)
