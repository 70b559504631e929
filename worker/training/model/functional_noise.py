"""Dropout that a forward draws by a function call, given its noise from outside.

``F.dropout`` and the dropout of ``F.scaled_dot_product_attention`` become layers without a place in
the module: the first call in a training forward is the first such layer, and so on. Attention
layers of torch call these functions too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.training.math.noise import SlotDropout

# Numbers of noise for one slot. With more, the masks would take more memory than the model, and a
# fused attention is faster: such a model draws its own noise.
MOST_NUMBERS = 1 << 26
PREFIX = "call "  # of the layers' names: no name of a submodule has a space

# (input, rate) -> the input with noise. For attention the input has the shape of the weights.
Apply = Callable[[Tensor, Any], Tensor]


class CalledDropout(SlotDropout):
    """The layer of one call. ``rate`` is that of the trial."""

    def __init__(self, rate: float, shape: Sequence[int]) -> None:
        super().__init__()
        self.rate = rate
        self.shape = tuple(shape)


def name_of(number: int) -> str:
    """Return the name of the layer of a call, counted from 0 within a forward."""
    return f"{PREFIX}{number + 1}"


@contextmanager
def noting(root: nn.Module) -> Iterator[list[CalledDropout]]:
    """Apply no noise in the block, and yield a list of the calls, which grows with each of them."""
    found: list[CalledDropout] = []

    def note(weights: Tensor, rate: Any) -> Tensor:
        # A number that was lifted is a tensor here, which has no plain value.
        found.append(
            CalledDropout(float(rate) if isinstance(rate, int | float) else 0.0, weights.shape)
        )
        return weights

    with _replaced(root, note, lambda: False):
        yield found


@contextmanager
def drawing(root: nn.Module, layers: Sequence[CalledDropout]) -> Iterator[None]:
    """Let the calls within the block use the noise of ``layers``, in order.

    Raises:
        RuntimeError: there are more calls than layers.
    """
    if not layers:
        yield
        return
    left = iter(layers)
    silent = all(not layer.mask.numel() for layer in layers)

    def draw(weights: Tensor, rate: Any) -> Tensor:
        layer = next(left, None)
        if layer is None:
            raise RuntimeError(
                f"dropout was called {len(layers)} times in the first forward, and now more often"
            )
        noisy: Tensor = layer(weights)
        return noisy

    with _replaced(root, draw, lambda: not silent):
        yield


@contextmanager
def _replaced(root: nn.Module, apply: Apply, noisy: Callable[[], bool]) -> Iterator[None]:
    """Replace torch's functions. In evaluation mode they act as always.

    Args:
        root: the model that is called.
        apply: adds the noise of a call.
        noisy: whether attention has to be computed step by step, to add noise to its weights.
    """
    plain_dropout, plain_attention = functional.dropout, functional.scaled_dot_product_attention

    def dropout(
        input: Tensor, p: Any = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training and isinstance(p, Tensor):
            return input  # a lifted number, whose bounds torch cannot check
        if not (training and root.training):
            return plain_dropout(input, p, training, inplace)
        return apply(input, p)

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: Any = None,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        more: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
        if dropout_p is None or not root.training:
            return plain_attention(
                query, key, value, attn_mask, dropout_p or 0.0, is_causal, **more
            )
        if noisy():
            weights = _weights(query, key, attn_mask, is_causal, scale, enable_gqa)
            return apply(weights, dropout_p) @ _spread(value, query, enable_gqa)
        scores = query[..., :1] @ _spread(key, query, enable_gqa)[..., :1].transpose(-2, -1)
        apply(scores, dropout_p)  # for its shape
        return plain_attention(query, key, value, attn_mask, 0.0, is_causal, **more)

    functional.dropout = dropout
    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.dropout = plain_dropout
        functional.scaled_dot_product_attention = plain_attention


def _weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Return the weights of attention, (..., L, S), as the documentation of torch defines them."""
    key = _spread(key, query, enable_gqa)
    scores = query @ key.transpose(-2, -1) * (scale or 1 / math.sqrt(query.shape[-1]))
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def _spread(heads: Tensor, query: Tensor, enable_gqa: bool) -> Tensor:
    """Repeat the heads of keys or values that several queries share."""
    if not enable_gqa:
        return heads
    return heads.repeat_interleave(query.shape[-3] // heads.shape[-3], -3)
