"""Networks of stacked models: hand-written perceptrons, and the choice of the network for a model.

All networks, also those of ``vmap_networks.py``, work on the rows of one parameter matrix. The code
around them does not depend on which one is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worker.training.math.precision import BF16
from worker.training.model.chain import in_a_row
from worker.training.model.manual_layers import DropoutLink
from worker.training.model.network import Buffers, Network, Note, Observed, OfLayout
from worker.training.model.structure import Model, chain_of
from worker.training.model.vmap_networks import LoneNetwork, RecurrentNetwork, StackedNetwork


class ChainNetwork(OfLayout):
    """A perceptron as a chain of links, each with its own forward and backward pass."""

    def __init__(self, model: Model) -> None:
        layers = chain_of(model.module)
        if layers is None:
            raise ValueError("not a chain of layers that have a backward by hand")
        super().__init__(model.layout)
        self._links = in_a_row(layers)
        self._dropouts = [link for link in self._links if isinstance(link, DropoutLink)]
        first = next(place for place, link in enumerate(self._links) if link.module._parameters)
        # Gradients are not needed before the first layer that has parameters.
        self._backwards = self._links[first:][::-1]
        # By layer, from the last forward that measured the activity.
        self._activations: dict[str, Tensor] = {}

    def bind_views(self, parameters: Buffers, gradients: Buffers, buffers: Buffers) -> None:
        """See ``Network``."""
        self._width = next(iter(parameters.values())).shape[0]
        for link in self._links:
            link.bind(parameters, gradients, buffers)

    def forward(
        self, inputs: Tensor, shared: bool, masks: Sequence[Tensor], activity: bool = False
    ) -> Tensor:
        """See ``Network``."""
        h = self._spread(inputs) if shared else inputs
        self._mask(masks)
        self._activations, sizes = {}, []
        for link in self._links:
            h = link.forward(h)
            if activity and link.watched:
                self._activations[link.name] = h
                sizes.append(torch.linalg.vector_norm(h.flatten(1), ord=1, dim=1))
                # The next link may overwrite its input. Where a mask drops a unit, the penalty
                # still has a gradient.
                h = h.clone()
        if activity:
            self.activity = torch.stack(sizes).sum(0) / h.shape[1]
        return h

    def backward(self, gradient: Tensor, activation_l1: Tensor | None = None) -> None:
        """See ``Network``."""
        g = gradient
        for link in self._backwards:
            if activation_l1 is not None and link.name in self._activations:
                share = activation_l1 / g.shape[1]  # of an example
                signs = self._activations[link.name].sign()
                g = torch.addcmul(g, signs, share.view(-1, *[1] * (g.ndim - 1)))
            g = link.backward(g)

    def predict(self, inputs: Tensor, note: Note | None = None) -> Tensor:
        """See ``Network``. ``note`` gets each activation output: cheaper than ``observe``."""
        h = self._spread(inputs)
        for link in self._links:
            h = link.apply(h)
            if note is not None and link.watched:
                note(link.name, link.watched, h)
        return h

    def sample(self, inputs: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """See ``Network``."""
        h = self._spread(inputs)
        self._mask(masks)
        for link in self._links:
            h = link.forward(h) if isinstance(link, DropoutLink) else link.apply(h)
        return h

    def observe(self, inputs: Tensor) -> list[Observed]:
        """See ``Network``."""
        found: list[Observed] = []
        # Clone it, because the next link may overwrite it.
        self.predict(inputs, lambda name, kind, h: found.append((name, kind, h.clone())))
        return found

    def _spread(self, inputs: Tensor) -> Tensor:
        return inputs.expand(self._width, *inputs.shape)

    def _mask(self, masks: Sequence[Tensor]) -> None:
        for link, mask in zip(self._dropouts, masks, strict=True):
            link.mask = mask


def network_for(model: Model, lone: bool) -> Network:
    """Return the fastest network that can train ``model``.

    Args:
        model: the model.
        lone: whether one model is trained without stacking.
    """
    if model.structure.alone:
        return LoneNetwork(model)
    if chain_of(model.module) is not None and model.recipe.kind("precision") != BF16:
        return ChainNetwork(model)
    if lone:
        return LoneNetwork(model)
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.module.modules())
    return RecurrentNetwork(model) if recurrent else StackedNetwork(model)
