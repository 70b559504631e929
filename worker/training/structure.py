"""Which models may share an array: the same but for parameters, buffers, the rates of dropout and the slopes of activations."""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import TaskError
from worker.training.chain import LINKS
from worker.training.knobs import ATTRIBUTES, RATES, STARTS, drawing, hooked, lift, liftable, noise_of, rate_of, replace
from worker.training.layout import Layout, constants
from worker.training.noise import SlotDropout, level
from worker.training.obstacles import obstacle
from worker.training.recipe import Recipe

INTERNAL = frozenset({"training", "_parameters", "_buffers", "_modules"})  # described apart
EMPTY = frozenset(vars(nn.Module())) - INTERNAL  # what every module has, and says nothing as long as it is empty


@dataclass(frozen=True)
class Structure:
    """What all slots of an array have in common."""

    signature: Hashable
    recipe_key: Hashable  # update rule, batch size, ...: what is not a number for each slot
    alone: bool = False  # cannot be stacked, or may not


@dataclass
class Model:
    """One trial's own module, made ready for the engine: numbers have been lifted out of it (see ``knobs.py``)."""

    module: nn.Module
    layout: Layout
    recipe: Recipe
    structure: Structure
    rates: tuple[float, ...]  # of dropout
    dropouts: tuple[str, ...]  # names of those layers
    noises: tuple[str, ...] = ()  # and the kinds of their noise
    obstacle: str | None = None  # why it cannot be stacked, as far as can be seen

    @property
    def levels(self) -> list[tuple[int, float]]:
        """(threshold, scale) of each dropout layer, as ``DropoutMasks`` takes them."""
        return [level(kind, rate) for kind, rate in zip(self.noises, self.rates, strict=True)]


def prepare(module: nn.Module, recipe: Recipe, alone: bool) -> Model:
    """Describes ``module`` and lifts its numbers out of it."""
    structure = Structure(signature(module), recipe.key, alone)
    why = obstacle(module)
    found = lift(module)
    rates, noises = tuple(rate_of(m) for m in found.values()), tuple(noise_of(m) for m in found.values())
    return Model(module, Layout.of(module), recipe, structure, rates, tuple(found), noises, why)


def mask_shapes(model: Model, inputs: Tensor, n_classes: int | None) -> list[tuple[int, ...]] | None:
    """The shape of each dropout layer's input for a batch, None if one is passed through more or less often than once.

    Raises:
        TaskError: the model's output is not one score a class, or, without classes, no tensor with a row for each example.
        Exception: whatever its forward raises.
    """
    layers = [model.module.get_submodule(name) for name in model.dropouts]
    slots = [layer for layer in layers if isinstance(layer, SlotDropout)]
    for slot in slots:
        slot.seen = []
    model.module.train()
    try:
        with torch.no_grad():
            copies = {name: tensor.clone() for name, tensor in constants(model.module).items()}  # batch norm moves its statistics
            outputs = torch.func.functional_call(model.module, copies, (inputs,))
        _check_outputs(outputs, len(inputs), n_classes)
        seen = [slot.seen or [] for slot in slots]
    finally:
        for slot in slots:
            slot.seen = None
    return [shapes[0] for shapes in seen] if all(len(shapes) == 1 for shapes in seen) else None


def _check_outputs(outputs: object, n_examples: int, n_classes: int | None) -> None:
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if n_classes is not None and shape != (n_examples, n_classes):
        raise TaskError(f"the model makes {shape} of {n_examples} examples; logits of shape ({n_examples}, {n_classes}) are needed")
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != (n_examples,):
        raise TaskError(f"the model makes {shape} of {n_examples} examples; a tensor with a row for each of them is needed")


def give_back_dropout(model: Model) -> None:
    """Undoes the lifting of rates: the model draws its own noise and trains alone."""
    for name, kind, rate in zip(model.dropouts, model.noises, model.rates, strict=True):
        replace(model.module, name, drawing(kind, rate))
    model.dropouts, model.rates, model.noises = (), (), ()


def signature(module: nn.Module) -> Hashable:
    """All that can be seen of a module's structure before its numbers are lifted. The rest, the check of each new array finds."""
    shared = {id(p): name for name, p in module.named_parameters()}
    tied = tuple((name, shared[id(p)]) for name, p in module.named_parameters(remove_duplicate=False) if shared[id(p)] != name)
    lifted = liftable(module)
    return tuple(_described(name, m, name in lifted) for name, m in module.named_modules()), tied


def _described(name: str, module: nn.Module, lifted: bool) -> Hashable:
    tensors = [
        (n, tuple(t.shape), t.dtype, t.requires_grad) for n, t in (*module._parameters.items(), *module._buffers.items()) if t is not None
    ]
    hidden = INTERNAL | {STARTS.get(type(module), ""), ATTRIBUTES[type(module)] if lifted else ""}
    seen = {key: value for key, value in vars(module).items() if key not in hidden and (key not in EMPTY or value)}
    plain = tuple(
        (key, _plain(list(value.values()) if "_hooks" in key else value)) for key, value in seen.items()
    )  # keys are mere counters
    parametrized = hasattr(module, "parametrizations")  # torch makes a class for each such module
    kind = type(module).__base__ if parametrized else type(module)
    assert kind is not None  # only object has none
    return name, (kind.__module__, kind.__qualname__), tuple(tensors), plain  # by name: a class within model() is made anew for each trial


def _plain(value: object) -> Hashable:
    """A value that is equal for equal attributes; for what has no value to compare, its kind."""
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype | torch.device):
        return (type(value).__name__, value)
    if isinstance(value, tuple | list | set | frozenset):
        items = [_plain(item) for item in value]
        return (type(value).__name__, tuple(sorted(items, key=repr) if isinstance(value, set | frozenset) else items))
    if isinstance(value, dict):
        return (type(value).__name__, tuple((_plain(k), _plain(v)) for k, v in value.items()))
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return (value.__module__, value.__qualname__)
    return (type(value).__module__, type(value).__qualname__)


def chain_of(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers of a plain perceptron in order, with their names; None if ``module`` is anything else."""
    links = [(name, m) for name, m in _links(module, "") if not _idle(m)]
    plain = all(LINKS[type(m)].takes(m) if type(m) in LINKS else False for _, m in links)
    trained = all(p.requires_grad for p in module.parameters())
    once = len({id(p) for p in module.parameters()}) == len(list(module.named_parameters(remove_duplicate=False)))
    linear = any(type(m) is nn.Linear for _, m in links)
    return links if plain and trained and once and linear and not any(hooked(m) for m in module.modules()) else None


def _links(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        yield name, module
        return
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _links(child, f"{name}.{child_name}" if name else child_name)


def _idle(module: nn.Module) -> bool:
    return type(module) is nn.Identity or (type(module) in RATES and rate_of(module) == 0)
