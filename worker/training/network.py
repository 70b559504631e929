"""What a network of stacked models is to those that train it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from worker.tasks.layers import Maxout
from worker.training.knobs import SlotELU, SlotLeakyReLU
from worker.training.layout import Layout

Buffers = dict[str, Tensor]
Note = Callable[[str, str, Tensor], None]  # takes what ``Observed`` holds, before the next layer writes over it
Observed = tuple[str, str, Tensor]  # name and kind of an activation layer, (K, B, ...) what it put out
KINDS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}
OTHERS = (SlotLeakyReLU, SlotELU, Maxout, nn.LeakyReLU, nn.ELU, nn.PReLU, nn.GELU, nn.SiLU, nn.SELU, nn.CELU, nn.Softplus, nn.Mish)


class Network(Protocol):
    """K models of one structure."""

    def bind(self, flat: Tensor, gradients: Tensor, buffers: Buffers) -> None:
        """Works on these from now on: (K, P) parameters, (K, P) for their gradients, buffers (K, ...) by name."""
        ...

    def bind_views(self, parameters: Buffers, gradients: Buffers, buffers: Buffers) -> None:
        """The same, but for parameters that need not lie in one matrix: (K, ...) each, by name."""
        ...

    def forward(self, inputs: Tensor, shared: bool, masks: Sequence[Tensor]) -> Tensor:
        """Outputs (K, B, C) in training mode, of inputs (B, ...) if ``shared``, else (K, B, ...)."""
        ...

    def backward(self, gradient: Tensor) -> None:
        """Fills the bound gradients from that of the last forward's outputs, which is used up."""
        ...

    def predict(self, inputs: Tensor) -> Tensor:
        """Outputs (K, B, C) in evaluation mode, of inputs (B, ...)."""
        ...

    def sample(self, inputs: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Outputs (K, B, C) of inputs (B, ...) with the noise of training, and all else, such as batch norm, as in evaluation."""
        ...

    def observe(self, inputs: Tensor) -> list[Observed]:
        """What the activation layers put out in evaluation mode, of inputs (B, ...)."""
        ...

    @property
    def layers(self) -> dict[str, list[str]]:
        """By layer its weights: the names of those of its trained parameters that have two dimensions or more."""
        ...


def watched(module: nn.Module) -> str | None:
    """The kind of an activation layer: ``relu`` may die, ``sigmoid`` and ``tanh`` may saturate, ``other``; None for any other layer."""
    if type(module) in KINDS:
        return KINDS[type(module)]
    return "other" if isinstance(module, OTHERS) else None


def weights_by_layer(layout: Layout) -> dict[str, list[str]]:
    """The parameters of two dimensions and more, by the layer that owns them; that of a model which is one layer is called ``model``."""
    found: dict[str, list[str]] = {}
    for name, shape in layout.shapes.items():
        if len(shape) >= 2:
            found.setdefault(name.rpartition(".")[0] or "model", []).append(name)
    return found


class OfLayout:
    """A network whose parameters lie in one matrix as a layout says."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @property
    def layers(self) -> dict[str, list[str]]:
        """See ``Network``."""
        return weights_by_layer(self._layout)

    def bind(self, flat: Tensor, gradients: Tensor, buffers: Buffers) -> None:
        """See ``Network``."""
        self.bind_views(self._layout.views(flat), self._layout.views(gradients), buffers)

    def bind_views(self, parameters: Buffers, gradients: Buffers, buffers: Buffers) -> None:
        """See ``Network``."""
        raise NotImplementedError
