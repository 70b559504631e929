"""The precision of forwards: float32, TF32, or bfloat16 with float32 weights.

With ``bf16``, products of matrices, convolutions and the like are computed in bfloat16, and sums,
exponentials, normalisation of layers and recurrent layers in float32. Parameters, their gradients,
the states of the optimizer, running statistics, outputs and losses are float32. Where all tensors
are double, as in the checks before learning, nothing is cast.

A model alone uses ``torch.autocast``. It does not act within ``torch.vmap``, which takes an
operation apart before the casts. So stacked models use ``StackedCasts``, which casts the same
arguments before vmap sees them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from worker.tasks import trees
from worker.tasks.trees import Tree

FP32, TF32, BF16 = "fp32", "tf32", "bf16"  # the options of ``precision`` in [space]
TF32_SINCE = (8, 0)  # compute capability
# Names of torch's functions, as in the lists of torch's documentation of autocast for CUDA.
LOW = frozenset(
    {
        *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv"),
        *("addmm", "addbmm", "baddbmm", "addmv", "addr", "chain_matmul", "multi_dot", "einsum"),
        *(f"conv{n}d" for n in (1, 2, 3)),
        *(f"conv_transpose{n}d" for n in (1, 2, 3)),
        *("scaled_dot_product_attention", "multi_head_attention_forward", "prelu"),
    }
)
# Besides those of torch's list, recurrent layers: on a CPU autocast leaves them in float32 too.
HIGH = frozenset(
    {
        *("exp", "expm1", "log", "log10", "log1p", "log2", "pow", "__pow__", "__rpow__"),
        *("reciprocal", "rsqrt", "softmax", "log_softmax", "softmin", "softplus", "sum", "prod"),
        *("cumsum", "cumprod", "norm", "normalize", "cosine_similarity", "cdist", "dist"),
        *("layer_norm", "group_norm", "rms_norm"),
        *("lstm", "gru", "rnn_tanh", "rnn_relu"),
        *("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
    }
)
# Computed in float32 if some argument is.
WIDEST = frozenset(
    {
        *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "grid_sample", "index_put"),
        *("scatter_add", "tensordot"),
    }
)
# Computed in float32, with a result in the type of the first argument.
KEEPING = frozenset({"batch_norm", "instance_norm"})


class StackedCasts(TorchFunctionMode):
    """The casts of ``torch.autocast`` to bfloat16, for functions that are called within vmap."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch with the arguments in the type that it is computed in."""
        name, named = getattr(func, "__name__", ""), kwargs or {}
        if name in LOW:
            return func(*_cast(args, torch.bfloat16), **_cast(named, torch.bfloat16))
        if name in HIGH:
            return func(*_cast(args, torch.float32), **_cast(named, torch.float32))
        if name in WIDEST and _holds_float32((args, named)):
            return func(*_cast(args, torch.float32), **_cast(named, torch.float32))
        if name in KEEPING:
            found = func(*_cast(args, torch.float32), **_cast(named, torch.float32))
            return found.to(args[0].dtype)
        return func(*args, **named)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Return the arguments of a function, of which float32 and bfloat16 tensors get ``dtype``."""
    return pytree.tree_map_only(Tensor, lambda one: _cast_tensor(one, dtype), values)


def _holds_float32(values: Any) -> bool:
    return any(
        isinstance(t, Tensor) and t.dtype == torch.float32 for t in pytree.tree_leaves(values)
    )


def _cast_tensor(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype in (torch.float32, torch.bfloat16) else tensor


@contextmanager
def casting(precision: str, device: torch.device, module: nn.Module) -> Iterator[None]:
    """Let ``module``, which is called alone in the block, compute in this precision."""
    if precision != BF16:
        yield
        return
    # oneDNN refuses an LSTM in bfloat16 on many CPUs. Without it, torch computes it in float32.
    plain = device.type == "cpu" and any(isinstance(m, nn.LSTM) for m in module.modules())
    with without_onednn() if plain else nullcontext(), torch.autocast(device.type, torch.bfloat16):
        yield


def casting_stacked(precision: str) -> AbstractContextManager[Any]:
    """Return a context in which a module is called within vmap."""
    return StackedCasts() if precision == BF16 else nullcontext()


@contextmanager
def without_onednn() -> Iterator[None]:
    """Disable oneDNN within the block."""
    with warnings.catch_warnings():
        # torch warns whenever the setting is changed, to whatever value.
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def widen(outputs: Tree) -> Tree:
    """Return outputs with bfloat16 as float32, in which losses and metrics are computed."""
    return trees.map_leaves(
        lambda one: one.float() if one.dtype == torch.bfloat16 else one, outputs
    )


@contextmanager
def multiplying(precision: str, device: torch.device) -> Iterator[None]:
    """Let a GPU multiply float32 matrices in TF32 within the block, if ``precision`` says so."""
    if precision != TF32 or device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def explain_missing(precision: str, device: torch.device) -> str | None:
    """Return what this device computes instead, or None if it has the precision."""
    if precision != TF32:
        return None
    if device.type != "cuda":
        return f'precision = "{TF32}": a CPU has no TF32; this worker computes in float32'
    if torch.cuda.get_device_capability(device) < TF32_SINCE:
        return f'precision = "{TF32}": this GPU has no TF32; this worker computes in float32'
    return None
