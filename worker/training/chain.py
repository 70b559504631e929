"""Which layers have a backward by hand, and how they follow on each other."""

from __future__ import annotations

from torch import nn

from worker.tasks.layers import Maxout
from worker.training.activations import ELULink, GELULink, LeakyReLULink, MaxoutLink, PReLULink, ReLULink, SigmoidLink, TanhLink
from worker.training.knobs import SlotELU, SlotLeakyReLU
from worker.training.links import BatchNormLink, DropoutLink, FlattenLink, LinearLink, Link
from worker.training.noise import BERNOULLI, SlotDropout

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
    """Links for these layers, each told what it may write over, and whether anything before it has parameters."""
    links = [LINKS[type(module)](name, module) for name, module in layers]
    free = masked = trained = False  # whether what the next link gets may be written over, by anything or by a mask
    for link in links:
        bernoulli = isinstance(link, DropoutLink) and link.module.kind == BERNOULLI
        link.over_input = free or (bernoulli and masked)
        link.inwards = trained
        trained = trained or bool(link.module._parameters)
        if not isinstance(link, FlattenLink | DropoutLink):  # those hand on, or may hand on, what they got
            free, masked = not link.keeps_output, not link.keeps_output or link.keeps_sign
    return links
