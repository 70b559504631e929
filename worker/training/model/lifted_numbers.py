"""Plain attributes of modules turned into tensors, so that each slot of an array has its own value.

Dropout rates become noise that is drawn outside the module (``noise.py``). Slopes of activations
become buffers, which are stacked like all other buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from worker.tasks.layers import GaussianDropout
from worker.training.math.noise import BERNOULLI, GAUSSIAN, SlotDropout


class SlotLeakyReLU(nn.Module):
    """The replacement of ``nn.LeakyReLU``. Its slope is not in the state dict."""

    negative_slope: Tensor

    def __init__(self, negative_slope: float) -> None:
        super().__init__()
        self.register_buffer(
            "negative_slope", torch.tensor(negative_slope, dtype=torch.float64), persistent=False
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute what torch computes, also at zero, in a third of the time of ``torch.where``."""
        return inputs.relu() + inputs.clamp(max=0) * self.negative_slope


class SlotELU(nn.Module):
    """The replacement of ``nn.ELU``."""

    alpha: Tensor

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float64), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute what torch computes, also at zero."""
        return inputs.relu() + self.alpha * torch.expm1(inputs.clamp(max=0))


RATES: dict[type[nn.Module], tuple[str, str]] = {
    nn.Dropout: ("p", BERNOULLI),
    GaussianDropout: ("rate", GAUSSIAN),
}
SLOPES: dict[type[nn.Module], tuple[str, Callable[[float], nn.Module]]] = {
    nn.LeakyReLU: ("negative_slope", SlotLeakyReLU),
    nn.ELU: ("alpha", SlotELU),
}
ATTRIBUTES = {kind: name for table in (RATES, SLOPES) for kind, (name, _) in table.items()}
# Attributes that set a parameter's initial value and are not used afterwards.
STARTS: dict[type[nn.Module], str] = {nn.PReLU: "init"}


def has_hooks(module: nn.Module) -> bool:
    """Return whether a forward or backward hook is registered on the module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def liftable(root: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose number can be lifted, by name.

    Such a module is found in one place only and has no hooks.
    """
    places: dict[int, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    found = {
        name: module
        for name, module in root.named_modules()
        if type(module) in ATTRIBUTES and not has_hooks(module)
    }
    return {name: module for name, module in found.items() if len(places[id(module)]) == 1 and name}


def lift(root: nn.Module, found: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Replace the modules that are ``liftable``. Return the dropout layers among them, by name."""
    device = next((p.device for p in root.parameters()), torch.device("cpu"))
    for name, module in found.items():
        if type(module) in RATES:
            new: nn.Module = SlotDropout(RATES[type(module)][1])
        else:
            attribute, build = SLOPES[type(module)]
            new = build(getattr(module, attribute)).to(device)
        new.train(module.training)
        replace(root, name, new)
    return {name: module for name, module in found.items() if type(module) in RATES}


def rate_of(module: nn.Module) -> float:
    """Return the rate of a dropout layer."""
    return float(getattr(module, RATES[type(module)][0]))


def noise_of(module: nn.Module) -> str:
    """Return the kind of noise of a dropout layer."""
    return RATES[type(module)][1]


def drawing(kind: str, rate: float) -> nn.Module:
    """Return a plain dropout layer, which draws its own noise."""
    return nn.Dropout(rate) if kind == BERNOULLI else GaussianDropout(rate)


def replace(root: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the submodule ``name`` of ``root`` by ``new``."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, new)
