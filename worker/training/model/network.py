"""The interface of a network of stacked models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from worker.tasks.layers import Maxout
from worker.tasks.trees import Tree
from worker.training.model.layout import Layout
from worker.training.model.lifted_numbers import SlotELU, SlotLeakyReLU

Buffers = dict[str, Tensor]
# Takes the items of ``Observed``, before the next layer overwrites the tensor.
Note = Callable[[str, str, Tensor], None]
# Name of an activation layer, its kind, and its output (K, B, ...).
Observed = tuple[str, str, Tensor]
KINDS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
OTHERS = (
    SlotLeakyReLU,
    SlotELU,
    Maxout,
    nn.LeakyReLU,
    nn.ELU,
    nn.PReLU,
    nn.GELU,
    nn.SiLU,
    nn.SELU,
    nn.CELU,
    nn.Softplus,
    nn.Mish,
)


class Network(Protocol):
    """K models of one structure."""

    def bind(self, flat: Tensor, gradients: Tensor, buffers: Buffers) -> None:
        """Use these tensors from now on.

        Args:
            flat: (K, P) parameters.
            gradients: (K, P), where ``backward`` writes.
            buffers: (K, ...) each, by name.
        """
        ...

    def bind_views(self, parameters: Buffers, gradients: Buffers, buffers: Buffers) -> None:
        """Do what ``bind`` does, for parameters that need not lie in one matrix.

        Parameters and gradients are (K, ...) each, by name.
        """
        ...

    # (K,) the sum of the sizes of an example's activations, as the mean over the batch of the last
    # forward that was asked for it. It belongs to no graph.
    activity: Tensor

    def forward(
        self, inputs: Tree, shared: bool, masks: Sequence[Tensor], activity: bool = False
    ) -> Tree:
        """Return the outputs (K, B, C) in training mode.

        Args:
            inputs: (B, ...) if ``shared``, else (K, B, ...).
            shared: whether all slots see the same inputs.
            masks: of the dropout layers.
            activity: whether to measure ``activity``, and to keep what its gradient needs.
        """
        ...

    def backward(self, gradient: Tree, activation_l1: Tensor | None = None) -> None:
        """Fill the bound gradients.

        Args:
            gradient: of the last forward's outputs. Its tensors may be overwritten.
            activation_l1: (K,) the gradient of ``activity``. None if it was not measured.
        """
        ...

    def predict(self, inputs: Tree) -> Tree:
        """Return the outputs (K, B, C) in evaluation mode, of inputs (B, ...)."""
        ...

    def sample(self, inputs: Tree, masks: Sequence[Tensor]) -> Tree:
        """Return the outputs (K, B, C) of inputs (B, ...), with the noise of training.

        All else, such as batch norm, is in evaluation mode.
        """
        ...

    def observe(self, inputs: Tree) -> list[Observed]:
        """Return the outputs of the activation layers in evaluation mode, of inputs (B, ...)."""
        ...

    @property
    def layers(self) -> dict[str, list[str]]:
        """The weights of each layer: its trained parameters with two or more dimensions."""
        ...


def find_activation_kind(module: nn.Module) -> str | None:
    """Return the kind of an activation layer, or None for any other layer.

    ``relu`` units may die, ``sigmoid`` and ``tanh`` units may saturate. All others are ``other``.
    """
    if type(module) in KINDS:
        return KINDS[type(module)]
    return "other" if isinstance(module, OTHERS) else None


def weights_by_layer(layout: Layout) -> dict[str, list[str]]:
    """Return the names of the parameters with two or more dimensions, by layer.

    If the model is itself one layer, that layer is called ``model``.
    """
    found: dict[str, list[str]] = {}
    for name, shape in layout.shapes.items():
        if len(shape) >= 2:
            found.setdefault(name.rpartition(".")[0] or "model", []).append(name)
    return found


class OfLayout:
    """A network whose parameters lie in one matrix, as a layout assigns them."""

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
