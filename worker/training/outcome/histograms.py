"""Histograms of a kept model's activations and gradients, and a picture of its first layer.

They use the weights of the best epoch on up to ``SAMPLE`` validation examples, without the noise of
training.

Source: CS231n notes, "Neural networks 3", "Activation / Gradient distributions per layer" and
"First-layer Visualizations".
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from worker.tasks import trees
from worker.tasks.trees import Tree

SAMPLE = 256  # validation examples: enough for smooth histograms, at the cost of one batch
BINS = 32
MOST_TILES = 64  # eight rows of eight: as many as one can take in at a glance
# Approximate length of a tile's longer side: small images are enlarged by a whole factor.
TILE_PIXELS = 56
GAP_PIXELS = 4  # between tiles
COMPRESSION = 1  # of nine levels: half the time of the usual six, for files at most a fifth larger
ZERO = (255, 255, 255)  # colour of a weight of zero
PAPER = (96, 96, 96)  # colour between tiles, which no weight has
# Blue and red, which the colour-blind can distinguish.
NEGATIVE, POSITIVE = (33, 102, 172), (178, 24, 43)


def portrait(
    activations: Sequence[tuple[str, str, Tensor]], gradients: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the histograms as plain values.

    Args:
        activations: name, kind and values of each activation layer (``Network.observe``).
        gradients: of each layer's weights, by the layer's name.

    Returns:
        ``{"activations": {LAYER: {...}}, "gradients": {LAYER: {...}}}``; see ``histogram``.
    """
    return {
        "activations": {
            name: {"kind": kind, **histogram(values)} for name, kind, values in activations
        },
        "gradients": {name: histogram(values) for name, values in gradients.items()},
    }


def histogram(values: Tensor) -> dict[str, Any]:
    """Return a histogram with 32 bins of equal width from the lowest to the highest value.

    Values that are not finite are left out.

    Returns:
        ``low`` and ``high`` edges, ``counts`` (32), ``mean``, ``std`` (with divisor n), and
            ``zeros``, the share of values that are exactly zero.
    """
    flat = values.detach().double().flatten().cpu()
    known = flat[flat.isfinite()]
    if not len(known):
        return {
            "low": 0.0,
            "high": 0.0,
            "counts": [0] * BINS,
            "mean": 0.0,
            "std": 0.0,
            "zeros": 0.0,
        }
    low, high = known.min().item(), known.max().item()
    counts = (
        torch.histc(known, BINS, low, high)
        if high > low
        else torch.tensor([len(known)] + [0] * (BINS - 1))
    )
    return {
        "low": low,
        "high": high,
        "counts": [int(count) for count in counts.tolist()],
        "mean": known.mean().item(),
        "std": known.std(correction=0).item(),
        "zeros": (known == 0).double().mean().item(),
    }


def weight_gradients(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    layers: Mapping[str, Sequence[str]],
    inputs: Tree,
    output_gradient: Callable[[Tree], Tree],
) -> dict[str, Tensor]:
    """Return the gradient of each layer's weights, flat, in evaluation mode.

    Args:
        module: a plain model.
        tensors: its parameters and buffers by name.
        layers: the names of the weights of each layer, by its name.
        inputs: (B, ...).
        output_gradient: maps outputs (B, ...) to the gradient of the mean loss with respect to
            them.
    """
    names = [name for own in layers.values() for name in own]
    leaves = {name: tensors[name].detach().requires_grad_() for name in names}
    was_training = module.training
    module.eval()
    try:
        with torch.enable_grad():
            held = {f"module.{name}": tensor for name, tensor in {**tensors, **leaves}.items()}
            functional_call(_Backward(module, output_gradient), held, (inputs,))
    finally:
        module.train(was_training)
    by_name = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
    return {
        layer: torch.cat([by_name[name].flatten() for name in own]) for layer, own in layers.items()
    }


class _Backward(nn.Module):
    """Goes back within its forward, where checkpointed parts still find the tensors they need."""

    def __init__(self, module: nn.Module, output_gradient: Callable[[Tree], Tree]) -> None:
        super().__init__()
        self.module, self._output_gradient = module, output_gradient

    def forward(self, inputs: Tree) -> Tree:
        """Return the outputs. Leaves get their gradients."""
        outputs = self.module(inputs)
        # The gradient of this sum is that of the loss. Passing the output gradient itself would
        # import sympy first, which takes half a second.
        ends = self._output_gradient(trees.map_leaves(torch.detach, outputs))
        pairs = zip(trees.list_leaves(outputs), trees.list_leaves(ends), strict=True)
        directed = torch.stack([(one * end).sum() for one, end in pairs if one.requires_grad])
        directed.sum().backward()  # type: ignore[no-untyped-call]
        return outputs


def tiles(weights: Tensor, image_shape: Sequence[int]) -> Tensor | None:
    """Return the first layer's weights as images (units, C, H, W) with C 1 or 3.

    Args:
        weights: (units, inputs) of a linear layer, (units, C, H, W) of a convolution.
        image_shape: (H, W) or (C, H, W) of an input.

    Returns:
        At most ``MOST_TILES`` images, or None if the weights are no images.
    """
    shape = (1, *image_shape) if len(image_shape) == 2 else tuple(image_shape)
    if weights.dim() == 2 and weights.shape[1] == math.prod(shape):
        weights = weights.reshape(len(weights), *shape)
    fits = weights.dim() == 4 and weights.shape[1] in (1, 3) and min(weights.shape[2:]) > 1
    return weights[:MOST_TILES] if fits else None


def picture(images: Tensor) -> bytes:
    """Return a PNG of tiles (units, C, H, W), one per unit, in rows.

    Each tile is scaled by its own largest weight. With one channel, red is positive, blue negative
    and white zero. With three channels, the weights are the colours, with zero in the middle of the
    range.
    """
    weights = images.detach().double().cpu()
    scaled = weights / weights.abs().amax((1, 2, 3), keepdim=True).clamp_min(
        torch.finfo(torch.float64).tiny
    )  # in [-1, 1]
    pixels = (
        _color_signed(scaled[:, 0]) if images.shape[1] == 1 else (scaled.movedim(1, -1) + 1) * 127.5
    )  # (units, H, W, 3)
    factor = max(1, round(TILE_PIXELS / max(images.shape[2:])))
    return _png(pixels.nan_to_num(255.0).round().to(torch.uint8), factor)


def _color_signed(scaled: Tensor) -> Tensor:
    """Return values (units, H, W) in [-1, 1] as colours (units, H, W, 3)."""
    ends = torch.where(
        (scaled < 0).unsqueeze(-1), scaled.new_tensor(NEGATIVE), scaled.new_tensor(POSITIVE)
    )
    share = scaled.abs().unsqueeze(-1)
    return scaled.new_tensor(ZERO) * (1 - share) + ends * share


def _png(pixels: Tensor, factor: int) -> bytes:
    """Return a PNG of tiles (units, H, W, 3), enlarged by ``factor``, in a nearly square grid."""
    n, (height, width) = len(pixels), (factor * length for length in pixels.shape[1:3])
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    down, across = height + GAP_PIXELS, width + GAP_PIXELS
    sheet = pixels.new_tensor(PAPER).repeat(
        GAP_PIXELS + rows * down, GAP_PIXELS + columns * across, 1
    )
    large = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    for number, tile in enumerate(large):
        row, column = divmod(number, columns)
        top, left = GAP_PIXELS + row * down, GAP_PIXELS + column * across
        sheet[top : top + height, left : left + width] = tile
    buffer = io.BytesIO()
    Image.fromarray(sheet.numpy()).save(buffer, "PNG", compress_level=COMPRESSION)
    return buffer.getvalue()
