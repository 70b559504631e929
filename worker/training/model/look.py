"""The first forwards of a model of a new structure. They tell what the engine has to know of it.

Everything that they change is put back.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.func import functional_call, vmap

from common.errors import TaskError
from worker.tasks import trees
from worker.tasks.trees import Tree
from worker.training.math.losses import LossParts
from worker.training.math.noise import SlotDropout, seed_generators
from worker.training.model.attributes import Path, reading
from worker.training.model.functional_noise import MOST_NUMBERS, CalledDropout, noting
from worker.training.model.layout import constants
from worker.training.model.python_state import (
    attribute_fingerprints,
    find_line,
    fingerprint,
    generators,
    path_of,
    untouched,
    users_line,
)
from worker.training.model.structure import Model
from worker.training.model.vmap_networks import places

SEED = 7  # of the noise that a module draws itself: the same in each of the forwards
# Relative to the largest output. Two forwards of the same tensors differ by nothing, or by the
# order of a sum on a GPU.
SAME = {torch.float64: 1e-10, torch.float32: 1e-4}
LOOSE = 1e-2  # for half precision
CHECKPOINT_FILE = torch.utils.checkpoint.__file__
Loss = Callable[[Tree], tuple[Tensor, LossParts]]


@dataclass(frozen=True)
class Ids:
    """Inputs that an embedding takes as they are, as numbers of its rows."""

    layer: str
    n_rows: int
    leaf: int  # place among the leaves of the inputs
    columns: tuple[int, ...]  # of an example, flattened

    def check(self, part: str, inputs: Tree) -> None:
        """Check all examples of a part of the data. A GPU would end the process.

        Raises:
            TaskError: an input is no number of a row.
        """
        given = trees.list_leaves(inputs)[self.leaf]
        found = given.reshape(len(given), -1)[:, list(self.columns)]
        low, high = int(found.min()), int(found.max())
        if not 0 <= low <= high < self.n_rows:
            raise TaskError(
                f"{part} inputs run from {low} to {high}, and the embedding {self.layer} has "
                f"{self.n_rows} rows: they must lie in 0 to {self.n_rows - 1}; give it more, or "
                "mend data()"
            )


@dataclass(frozen=True)
class Look:
    """What the first forwards tell."""

    shapes: list[tuple[int, ...]]  # of the inputs of the dropout layers, without the calls
    calls: tuple[CalledDropout, ...] = ()  # of dropout functions, if the engine can draw the noise
    # Dropout layers that are used twice, or never: they draw by calls, as any function does.
    unlifted: tuple[str, ...] = ()
    stateful: str | None = None  # why the outputs depend on more than tensors
    changing: tuple[tuple[str, str], ...] = ()  # attributes that change: module, attribute
    checkpoints: str | None = None  # where it checkpoints activations, if it does
    # The names of the parts of the task's own loss; None if it raised.
    parts: tuple[str, ...] | None = ()


def look(
    model: Model, inputs: Tree, n_classes: int | None, loss: Loss | None = None, task: Any = None
) -> Look:
    """Call a model several times on one batch.

    Args:
        model: the model.
        inputs: (B, ...) of one batch.
        n_classes: C of the outputs, None without classes.
        loss: the task's own loss of outputs (B, ...) and its parts, if it has one.
        task: has that loss.

    Raises:
        TaskError: the output is not one score per class. Without classes: some output is not a
            tensor with one row per example.
        Exception: whatever the model's forward raises.
    """
    module, unlifted = model.module, _give_back_odd(model, inputs)
    layers = [model.layer(name) for name in model.dropouts]
    with untouched(module):
        start, weights = attribute_fingerprints(module), _weights(module)
        with noting(module) as calls, _recording(layers) as seen, _checkpoints() as checkpoints:
            outputs = _call(module, inputs, training=True)
        _check_outputs(outputs, trees.count_rows(inputs), n_classes)
        begun = tuple(
            key for key, value in attribute_fingerprints(module).items() if value != start.get(key)
        )
        with noting(module):
            stateful, changing = _find_state(module, inputs, outputs)
        if stateful is None and _weights(module) != weights:
            stateful = "its forward changes parameters"
        if stateful is None and _moves_in_evaluation(module, inputs):
            stateful = "its forward changes buffers in evaluation mode too"
        why, parts = _try_loss(loss, outputs, task) if loss is not None else (None, ())
        stateful = stateful or why
    few = sum(math.prod(call.shape) for call in calls) <= MOST_NUMBERS
    return Look(
        [shapes[0] for shapes in seen],
        tuple(calls) if few and stateful is None else (),
        unlifted,
        stateful,
        tuple(dict.fromkeys(changing + begun)) if stateful is not None else (),
        checkpoints[0] if checkpoints else None,
        parts,
    )


def list_embeddings(module: nn.Module) -> tuple[tuple[str, int], ...]:
    """Return the name and the number of rows of each embedding layer."""
    return tuple(
        (name or "itself", layer.num_embeddings)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag)
    )


def find_ids(model: Model, inputs: Tree) -> tuple[Ids, ...]:
    """Return what embeddings take of the inputs in a forward.

    What the forward computes is not among it, such as numbers that it clamps.

    Args:
        model: the model.
        inputs: (B, ...).

    Raises:
        TaskError: an embedding gets a number that it has no row for.
        Exception: whatever the model's forward raises.
    """
    found: dict[Ids, None] = {}
    leaves = trees.list_leaves(inputs)

    def note(name: str, n_rows: int, given: Tensor) -> None:
        low, high = (int(given.min()), int(given.max())) if given.numel() else (0, 0)
        if not 0 <= low <= high < n_rows:
            raise TaskError(
                f"the embedding {name} gets numbers from {low} to {high}, and has {n_rows} rows: "
                f"they must lie in 0 to {n_rows - 1}; give it more, or mend data()"
            )
        for place, leaf in enumerate(leaves):
            columns = _find_columns(leaf, given)
            if columns:
                found[Ids(name, n_rows, place, columns)] = None

    hooks = [
        model.module.get_submodule("" if name == "itself" else name).register_forward_pre_hook(
            lambda _, given, name=name, n_rows=n_rows: (
                note(name, n_rows, given[0]) if given else None
            )
        )
        for name, n_rows in list_embeddings(model.module)
    ]
    try:
        with untouched(model.module), noting(model.module):
            _call(model.module, inputs, training=False)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found)


def _find_columns(leaf: Tensor, given: Tensor) -> tuple[int, ...]:
    """Return which numbers of a flattened example a tensor is a view of; none if it is no view."""
    if (
        not leaf.is_contiguous()
        or given.dtype != leaf.dtype
        or given.untyped_storage().data_ptr() != leaf.untyped_storage().data_ptr()
    ):
        return ()
    offset = given.storage_offset() - leaf.storage_offset()
    furthest = offset + sum(
        (size - 1) * step for size, step in zip(given.shape, given.stride(), strict=True)
    )
    if not given.numel() or offset < 0 or furthest >= leaf.numel():
        return ()
    positions = torch.arange(leaf.numel()).as_strided(given.shape, given.stride(), offset)
    return tuple(sorted(set((positions % (leaf.numel() // len(leaf))).flatten().tolist())))


@contextmanager
def _checkpoints() -> Iterator[list[str]]:
    """Yield the lines of the user's code that checkpoint activations, as they are called."""
    found: list[str] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name == "checkpoint" and code.co_filename == CHECKPOINT_FILE:
            found.append(users_line(frame))

    outer: Any = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield found
    finally:
        # cProfile's own function is an object that is no callable, but can be enabled again.
        if hasattr(outer, "enable"):
            outer.enable()
        else:
            sys.setprofile(outer)


def _give_back_odd(model: Model, inputs: Tree) -> tuple[str, ...]:
    """Give back the dropout layers that a forward uses more than once, or never.

    Returns:
        Their names.
    """
    if not model.dropouts:
        return ()
    layers = [model.layer(name) for name in model.dropouts]
    with untouched(model.module), noting(model.module), _recording(layers) as seen:
        _call(model.module, inputs, training=True)
    odd = tuple(n for n, shapes in zip(model.dropouts, seen, strict=True) if len(shapes) != 1)
    model.give_back(odd)
    return odd


@contextmanager
def _recording(layers: Sequence[SlotDropout]) -> Iterator[list[list[tuple[int, ...]]]]:
    """Yield the shapes of the inputs of each layer, which grow with each forward."""
    seen: list[list[tuple[int, ...]]] = [[] for _ in layers]
    for layer, shapes in zip(layers, seen, strict=True):
        layer.seen = shapes
    try:
        yield seen
    finally:
        for layer in layers:
            layer.seen = None


def _weights(module: nn.Module) -> list[str]:
    """Return the sum of each parameter, which tells whether a forward writes into it.

    It is a text, since NaN is not equal to itself. Versions of tensors do not see what is written
    through ``.data``.
    """
    return [str(float(p.detach().double().sum())) for p in module.parameters()]


def called_rates(model: Model, inputs: Tree) -> tuple[CalledDropout, ...]:
    """Return the calls of dropout functions in a training forward, with the rates of this trial."""
    with untouched(model.module), noting(model.module) as calls:
        _call(model.module, inputs, training=True)
    return tuple(calls)


def reads(model: Model, inputs: Tree) -> dict[Path, str]:
    """Return the attributes that a forward reads in either mode, each with the line."""
    with (
        untouched(model.module),
        noting(model.module),
        reading(model.attributes) as found,
    ):
        _call(model.module, inputs, training=True)
        _call(model.module, inputs, training=False)
    return found


def takes_tensors(
    model: Model, inputs: Tree, paths: Sequence[Path], others: Sequence[float]
) -> bool:
    """Return whether a stacked forward takes numbers in attributes as tensors, one a slot.

    Args:
        model: the model, which has one of the values.
        inputs: (B, ...).
        paths: of the numbers.
        others: the values in another model.
    """
    module = model.module
    held = [model.attributes.place(path) for path in paths]
    own = [model.attributes.numbers[path] for path in paths]
    dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())
    device = trees.first_leaf(inputs).device
    numbers = torch.tensor([own, list(others)], dtype=dtype, device=device)
    tensors = places(module)
    try:
        with untouched(module), noting(module):
            for training in (True, False):
                expected = _call(module, inputs, training)
                buffers = {
                    name: tensor.expand(2, *tensor.shape).clone()
                    for name, tensor in constants(module).items()
                }

                def call(values: Tensor, buffers: Mapping[str, Tensor]) -> Tree:
                    swaps = [
                        (holder, key, buffers[name])
                        for holder, key, name in tensors
                        if name in buffers
                    ]
                    swaps += [
                        (*place, value) for place, value in zip(held, values.unbind(), strict=True)
                    ]
                    with _swapped(swaps):
                        return module(inputs)

                module.train(training)
                seed_generators(SEED, device)
                with torch.set_grad_enabled(training):
                    found = _detach(vmap(call)(numbers, buffers))
                if not _same(trees.pick(found, 0), expected):
                    return False
    except Exception:  # the forward's own code, or torch's refusal of a tensor, raises anything
        return False
    return True


@contextmanager
def _swapped(swaps: Sequence[tuple[dict[str, Any], str, Any]]) -> Iterator[None]:
    kept = [(holder, key, holder[key]) for holder, key, _ in swaps]
    try:
        for holder, key, value in swaps:
            holder[key] = value
        yield
    finally:
        for holder, key, value in kept:
            holder[key] = value


def _moves_in_evaluation(module: nn.Module, inputs: Tree) -> bool:
    """Return whether a forward in evaluation mode changes a buffer.

    The engine evaluates on other examples, and more often, than a loop that counts on it.
    """
    module.eval()
    with torch.no_grad():
        before = {name: tensor.clone() for name, tensor in constants(module).items()}
        module(inputs)
        after = constants(module)
    return any(not torch.equal(before[name], after[name]) for name in before if name in after)


def _call(module: nn.Module, inputs: Tree, training: bool) -> Tree:
    """Return the outputs, with the module's own noise the same at each call."""
    module.train(training)
    seed_generators(SEED, trees.first_leaf(inputs).device)
    # Copies, because batch norm updates its statistics.
    copies = {name: tensor.clone() for name, tensor in constants(module).items()}
    # With gradients as in training, since a forward may ask whether they are computed.
    with torch.set_grad_enabled(training):
        return _detach(functional_call(module, copies, (inputs,)))


def _detach(outputs: Tree) -> Tree:
    return trees.map_leaves(lambda one: one.detach() if isinstance(one, Tensor) else one, outputs)


def _find_state(
    module: nn.Module, inputs: Tree, outputs: Tree
) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """Return what more forwards show: why the model is stateful, and what it changes.

    Args:
        module: it has been called once.
        inputs: (B, ...).
        outputs: of the first call in training mode. What that filled, and what stays then, is a
            cache.
    """

    def again(batch: Tree = inputs) -> tuple[Tree, Tree]:
        return _call(module, batch, training=True), _call(module, inputs, training=False)

    drawn = generators()
    found, evaluated = again()
    before, after = attribute_fingerprints(module), generators()
    second, _ = again()
    changing = _changed(module, before)
    for name, state in generators().items():
        if state != after[name] or state != drawn[name]:
            line = find_line(again, lambda name=name: generators()[name])  # type: ignore[misc]
            return f"its forward draws {name} random numbers{line}", changing
    if not changing and not (_same(found, outputs) and _same(second, outputs)):
        return "its forward gives other outputs at each call, of the same tensors", changing
    if not changing:
        # Other examples may leave something behind that the same examples do not.
        n = trees.count_rows(inputs)
        half = trees.pick(inputs, slice(n // 2, None))
        others = trees.pick(trees.join([half, half]), slice(n))
        _, later = again(others)
        if not (_same(later, evaluated) and _same(again()[0], outputs)):
            again(others)
            changing = _changed(module, before)
            again()
            if not changing:
                return "its forward depends on the batches before", changing
    if changing:
        name, key = changing[0]
        owner = module.get_submodule(name)
        line = find_line(again, lambda: fingerprint(vars(owner).get(key)))
        return f"its forward changes the attribute `{path_of(name, key)}`{line}", changing
    return None, changing


def _changed(
    module: nn.Module, before: Mapping[tuple[str, str], Hashable]
) -> tuple[tuple[str, str], ...]:
    """Return the attributes that are not what they were."""
    now = attribute_fingerprints(module)
    return tuple(key for key, value in now.items() if value != before.get(key))


def _try_loss(loss: Loss, outputs: Tree, task: Any) -> tuple[str | None, tuple[str, ...] | None]:
    """Return why a task's own loss is stateful, or None, and the names of its parts."""
    held = vars(task) if hasattr(task, "__dict__") else {}
    kept = {k: copy.copy(v) if isinstance(v, list | dict | set) else v for k, v in held.items()}

    def call() -> tuple[Tensor, LossParts]:
        seed_generators(SEED, trees.first_leaf(outputs).device)
        return loss(trees.map_leaves(torch.clone, outputs))

    try:
        found, of_parts = call()
        parts = tuple(of_parts)
        drawn, before = generators(), {key: fingerprint(value) for key, value in held.items()}
        again, _ = call()
        for name, state in generators().items():
            if state != drawn[name]:
                line = find_line(call, lambda name=name: generators()[name])  # type: ignore[misc]
                return f"its loss draws {name} random numbers{line}", parts
        for key, value in held.items():
            if fingerprint(value) != before.get(key):
                line = find_line(call, lambda key=key: fingerprint(held.get(key)))  # type: ignore[misc]
                who = f"attribute `{key}` of the task, which all trials share"
                return f"its loss changes the {who}{line}", parts
        if not _same(again, found):
            return "its loss gives other values at each call, of the same tensors", parts
    except Exception:  # the loss raises again in the training, where it is told
        return None, None
    finally:
        for key in held.keys() - kept.keys():
            del held[key]
        held.update(kept)
    return None, parts


def _same(one: Tree, other: Tree) -> bool:
    """Return whether outputs are equal, up to the order of a sum."""
    (mine, structure), (theirs, expected) = trees.flatten(one), trees.flatten(other)
    return structure == expected and all(map(_same_leaf, mine, theirs))


def _same_leaf(one: object, other: Tensor) -> bool:
    if not isinstance(one, Tensor) or one.shape != other.shape:
        return False
    if not other.is_floating_point():
        return torch.equal(one, other)
    gap = (one - other).abs()
    scale = other.abs().amax().clamp(min=1e-30) if other.numel() else other.new_ones(())
    far = gap > scale * SAME.get(other.dtype, LOOSE)
    return not bool((far & (one.isfinite() | other.isfinite())).any())


def _check_outputs(outputs: Tree, n_examples: int, n_classes: int | None) -> None:
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if n_classes is not None and shape != (n_examples, n_classes):
        raise TaskError(
            f"the model returns {shape} for {n_examples} examples; logits of shape ({n_examples}, "
            f"{n_classes}) are needed"
        )
    leaves = trees.list_leaves(outputs)
    for leaf in leaves or [outputs]:
        if not isinstance(leaf, Tensor) or leaf.shape[:1] != (n_examples,):
            held = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            told = shape if leaf is outputs else f"a {shape} with {held}"
            raise TaskError(
                f"the model returns {told} for {n_examples} examples; a tensor with a row for each "
                "of them is needed, or a container of such tensors"
            )
