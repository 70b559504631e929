"""The layers that have a hand-written backward pass, and how they are chained."""

from __future__ import annotations

from torch import nn

from worker.tasks.layers import Maxout
from worker.training.math.noise import BERNOULLI, SlotDropout
from worker.training.model.activations import (
    ELULink,
    GELULink,
    LeakyReLULink,
    MaxoutLink,
    PReLULink,
    ReLULink,
    SigmoidLink,
    TanhLink,
)
from worker.training.model.lifted_numbers import SlotELU, SlotLeakyReLU
from worker.training.model.manual_layers import (
    BatchNormLink,
    DropoutLink,
    FlattenLink,
    LinearLink,
    Link,
)

LINKS: dict[type[nn.Module], type[Link]] = {
    nn.Linear: LinearLink,
    nn.Flatten: FlattenLink,
    SlotDropout: DropoutLink,
    nn.ReLU: ReLULink,
    nn.Sigmoid: SigmoidLink,
    nn.Tanh: TanhLink,
    nn.GELU: GELULink,
    nn.PReLU: PReLULink,
    SlotLeakyReLU: LeakyReLULink,
    SlotELU: ELULink,
    Maxout: MaxoutLink,
    nn.BatchNorm1d: BatchNormLink,
}


def in_a_row(layers: list[tuple[str, nn.Module]]) -> list[Link]:
    """Return the links of these layers, in order.

    Each link is set up with whether it may overwrite its input, and whether a layer before it has
    parameters, so that it must return the gradient of its input.
    """
    links = [LINKS[type(module)](name, module) for name, module in layers]
    # free: the next link may overwrite its input. masked: a 0/1 mask may be applied to it in
    # place. trained: a link before it has parameters.
    free = masked = trained = False
    for link in links:
        bernoulli = isinstance(link, DropoutLink) and link.module.kind == BERNOULLI
        link.over_input = free or (bernoulli and masked)
        link.inwards = trained
        trained = trained or bool(link.module._parameters)
        # Flatten returns a view of its input, and dropout may return its input itself.
        if not isinstance(link, FlattenLink | DropoutLink):
            free, masked = not link.keeps_output, not link.keeps_output or link.keeps_sign
    return links
