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

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from worker.tasks import trees
from worker.tasks.trees import Tree
from worker.training.math.ends import join

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
SHADES = 127  # of each of these two


def _mix(share: float) -> tuple[int, ...]:
    """Return the colour of a weight, in shares of the tile's largest, in [-1, 1]."""
    end = NEGATIVE if share < 0 else POSITIVE
    return tuple(
        round(zero * (1 - abs(share)) + full * abs(share))
        for zero, full in zip(ZERO, end, strict=True)
    )


# Of the paper, then of each shade from the most negative to the most positive.
PALETTE = [*PAPER, *(part for n in range(-SHADES, SHADES + 1) for part in _mix(n / SHADES))]


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
    known = values.detach().double().flatten().cpu().numpy()
    if not (finite := np.isfinite(known)).all():
        known = known[finite]
    if not len(known):
        nothing = dict.fromkeys(("low", "high", "mean", "std", "zeros"), 0.0)
        return nothing | {"counts": [0] * BINS}
    low, high = known.min(), known.max()
    counts = [len(known)] + [0] * (BINS - 1)
    if high > low:
        # This takes a fifth of the time of torch.histc and np.histogram.
        bins = ((known - low) / (high - low) * BINS).astype(np.intp)
        counts = np.bincount(np.minimum(bins, BINS - 1, out=bins), minlength=BINS).tolist()
    return {
        "low": float(low),
        "high": float(high),
        "counts": counts,
        "mean": float(known.mean()),
        "std": float(known.std()),
        "zeros": 1 - np.count_nonzero(known) / len(known),
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
        ends = self._output_gradient(trees.map_leaves(torch.detach, outputs))
        pairs = zip(trees.list_leaves(outputs), trees.list_leaves(ends), strict=True)
        directed = [(one, end) for one, end in pairs if one.requires_grad]
        torch.autograd.backward(join(*zip(*directed, strict=True)))
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
    and white zero, in 127 steps each. With three channels, the weights are the colours, with zero
    in the middle of the range.
    """
    weights = images.detach().double().cpu().numpy()
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    scaled = weights / np.maximum(largest, np.finfo(np.float64).tiny)  # in [-1, 1]
    signed = images.shape[1] == 1
    # A signed weight is the number of its colour in the palette.
    pixels = scaled * SHADES + (SHADES + 1) if signed else (scaled + 1) * 127.5
    unknown = SHADES + 1 if signed else 255.0
    channels = np.nan_to_num(pixels, nan=unknown).round().astype(np.uint8)  # (units, C, H, W)
    factor = max(1, round(TILE_PIXELS / max(images.shape[2:])))
    background = (0,) if signed else PAPER
    sheets = [_sheet(channels[:, place], factor, paper) for place, paper in enumerate(background)]
    sheet = Image.fromarray(sheets[0] if signed else np.stack(sheets, -1))
    if signed:
        sheet.putpalette(PALETTE)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=COMPRESSION)
    return buffer.getvalue()


def _sheet(tiles: NDArray[np.uint8], factor: int, paper: int) -> NDArray[np.uint8]:
    """Return one channel of a nearly square grid of tiles.

    Args:
        tiles: (units, H, W).
        factor: by which the tiles are enlarged.
        paper: value of the pixels around the tiles.
    """
    n, height, width = len(tiles), *(factor * length for length in tiles.shape[1:])
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    large = np.full((rows * columns, height, width), paper, np.uint8)
    large[:n] = tiles.repeat(factor, 1).repeat(factor, 2)
    grid = np.full((rows, height + GAP_PIXELS, columns, width + GAP_PIXELS), paper, np.uint8)
    grid[:, :height, :, :width] = large.reshape(rows, columns, height, width).swapaxes(1, 2)
    sheet = grid.reshape(rows * (height + GAP_PIXELS), columns * (width + GAP_PIXELS))
    return np.pad(sheet, ((GAP_PIXELS, 0), (GAP_PIXELS, 0)), constant_values=paper)
