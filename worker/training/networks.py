"""The networks of stacked models: perceptrons by hand, and which one trains a model.

All of them, those of ``called.py`` as well, work on the rows of one parameter matrix, so that what surrounds them does not know which
one it has.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from worker.training.called import LoneNetwork, RecurrentNetwork, StackedNetwork
from worker.training.chain import in_a_row
from worker.training.links import DropoutLink
from worker.training.network import Buffers, Network, Note, Observed, OfLayout
from worker.training.structure import Model, chain_of


class ChainNetwork(OfLayout):
    """A perceptron by hand: links in a row, each of which knows its forward and its backward."""

    def __init__(self, model: Model) -> None:
        layers = chain_of(model.module)
        if layers is None:
            raise ValueError("not a chain of layers that have a backward by hand")
        super().__init__(model.layout)
        self._links = in_a_row(layers)
        self._dropouts = [link for link in self._links if isinstance(link, DropoutLink)]
        first = next(place for place, link in enumerate(self._links) if link.module._parameters)
        self._backwards = self._links[first:][::-1]  # nobody asks for gradients before the first layer that is trained

    def bind_views(self, parameters: Buffers, gradients: Buffers, buffers: Buffers) -> None:
        """See ``Network``."""
        self._width = next(iter(parameters.values())).shape[0]
        for link in self._links:
            link.bind(parameters, gradients, buffers)

    def forward(self, inputs: Tensor, shared: bool, masks: Sequence[Tensor]) -> Tensor:
        """See ``Network``."""
        h = self._spread(inputs) if shared else inputs
        self._mask(masks)
        for link in self._links:
            h = link.forward(h)
        return h

    def backward(self, gradient: Tensor) -> None:
        """See ``Network``."""
        g = gradient
        for link in self._backwards:
            g = link.backward(g)

    def predict(self, inputs: Tensor, note: Note | None = None) -> Tensor:
        """See ``Network``. ``note`` hears of each activation layer in passing: cheaper than ``observe``."""
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
        self.predict(inputs, lambda name, kind, h: found.append((name, kind, h.clone())))  # the next link may write over it
        return found

    def _spread(self, inputs: Tensor) -> Tensor:
        return inputs.expand(self._width, *inputs.shape)

    def _mask(self, masks: Sequence[Tensor]) -> None:
        for link, mask in zip(self._dropouts, masks, strict=True):
            link.mask = mask


def network_for(model: Model, lone: bool) -> Network:
    """The fastest network that can train ``model``; ``lone`` for a width of one without stacking."""
    if chain_of(model.module) is not None:
        return ChainNetwork(model)
    if lone:
        return LoneNetwork(model)
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.module.modules())
    return RecurrentNetwork(model) if recurrent else StackedNetwork(model)
