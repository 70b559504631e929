"""Which models may share an array.

They must be equal except for parameters, buffers, dropout rates and slopes of activations.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from worker.tasks.models import Layers, Start
from worker.training.math.noise import BERNOULLI, SlotDropout, level
from worker.training.math.recipe import Recipe
from worker.training.model.attributes import Attributes, Path, attributes_of
from worker.training.model.chain import LINKS
from worker.training.model.functional_noise import CalledDropout, name_of
from worker.training.model.groups import Group
from worker.training.model.layout import Layout
from worker.training.model.lifted_numbers import (
    RATES,
    drawing,
    has_hooks,
    lift,
    liftable,
    noise_of,
    rate_of,
    replace,
)
from worker.training.model.obstacles import obstacle
from worker.training.model.python_state import COMMON, INTERNAL

# Attributes that every module has. They matter only where they are not empty.
EMPTY = COMMON - INTERNAL
LARGEST_COMPARED = 1 << 12  # numbers of a tensor in an attribute; of a larger one, the shape alone
LIFTED = "lifted "  # before the path of a lifted number, in the names of tensors


@dataclass(frozen=True)
class Structure:
    """What all slots of an array have in common."""

    signature: Hashable
    recipe_key: Hashable  # what cannot differ between slots: the update rule, batch size, ...
    alone: bool = False  # the model cannot be stacked, or must not be


@dataclass
class Model:
    """The module of one trial, ready for the engine.

    Its numbers have been lifted out of it (see ``lifted_numbers.py``).
    """

    module: nn.Module
    layout: Layout
    recipe: Recipe
    structure: Structure
    rates: tuple[float, ...]  # rates of the dropout layers
    dropouts: tuple[str, ...]  # names of the dropout layers
    noises: tuple[str, ...] = ()  # kinds of noise of the dropout layers
    obstacle: str | None = None  # why it cannot be stacked, if a reason was seen
    groups: tuple[Group, ...] = ()  # parameters with a learning rate or decay of their own
    frame: Hashable = None  # its layers and tensors
    attributes: Attributes = field(default_factory=lambda: Attributes({}, {}, {}))
    lifted: tuple[Path, ...] = ()  # numbers in attributes of which each slot has its own
    calls: tuple[CalledDropout, ...] = ()  # the last of the ``dropouts``: those without a module
    # Why it depends on what only its own module knows, such as a counter in an attribute.
    stateful: str | None = None
    checkpoints: bool = False  # whether it computes parts of its forward again in the backward
    changing: tuple[tuple[str, str], ...] = ()  # the attributes that its forward changes
    layers: Layers | None = None  # of a built-in model, with which other trials start
    # What the trial begins with, where the module is another trial's. None: it is its own.
    start: Start | None = None

    @property
    def levels(self) -> list[tuple[int, float]]:
        """The (threshold, scale) of each dropout layer, in the form that ``DropoutMasks`` takes."""
        return [level(kind, rate) for kind, rate in zip(self.noises, self.rates, strict=True)]

    @property
    def numbers(self) -> dict[str, float]:
        """The lifted numbers, by the names of their tensors."""
        return {lifted_name(path): self.attributes.numbers[path] for path in self.lifted}

    def layer(self, name: str) -> SlotDropout:
        """Return a dropout layer."""
        own = self.dropouts[len(self.dropouts) - len(self.calls) :]
        if name in own:
            return self.calls[own.index(name)]
        found = self.module.get_submodule(name)
        assert isinstance(found, SlotDropout)
        return found

    def take_calls(self, calls: tuple[CalledDropout, ...]) -> None:
        """Let the engine draw the noise of these calls of dropout in the forward; () for none."""
        n = len(self.dropouts) - len(self.calls)
        self.calls = calls
        names = tuple(name_of(number) for number in range(len(calls)))
        self.dropouts = self.dropouts[:n] + names
        self.rates = self.rates[:n] + tuple(call.rate for call in calls)
        self.noises = self.noises[:n] + (BERNOULLI,) * len(calls)

    def give_back(self, names: Collection[str]) -> None:
        """Undo the lifting of dropout layers. They then draw their noise by a call."""
        left = []
        for name, kind, rate in zip(self.dropouts, self.noises, self.rates, strict=True):
            if name in names:
                layer = drawing(kind, rate)
                layer.train(self.module.get_submodule(name).training)
                replace(self.module, name, layer)
            else:
                left.append((name, kind, rate))
        self.dropouts = tuple(name for name, _, _ in left)
        self.noises = tuple(kind for _, kind, _ in left)
        self.rates = tuple(rate for _, _, rate in left)


def prepare(module: nn.Module, recipe: Recipe, alone: bool, groups: Sequence[Group] = ()) -> Model:
    """Describe ``module`` and lift its numbers out of it."""
    lifted = liftable(module)
    own_frame, attributes = frame(module, lifted), attributes_of(module, _plain, lifted)
    layout = Layout.of(module, groups)
    key = (recipe.key, tuple(layout.groups.items()), layout.decayed)
    structure = Structure((own_frame, frozenset(attributes.values.items())), key, alone)
    why = obstacle(module, lifted)
    found = lift(module, lifted)
    rates, noises = (
        tuple(rate_of(m) for m in found.values()),
        tuple(noise_of(m) for m in found.values()),
    )
    return Model(
        module,
        layout,
        recipe,
        structure,
        rates,
        tuple(found),
        noises,
        why,
        tuple(groups),
        own_frame,
        attributes,
    )


def lifted_name(path: Path) -> str:
    """Return the name of a lifted number's tensor."""
    return LIFTED + ".".join(path)


def signature(module: nn.Module) -> Hashable:
    """Describe all that can be seen of a module, before its numbers are lifted.

    What this misses, ``agreement.differences`` catches when an array is built.
    """
    lifted = liftable(module)
    found = attributes_of(module, _plain, lifted)
    return frame(module, lifted), frozenset(found.values.items())


def frame(module: nn.Module, lifted: Collection[str]) -> Hashable:
    """Describe a module's layers, tensors and hooks, without plain attributes.

    ``lifted`` are the names of the layers whose numbers are lifted.
    """
    shared = {id(p): name for name, p in module.named_parameters()}
    tied = tuple(
        (name, shared[id(p)])
        for name, p in module.named_parameters(remove_duplicate=False)
        if shared[id(p)] != name
    )
    return tuple(_describe(name, m, name in lifted) for name, m in module.named_modules()), tied


def _describe(name: str, module: nn.Module, lifted: bool) -> Hashable:
    tensors = [
        (n, tuple(t.shape), t.dtype, t.requires_grad)
        for n, t in (*module._parameters.items(), *module._buffers.items())
        if t is not None
    ]
    # The keys of hooks are mere counters, so only their values are compared.
    common = tuple(
        (key, _plain(list(value.values()) if "_hooks" in key else value))
        for key, value in vars(module).items()
        if key in EMPTY and value
    )
    # torch makes a new class for each such module
    parametrized = hasattr(module, "parametrizations")
    kind = type(module).__base__ if parametrized else type(module)
    assert kind is not None  # only object has no base
    # The class goes by name: a class defined within model() is a new one for each trial.
    return (name, (kind.__module__, kind.__qualname__), lifted, tuple(tensors), common)


def _plain(value: object) -> Hashable:
    """Return a hashable that is equal for equal attributes.

    A value that cannot be compared is replaced by the name of its type.
    """
    if value is None or isinstance(
        value, bool | int | float | str | bytes | torch.dtype | torch.device
    ):
        return (type(value).__name__, value)
    if isinstance(value, tuple | list | set | frozenset):
        items = [_plain(item) for item in value]
        return (
            type(value).__name__,
            tuple(sorted(items, key=repr) if isinstance(value, set | frozenset) else items),
        )
    if isinstance(value, dict):
        return (type(value).__name__, tuple((_plain(k), _plain(v)) for k, v in value.items()))
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return (value.__module__, value.__qualname__)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        small = not is_lazy(value) and value.numel() <= LARGEST_COMPARED
        return (
            "Tensor",
            tuple(value.shape),
            str(value.dtype),
            str(value.tolist()) if small else "",
        )
    return (type(value).__module__, type(value).__qualname__)


def chain_of(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """Return the layers of a plain perceptron in order, with their names, or None.

    None means that ``module`` is not a plain perceptron.
    """
    links = [(name, m) for name, m in _links(module, "") if not _idle(m)]
    plain = all(LINKS[type(m)].takes(m) if type(m) in LINKS else False for _, m in links)
    trained = all(p.requires_grad for p in module.parameters())
    once = len({id(p) for p in module.parameters()}) == len(
        list(module.named_parameters(remove_duplicate=False))
    )
    linear = any(type(m) is nn.Linear for _, m in links)
    return (
        links
        if plain and trained and once and linear and not any(has_hooks(m) for m in module.modules())
        else None
    )


def _links(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        yield name, module
        return
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _links(child, f"{name}.{child_name}" if name else child_name)


def _idle(module: nn.Module) -> bool:
    return type(module) is nn.Identity or (type(module) in RATES and rate_of(module) == 0)
