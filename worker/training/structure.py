"""Which models may share an array: the same but for parameters, buffers and the rates of dropout."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import TaskError
from worker.training.layout import Layout, constants
from worker.training.noise import SlotDropout
from worker.training.recipe import Recipe

INTERNAL = frozenset({"training", "_parameters", "_buffers", "_modules"})  # described apart
EMPTY = frozenset(vars(nn.Module())) - INTERNAL  # what every module has, and says nothing as long as it is empty


@dataclass(frozen=True)
class Structure:
    """What all slots of an array have in common."""

    signature: Hashable
    recipe_key: Hashable  # (update rule, batch size): what is not a number for each slot
    alone: bool = False  # cannot be stacked, or may not


@dataclass
class Model:
    """One trial's own module, made ready for the engine. Dropout layers with a rate have become ``SlotDropout``."""

    module: nn.Module
    layout: Layout
    recipe: Recipe
    structure: Structure
    rates: tuple[float, ...]
    dropouts: tuple[str, ...]  # names of those layers


def prepare(module: nn.Module, recipe: Recipe, alone: bool) -> Model:
    """Describes ``module`` and lifts its dropout rates out of it."""
    structure = Structure(signature(module), (recipe.rule, recipe.batch_size), alone)
    paths = Counter(id(m) for _, m in module.named_modules(remove_duplicate=False))
    found = [(name, m) for name, m in module.named_modules() if lifted(m) and paths[id(m)] == 1]
    for name, _ in found:
        _replace(module, name, SlotDropout())
    rates = tuple(m.p for _, m in found if isinstance(m, nn.Dropout))
    return Model(module, Layout.of(module), recipe, structure, rates, tuple(name for name, _ in found))


def lifted(module: nn.Module) -> bool:
    """Whether its rate becomes a column. A rate of zero does nothing and stays: such models are a structure of their own."""
    return type(module) is nn.Dropout and module.p > 0 and not _hooked(module)


def mask_shapes(model: Model, inputs: Tensor, n_classes: int) -> list[tuple[int, ...]] | None:
    """The shape of each dropout layer's input for a batch, None if one is passed through more or less often than once.

    Raises:
        TaskError: the model's output is not one logit a class.
        Exception: whatever its forward raises.
    """
    layers = [model.module.get_submodule(name) for name in model.dropouts]
    slots = [layer for layer in layers if isinstance(layer, SlotDropout)]
    for slot in slots:
        slot.seen = []
    model.module.train()
    with torch.no_grad():
        copies = {name: tensor.clone() for name, tensor in constants(model.module).items()}  # batch norm moves its statistics
        logits = torch.func.functional_call(model.module, copies, (inputs,))
    if not isinstance(logits, Tensor) or logits.shape != (len(inputs), n_classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TaskError(f"the model makes {shape} of {len(inputs)} examples; logits of shape ({len(inputs)}, {n_classes}) are needed")
    seen = [slot.seen or [] for slot in slots]
    for slot in slots:
        slot.seen = None
    return [shapes[0] for shapes in seen] if all(len(shapes) == 1 for shapes in seen) else None


def give_back_dropout(model: Model) -> None:
    """Undoes the lifting: the model draws its own noise and trains alone."""
    for name, rate in zip(model.dropouts, model.rates, strict=True):
        _replace(model.module, name, nn.Dropout(rate))
    model.dropouts, model.rates = (), ()


def signature(module: nn.Module) -> Hashable:
    """All that can be seen of a module's structure. What cannot be seen, the check of each new array finds."""
    shared = {id(p): name for name, p in module.named_parameters()}
    tied = tuple((name, shared[id(p)]) for name, p in module.named_parameters(remove_duplicate=False) if shared[id(p)] != name)
    return tuple(_described(name, m) for name, m in module.named_modules()), tied


def _described(name: str, module: nn.Module) -> Hashable:
    tensors = [
        (n, tuple(t.shape), t.dtype, t.requires_grad) for n, t in (*module._parameters.items(), *module._buffers.items()) if t is not None
    ]
    hidden = INTERNAL | {"p"} if lifted(module) else INTERNAL
    plain = tuple((key, _plain(value)) for key, value in vars(module).items() if key not in hidden and (value or key not in EMPTY))
    return name, type(module), tuple(tensors), plain


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


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _replace(root: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, new)


def chain_of(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers of a plain perceptron in order, with their names; None if ``module`` is anything else."""
    links = list(_links(module, ""))
    plain = all(type(m) in (nn.Linear, nn.ReLU, nn.Identity, SlotDropout) or _idle(m) for _, m in links)
    trained = all(p.requires_grad for p in module.parameters())
    once = len({id(p) for p in module.parameters()}) == len(list(module.named_parameters(remove_duplicate=False)))
    hooked = any(_hooked(m) for m in module.modules())
    return links if plain and trained and once and not hooked and isinstance(links[0][1], nn.Linear) else None


def _links(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        yield name, module
        return
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _links(child, f"{name}.{child_name}" if name else child_name)


def _idle(module: nn.Module) -> bool:
    return type(module) is nn.Dropout and module.p == 0
