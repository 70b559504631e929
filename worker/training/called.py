"""Forward and backward passes of any module: many by ``torch.func``, or one alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from worker.tasks.layers import GaussianDropout
from worker.training.network import Buffers, Observed, OfLayout, watched
from worker.training.noise import SlotDropout
from worker.training.structure import Model

IMAGE_DIMS = 4  # (B, channels, height, width), and as many of a filter
NOISY = (SlotDropout, GaussianDropout, nn.modules.dropout._DropoutNd, nn.RReLU)


class _Called(OfLayout):
    """What the two networks that call the module have in common."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.layout)
        self._module = model.module
        self._mask_names = [f"{name}.mask" for name in model.dropouts]
        self._outputs: Tensor | None = None
        self._places = places(model.module)

    def bind_views(self, parameters: Buffers, gradients: Buffers, buffers: Buffers) -> None:
        """See ``Network``. Leaves are views: an update in place is seen by the next forward."""
        self._leaves = {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}
        self._gradients = gradients
        self._buffers = buffers

    def backward(self, gradient: Tensor) -> None:
        """See ``Network``. A parameter that the forward did not use gets a gradient of zero."""
        if self._outputs is None:
            raise RuntimeError("backward before forward")
        leaves = list(self._leaves.values())
        found = torch.autograd.grad(self._outputs, leaves, gradient, allow_unused=True)
        self._outputs = None
        for (name, leaf), one in zip(self._leaves.items(), found, strict=True):
            self._gradients[name].copy_(one if one is not None else torch.zeros_like(leaf))

    def _call(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        return self._plain(tensors, inputs)

    def _plain(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """What ``torch.func.functional_call`` does, with places that are looked up once: that costs a third of a small step."""
        kept = []
        try:
            for holder, key, name in self._places:
                if name in tensors:
                    kept.append((holder, key, holder[key]))
                    holder[key] = tensors[name]
            outputs: Tensor = self._module(inputs)
        finally:
            for holder, key, own in kept:
                holder[key] = own
        return outputs

    def _watched(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, ...]:
        """What the activation layers put out, in the order of the forward; their names and kinds are left in ``_told``."""
        found: list[Tensor] = []
        self._told: list[tuple[str, str]] = []
        handles = []
        for name, module in self._module.named_modules():
            kind = watched(module)
            if kind is not None:
                handles.append(module.register_forward_hook(self._noting(name, kind, found)))
        try:
            self._plain(tensors, inputs)
        finally:
            for handle in handles:
                handle.remove()
        return tuple(found)

    def _noting(self, name: str, kind: str, found: list[Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
        def note(module: nn.Module, given: object, output: Tensor) -> None:
            again = sum(told == name or told.startswith(f"{name}#") for told, _ in self._told)
            self._told.append((f"{name}#{again + 1}" if again else name, kind))  # one layer in two places of the forward
            found.append(output.clone())  # what comes next may write over it

        return note

    def _mode(self, training: bool) -> None:
        if self._module.training != training:
            self._module.train(training)

    @contextmanager
    def _noisy(self) -> Iterator[None]:
        """Evaluation mode, but for what makes noise."""
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
    """Any module that ``torch.vmap`` understands."""

    def forward(self, inputs: Tensor, shared: bool, masks: Sequence[Tensor]) -> Tensor:
        """See ``Network``. A module that draws its own noise is refused by vmap, and trains alone."""
        self._mode(True)
        with torch.enable_grad():
            self._outputs = vmap(self._call, in_dims=(0, None if shared else 0))(self._tensors(masks), inputs)
        return self._outputs.detach()

    def predict(self, inputs: Tensor) -> Tensor:
        """See ``Network``."""
        self._mode(False)
        with torch.no_grad():
            outputs: Tensor = vmap(self._call, in_dims=(0, None))(self._tensors(), inputs)
        return outputs.detach()

    def sample(self, inputs: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """See ``Network``."""
        with self._noisy(), torch.no_grad():
            outputs: Tensor = vmap(self._call, in_dims=(0, None))(self._tensors(masks), inputs)
        return outputs.detach()

    def observe(self, inputs: Tensor) -> list[Observed]:
        """See ``Network``."""
        if not any(watched(module) for module in self._module.modules()):
            return []  # vmap and vjp refuse a function that gives nothing
        self._mode(False)
        with torch.no_grad():
            found: tuple[Tensor, ...] = vmap(self._watched, in_dims=(0, None))(self._tensors(), inputs)
        return [(*told, one.detach()) for told, one in zip(self._told, found, strict=True)]

    def _tensors(self, masks: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        noise = {} if masks is None else dict(zip(self._mask_names, masks, strict=True))
        return {**self._leaves, **self._buffers, **noise}


class RecurrentNetwork(StackedNetwork):
    """Any module with an LSTM, GRU or RNN. Vmap takes those apart only where gradients are taken inside of it: two forwards a step."""

    def forward(self, inputs: Tensor, shared: bool, masks: Sequence[Tensor]) -> Tensor:
        """See ``Network``."""
        self._mode(True)
        noise, dim = dict(zip(self._mask_names, masks, strict=True)), None if shared else 0
        before = {name: tensor.clone() for name, tensor in self._buffers.items()}  # the second forward starts where this one does
        self._again = ({**before, **noise}, inputs, dim)
        with torch.no_grad():
            found: tuple[Tensor, Buffers] = vmap(self._apart, in_dims=(0, dim))(self._tensors(masks), inputs)
        for name, moved in found[1].items():
            self._buffers[name].copy_(moved)
        return found[0]

    def backward(self, gradient: Tensor) -> None:
        """See ``Network``."""
        fixed, inputs, dim = self._again
        leaves = {name: leaf.detach() for name, leaf in self._leaves.items()}
        found = vmap(self._pulled, in_dims=(0, dim, 0))({**fixed, **leaves}, inputs, gradient)
        for name, one in found.items():
            self._gradients[name].copy_(one)

    def _pulled(self, tensors: Buffers, inputs: Tensor, gradient: Tensor) -> Buffers:
        _, pull, _ = self._differentiated(self._plain, tensors, inputs)
        found: Buffers = pull(gradient)[0]
        return found

    def _call(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        return self._apart(tensors, inputs)[0]

    def _apart(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Buffers]:
        """The outputs, and the buffers after the forward."""
        outputs, _, moved = self._differentiated(self._plain, tensors, inputs)
        return outputs, moved

    def _watched(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, ...]:
        watch = super()._watched
        found: tuple[Tensor, ...] = self._differentiated(watch, tensors, inputs)[0]
        return found

    def _differentiated(
        self, call: Callable[[Buffers, Tensor], Any], tensors: Mapping[str, Tensor], inputs: Tensor
    ) -> tuple[Any, Any, Buffers]:
        """Outputs, the function that pulls a gradient back to the parameters, and the buffers as they are afterwards."""

        def apart(leaves: Buffers) -> tuple[Any, Buffers]:
            moved = {name: tensors[name].clone() for name in self._buffers}  # what was made outside may not be written to
            return call({**tensors, **moved, **leaves}, inputs), moved

        leaves = {name: tensors[name] for name in self._leaves}
        with _without_mkldnn():
            found: tuple[Any, Any, Buffers] = vjp(apart, leaves, has_aux=True)  # type: ignore[assignment]
        return found


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    """Its LSTM, of single precision on a CPU, is one piece that vmap cannot take apart."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")  # told at each setting, whatever is set
        with torch.backends.mkldnn.flags(enabled=False):
            yield


class LoneNetwork(_Called):
    """One module as it is, in the same frame: where stacking does not pay or cannot be done.

    On a CPU its images and filters are laid out with the channels last: convolutions then take 0.6 to 0.9 of the time.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._convolves = any(isinstance(module, nn.Conv2d) for module in model.module.modules())

    def bind_views(self, parameters: Buffers, gradients: Buffers, buffers: Buffers) -> None:
        """See ``Network``. The one row is taken here: autograd would write it back into zeros of the whole."""
        first = [{name: tensor[0] for name, tensor in tensors.items()} for tensors in (parameters, gradients, buffers)]
        super().bind_views(*first)
        on_cpu = all(parameter.device.type == "cpu" for parameter in parameters.values())
        self._filters = [name for name, leaf in self._leaves.items() if leaf.dim() == IMAGE_DIMS and self._convolves and on_cpu]

    def forward(self, inputs: Tensor, shared: bool, masks: Sequence[Tensor]) -> Tensor:
        """See ``Network``."""
        self._mode(True)
        with torch.enable_grad():
            self._outputs = self._call(self._tensors(masks), self._laid_out(inputs if shared else inputs[0])).unsqueeze(0)
        return self._outputs.detach()

    def predict(self, inputs: Tensor) -> Tensor:
        """See ``Network``."""
        self._mode(False)
        with torch.no_grad():
            return self._call(self._tensors(), self._laid_out(inputs)).unsqueeze(0)

    def sample(self, inputs: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """See ``Network``."""
        with self._noisy(), torch.no_grad():
            return self._call(self._tensors(masks), self._laid_out(inputs)).unsqueeze(0)

    def observe(self, inputs: Tensor) -> list[Observed]:
        """See ``Network``."""
        self._mode(False)
        with torch.no_grad():
            found = self._watched(self._tensors(), self._laid_out(inputs))
        return [(*told, one.unsqueeze(0)) for told, one in zip(self._told, found, strict=True)]

    def _tensors(self, masks: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        noise = {} if masks is None else {name: mask[0] for name, mask in zip(self._mask_names, masks, strict=True)}
        last = {name: self._leaves[name].clone(memory_format=torch.channels_last) for name in self._filters}
        return {**self._leaves, **self._buffers, **noise, **last}

    def _laid_out(self, inputs: Tensor) -> Tensor:
        return inputs.contiguous(memory_format=torch.channels_last) if self._filters and inputs.dim() == IMAGE_DIMS else inputs


def places(module: nn.Module) -> list[tuple[dict[str, Any], str, str]]:
    """Where the tensors of a module are held: (holder, key, name); one that is held in two places goes by its first name."""
    first: dict[int, str] = {}
    found: list[tuple[dict[str, Any], str, str]] = []
    for path, part in module.named_modules():
        for holder in (part._parameters, part._buffers):
            for key, tensor in holder.items():
                if tensor is not None:
                    name = first.setdefault(id(tensor), f"{path}.{key}" if path else key)
                    found.append((holder, key, name))
    return found
