"""Forward and backward passes of any module: many stacked by ``torch.func``, or one alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from worker.tasks import trees
from worker.tasks.layers import GaussianDropout
from worker.tasks.trees import Tree
from worker.training.math.ends import join
from worker.training.math.noise import SlotDropout
from worker.training.math.precision import (
    BF16,
    FP32,
    casting,
    casting_stacked,
    widen,
    without_onednn,
)
from worker.training.model.functional_noise import drawing
from worker.training.model.network import Buffers, Observed, OfLayout, find_activation_kind
from worker.training.model.structure import Model, lifted_name

IMAGE_DIMS = 4  # (B, channels, height, width); filters have as many
NOISY = (SlotDropout, GaussianDropout, nn.modules.dropout._DropoutNd, nn.RReLU)


class _Called(OfLayout):
    """The common part of the networks that call the module itself."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.layout)
        self._module = model.module
        self._mask_names = [f"{name}.mask" for name in model.dropouts]
        self._outputs: Tree = None
        self._activity: Tensor | None = None  # with its graph
        self._model = model
        self._precision = model.recipe.kind("precision")
        self._lent: list[tuple[dict[str, Any], str, Any]] = []  # (holder, key, the module's own)
        self._places = model_places(model)

    def bind_views(self, parameters: Buffers, gradients: Buffers, buffers: Buffers) -> None:
        """See ``Network``. The leaves are views, so the next forward sees an in-place update."""
        self._leaves = {
            name: parameter.detach().requires_grad_() for name, parameter in parameters.items()
        }
        self._gradients = gradients
        self._buffers = buffers

    def backward(self, gradient: Tree, activation_l1: Tensor | None = None) -> None:
        """See ``Network``. A parameter that the forward did not use gets a gradient of zero."""
        if self._outputs is None:
            raise RuntimeError("backward before forward")
        leaves, outputs = list(self._leaves.values()), trees.list_leaves(self._outputs)
        # Such as an output that is a whole number.
        fixed = len(outputs) > 1 and any(not output.requires_grad for output in outputs)
        pairs = [
            (output, own)
            for output, own in zip(outputs, trees.list_leaves(gradient), strict=True)
            if not fixed or output.requires_grad
        ]
        ends, directions = [output for output, _ in pairs], [own for _, own in pairs]
        if activation_l1 is not None and self._activity is not None:
            ends, directions = [*ends, self._activity], [*directions, activation_l1]
        if self._model.checkpoints:
            found = self._gradients_by_backward(ends, directions)
        else:
            found = torch.autograd.grad(join(ends, directions), leaves, allow_unused=True)
        self._outputs = self._activity = None
        for (name, leaf), one in zip(self._leaves.items(), found, strict=True):
            self._gradients[name].copy_(one if one is not None else torch.zeros_like(leaf))

    def _gradients_by_backward(
        self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the leaves, by the only way that reentrant checkpoints allow."""
        leaves = self._leaves.values()
        for leaf in leaves:
            leaf.grad = None
        try:
            torch.autograd.backward(join(outputs, gradients))
            return tuple(leaf.grad for leaf in leaves)
        finally:
            self._release()
            for leaf in leaves:
                leaf.grad = None

    def _call(self, tensors: Mapping[str, Tensor], inputs: Tree) -> Tree:
        return self._plain(tensors, inputs)

    def _plain(self, tensors: Mapping[str, Tensor], inputs: Tree) -> Tree:
        """Do what ``torch.func.functional_call`` does, with places that were looked up once.

        Looking them up at each call costs a third of a small step.
        """
        self._release()
        try:
            for holder, key, name in self._places:
                if name in tensors:
                    self._lent.append((holder, key, holder[key]))
                    holder[key] = tensors[name]
            with drawing(self._module, self._model.calls), self._casting():
                outputs = self._run(inputs)
            self._take_over(tensors)
        finally:
            if not (self._model.checkpoints and torch.is_grad_enabled()):
                self._release()
        return widen(outputs) if self._precision == BF16 else outputs

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Compute in float32 within the block, whatever the precision."""
        before, self._precision = self._precision, FP32
        try:
            yield
        finally:
            self._precision = before

    def _run(self, inputs: Tree) -> Tree:
        return self._module(inputs)

    def _casting(self) -> AbstractContextManager[Any]:
        return casting_stacked(self._precision)

    def _release(self) -> None:
        """Put the module's own tensors back.

        Where parts of the forward are computed again in the backward, the tensors stay until then.
        """
        while self._lent:
            holder, key, own = self._lent.pop()
            holder[key] = own

    def _take_over(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the values of replaced buffers into the bound tensors.

        A forward may assign a new tensor to a buffer instead of writing into the old one.
        """
        for holder, key, name in self._places:
            moved = holder[key]
            if (
                name in self._buffers
                and name in tensors
                and moved is not tensors[name]
                and isinstance(moved, Tensor)
            ):
                tensors[name].copy_(moved.detach())

    def _watch(self, tensors: Mapping[str, Tensor], inputs: Tree) -> tuple[Tensor, ...]:
        """Return the outputs of the activation layers, in the order of the forward.

        Their names and kinds are put in ``_told``.
        """
        found: list[Tensor] = []
        self._told: list[tuple[str, str]] = []
        with self._hooked(lambda name, kind: self._noting(name, kind, found)):
            self._plain(tensors, inputs)
        return tuple(found)

    def _measure(self, tensors: Mapping[str, Tensor], inputs: Tree) -> tuple[Tree, Tensor]:
        """Return the outputs and the activity, 0-d."""
        sizes: list[Tensor] = []

        def note(module: nn.Module, given: object, output: Tensor) -> None:
            # Clone it, because the next layer may overwrite it. A sum in bfloat16 would lose most.
            own = output.float() if output.dtype == torch.bfloat16 else output.clone()
            sizes.append(own.abs().sum())

        with self._hooked(lambda name, kind: note):
            outputs = self._plain(tensors, inputs)
        total = torch.stack(sizes).sum() if sizes else trees.first_leaf(outputs).new_zeros(())
        return outputs, total / trees.count_rows(inputs)

    @contextmanager
    def _hooked(self, hook: Callable[[str, str], Callable[..., None]]) -> Iterator[None]:
        """Call a hook after each forward of an activation layer, given its name and kind."""
        handles = [
            module.register_forward_hook(hook(name, kind))
            for name, module in self._module.named_modules()
            if (kind := find_activation_kind(module)) is not None
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, activity: Tensor) -> None:
        """Keep the activity (K,), and its graph if it depends on a parameter."""
        self.activity = activity.detach()
        self._activity = activity if activity.requires_grad else None

    def _noting(
        self, name: str, kind: str, found: list[Tensor]
    ) -> Callable[[nn.Module, object, Tensor], None]:
        def note(module: nn.Module, given: object, output: Tensor) -> None:
            again = sum(told == name or told.startswith(f"{name}#") for told, _ in self._told)
            # A layer that is used twice gets a numbered name.
            self._told.append((f"{name}#{again + 1}" if again else name, kind))
            # Copied, because the next layer may overwrite it.
            found.append(output.float() if output.dtype == torch.bfloat16 else output.clone())

        return note

    def _mode(self, training: bool) -> None:
        if self._module.training != training:
            self._module.train(training)

    @contextmanager
    def _noisy(self) -> Iterator[None]:
        """Switch to evaluation mode, except for the layers that draw noise."""
        self._mode(False)
        layers = [m for m in self._module.modules() if isinstance(m, NOISY)]
        try:
            for layer in layers:
                layer.training = True
            yield
        finally:
            for layer in layers:
                layer.training = False


class StackedNetwork(_Called):
    """Any module that ``torch.vmap`` supports."""

    def forward(
        self, inputs: Tree, shared: bool, masks: Sequence[Tensor], activity: bool = False
    ) -> Tree:
        """See ``Network``. vmap refuses a module that draws noise; such a model trains alone."""
        self._mode(True)
        call: Callable[..., Any] = self._measure if activity else self._call
        with torch.enable_grad():
            found = vmap(call, in_dims=(0, None if shared else 0))(self._tensors(masks), inputs)
        self._outputs = found[0] if activity else found
        if activity:
            self._keep(found[1])
        return trees.map_leaves(torch.detach, self._outputs)

    def predict(self, inputs: Tree) -> Tree:
        """See ``Network``."""
        self._mode(False)
        with torch.no_grad():
            outputs = vmap(self._call, in_dims=(0, None))(self._tensors(), inputs)
        return trees.map_leaves(torch.detach, outputs)

    def sample(self, inputs: Tree, masks: Sequence[Tensor]) -> Tree:
        """See ``Network``."""
        with self._noisy(), torch.no_grad():
            outputs = vmap(self._call, in_dims=(0, None))(self._tensors(masks), inputs)
        return trees.map_leaves(torch.detach, outputs)

    def observe(self, inputs: Tree) -> list[Observed]:
        """See ``Network``."""
        if not any(find_activation_kind(module) for module in self._module.modules()):
            return []  # vmap and vjp refuse a function without outputs
        self._mode(False)
        with torch.no_grad():
            found: tuple[Tensor, ...] = vmap(self._watch, in_dims=(0, None))(
                self._tensors(), inputs
            )
        return [(*told, one.detach()) for told, one in zip(self._told, found, strict=True)]

    def _tensors(self, masks: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        noise = {} if masks is None else dict(zip(self._mask_names, masks, strict=True))
        return {**self._leaves, **self._buffers, **noise}


class RecurrentNetwork(StackedNetwork):
    """Any module with an LSTM, GRU or RNN.

    vmap decomposes these layers only if gradients are taken inside of it. Each step therefore needs
    two forward passes.
    """

    def forward(
        self, inputs: Tree, shared: bool, masks: Sequence[Tensor], activity: bool = False
    ) -> Tree:
        """See ``Network``."""
        self._mode(True)
        noise, dim = dict(zip(self._mask_names, masks, strict=True)), None if shared else 0
        # The second forward pass starts from the same buffers as this one.
        before = {name: tensor.clone() for name, tensor in self._buffers.items()}
        self._again = ({**before, **noise}, inputs, dim)
        call: Callable[..., Any] = self._measure if activity else self._plain
        with torch.no_grad():
            found: tuple[Tree, Buffers] = vmap(partial(self._apart, call), in_dims=(0, dim))(
                self._tensors(masks), inputs
            )
        for name, moved in found[1].items():
            self._buffers[name].copy_(moved)
        if activity:
            self._keep(found[0][1])
        return found[0][0] if activity else found[0]

    def backward(self, gradient: Tree, activation_l1: Tensor | None = None) -> None:
        """See ``Network``."""
        fixed, inputs, dim = self._again
        leaves = {name: leaf.detach() for name, leaf in self._leaves.items()}
        plain = activation_l1 is None
        pull = partial(self._pull, self._plain if plain else self._measure)
        found = vmap(pull, in_dims=(0, dim, 0))(
            {**fixed, **leaves}, inputs, gradient if plain else (gradient, activation_l1)
        )
        for name, one in found.items():
            self._gradients[name].copy_(one)

    def _pull(
        self, call: Callable[..., Any], tensors: Buffers, inputs: Tree, gradient: Tree
    ) -> Buffers:
        _, pull, _ = self._differentiate(call, tensors, inputs)
        found: Buffers = pull(gradient)[0]
        return found

    def _call(self, tensors: Mapping[str, Tensor], inputs: Tree) -> Tree:
        return self._apart(self._plain, tensors, inputs)[0]

    def _apart(
        self, call: Callable[..., Any], tensors: Mapping[str, Tensor], inputs: Tree
    ) -> tuple[Any, Buffers]:
        """Return what a call returns, and the buffers after it."""
        found, _, moved = self._differentiate(call, tensors, inputs)
        return found, moved

    def _watch(self, tensors: Mapping[str, Tensor], inputs: Tree) -> tuple[Tensor, ...]:
        watch = super()._watch
        found: tuple[Tensor, ...] = self._differentiate(watch, tensors, inputs)[0]
        return found

    def _differentiate(
        self, call: Callable[[Buffers, Tree], Any], tensors: Mapping[str, Tensor], inputs: Tree
    ) -> tuple[Any, Any, Buffers]:
        """Differentiate ``call`` with respect to the parameters.

        Returns:
            The outputs, the function that maps a gradient of the outputs to one of the parameters,
            and the buffers after the call.
        """

        def apart(leaves: Buffers) -> tuple[Any, Buffers]:
            # Clone them: a tensor from outside must not be written to.
            moved = {name: tensors[name].clone() for name in self._buffers}
            return call({**tensors, **moved, **leaves}, inputs), moved

        leaves = {name: tensors[name] for name in self._leaves}
        # oneDNN's float32 LSTM on a CPU is one kernel that vmap cannot decompose.
        with without_onednn():
            found: tuple[Any, Any, Buffers] = vjp(  # type: ignore[assignment]
                apart, leaves, has_aux=True
            )
        return found


class LoneNetwork(_Called):
    """One module as it is, with the same interface, for where stacking is slower or impossible.

    On a CPU, images and filters are laid out channels-last. Convolutions then take 0.6 to 0.9 of
    the time.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._convolves = any(isinstance(module, nn.Conv2d) for module in model.module.modules())
        # The module for training steps, if it is compiled.
        self.compiled: Callable[[Tree], Tree] | None = None

    def bind_views(self, parameters: Buffers, gradients: Buffers, buffers: Buffers) -> None:
        """See ``Network``. The only row is taken here, outside of autograd.

        Otherwise autograd would write its gradient into zeros of the whole tensor.
        """
        first = [
            {name: tensor[0] for name, tensor in tensors.items()}
            for tensors in (parameters, gradients, buffers)
        ]
        super().bind_views(*first)
        self._device = next(iter(parameters.values())).device
        self._filters = [
            name
            for name, leaf in self._leaves.items()
            if leaf.dim() == IMAGE_DIMS and self._convolves and self._device.type == "cpu"
        ]

    def _run(self, inputs: Tree) -> Tree:
        if self.compiled is not None and torch.is_grad_enabled():
            return self.compiled(inputs)
        return self._module(inputs)

    def _casting(self) -> AbstractContextManager[Any]:
        return casting(self._precision, self._device, self._module)

    def forward(
        self, inputs: Tree, shared: bool, masks: Sequence[Tensor], activity: bool = False
    ) -> Tree:
        """See ``Network``."""
        self._mode(True)
        given = self._lay_out(inputs if shared else trees.pick(inputs, 0))
        with torch.enable_grad():
            if activity:
                outputs, one = self._measure(self._tensors(masks), given)
                self._keep(_widen(one))
            else:
                outputs = self._call(self._tensors(masks), given)
            self._outputs = trees.map_leaves(_widen, outputs)
        return trees.map_leaves(torch.detach, self._outputs)

    def predict(self, inputs: Tree) -> Tree:
        """See ``Network``."""
        self._mode(False)
        with torch.no_grad():
            outputs = self._call(self._tensors(), self._lay_out(inputs))
        return trees.map_leaves(_widen, outputs)

    def sample(self, inputs: Tree, masks: Sequence[Tensor]) -> Tree:
        """See ``Network``."""
        with self._noisy(), torch.no_grad():
            outputs = self._call(self._tensors(masks), self._lay_out(inputs))
        return trees.map_leaves(_widen, outputs)

    def observe(self, inputs: Tree) -> list[Observed]:
        """See ``Network``."""
        self._mode(False)
        with torch.no_grad():
            found = self._watch(self._tensors(), self._lay_out(inputs))
        return [(*told, one.unsqueeze(0)) for told, one in zip(self._told, found, strict=True)]

    def _tensors(self, masks: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        noise = (
            {}
            if masks is None
            else {name: mask[0] for name, mask in zip(self._mask_names, masks, strict=True)}
        )
        last = {
            name: self._leaves[name].clone(memory_format=torch.channels_last)
            for name in self._filters
        }
        return {**self._leaves, **self._buffers, **noise, **last}

    def _lay_out(self, inputs: Tree) -> Tree:
        return trees.map_leaves(_channels_last, inputs) if self._filters else inputs


def _channels_last(inputs: Tensor) -> Tensor:
    fits = inputs.dim() == IMAGE_DIMS
    return inputs.contiguous(memory_format=torch.channels_last) if fits else inputs


def _widen(outputs: Tensor) -> Tensor:
    return outputs.unsqueeze(0)


def model_places(model: Model) -> list[tuple[dict[str, Any], str, str]]:
    """Return the places of a model's tensors, of its lifted numbers and of the masks of calls."""
    names = model.dropouts[len(model.dropouts) - len(model.calls) :]
    return [
        *places(model.module),
        *((*model.attributes.place(path), lifted_name(path)) for path in model.lifted),
        *(
            (call._buffers, "mask", f"{name}.mask")
            for name, call in zip(names, model.calls, strict=True)
        ),
    ]


def places(module: nn.Module) -> list[tuple[dict[str, Any], str, str]]:
    """Return where the tensors of a module are held, as (holder, key, name).

    A tensor that is held in two places goes by its first name.
    """
    first: dict[int, str] = {}
    found: list[tuple[dict[str, Any], str, str]] = []
    for path, part in module.named_modules():
        for holder in (part._parameters, part._buffers):
            for key, tensor in holder.items():
                if tensor is not None:
                    name = first.setdefault(id(tensor), f"{path}.{key}" if path else key)
                    found.append((holder, key, name))
    return found
