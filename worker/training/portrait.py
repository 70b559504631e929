"""What a kept model looks like inside: histograms of activations and gradients a layer, and its first layer's weights as a picture.

All of it is of the best epoch's weights, on up to ``SAMPLE`` validation examples, with the noise of training off.

Source: CS231n notes, "Neural networks 3", "Activation / Gradient distributions per layer" and "First-layer Visualizations".
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

SAMPLE = 256  # validation examples: smooth histograms of a layer at the price of one batch
BINS = 32
MOST_TILES = 64  # eight rows of eight: all that a look takes in
TILE_PIXELS = 56  # of a tile's longer side, about: small images are enlarged by a whole factor
GAP_PIXELS = 4  # between tiles
COMPRESSION = 1  # of nine: half the time of the usual six, for files a fifth larger at most
ZERO = (255, 255, 255)  # a weight of zero
PAPER = (96, 96, 96)  # between tiles: neither zero nor any other weight
NEGATIVE, POSITIVE = (33, 102, 172), (178, 24, 43)  # blue and red, told apart by the colour-blind too


def portrait(activations: Sequence[tuple[str, str, Tensor]], gradients: Mapping[str, Tensor]) -> dict[str, Any]:
    """Histograms as plain values.

    Args:
        activations: name, kind and values of each activation layer (``Network.observe``).
        gradients: of each layer's weights, by the layer's name.

    Returns:
        ``{"activations": {LAYER: {...}}, "gradients": {LAYER: {...}}}``; see ``histogram``.
    """
    return {
        "activations": {name: {"kind": kind, **histogram(values)} for name, kind, values in activations},
        "gradients": {name: histogram(values) for name, values in gradients.items()},
    }


def histogram(values: Tensor) -> dict[str, Any]:
    """32 bins of equal width from the lowest to the highest value.

    Returns:
        ``low`` and ``high`` edges, ``counts`` (32), ``mean``, ``std`` (of the values as they are, not an estimate), ``zeros``, the share
        that is exactly zero. Values that are not finite are left out.
    """
    flat = values.detach().double().flatten().cpu()
    known = flat[flat.isfinite()]
    if not len(known):
        return {"low": 0.0, "high": 0.0, "counts": [0] * BINS, "mean": 0.0, "std": 0.0, "zeros": 0.0}
    low, high = known.min().item(), known.max().item()
    counts = torch.histc(known, BINS, low, high) if high > low else torch.tensor([len(known)] + [0] * (BINS - 1))
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
    inputs: Tensor,
    output_gradient: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The gradient of each layer's weights, flat, in evaluation mode.

    Args:
        module: a plain model.
        tensors: its parameters and buffers by name.
        layers: the weights of each layer, by its name.
        inputs: (B, ...).
        output_gradient: from outputs (B, ...) to the gradient of the mean loss with respect to them.
    """
    names = [name for own in layers.values() for name in own]
    leaves = {name: tensors[name].detach().requires_grad_() for name in names}
    was_training = module.training
    module.eval()
    try:
        with torch.enable_grad():
            outputs: Tensor = functional_call(module, {**tensors, **leaves}, (inputs,))
    finally:
        module.train(was_training)
    found = torch.autograd.grad(outputs, list(leaves.values()), output_gradient(outputs.detach()), allow_unused=True)
    by_name = {name: torch.zeros_like(leaves[name]) if one is None else one for name, one in zip(names, found, strict=True)}
    return {layer: torch.cat([by_name[name].flatten() for name in own]) for layer, own in layers.items()}


def tiles(weights: Tensor, image_shape: Sequence[int]) -> Tensor | None:
    """The first layer's weights as (units, C, H, W) with C 1 or 3; None where they are no images.

    Args:
        weights: (units, inputs) of a linear layer, (units, C, H, W) of a convolution.
        image_shape: (H, W) or (C, H, W) of an input.
    """
    shape = (1, *image_shape) if len(image_shape) == 2 else tuple(image_shape)
    if weights.dim() == 2 and weights.shape[1] == math.prod(shape):
        weights = weights.reshape(len(weights), *shape)
    fits = weights.dim() == 4 and weights.shape[1] in (1, 3) and min(weights.shape[2:]) > 1
    return weights[:MOST_TILES] if fits else None


def picture(images: Tensor) -> bytes:
    """A PNG of tiles (units, C, H, W), a unit each, in rows.

    Each is scaled by its own largest weight. One channel: red is positive, blue negative, white zero. Three: the colours themselves, with
    zero in the middle.
    """
    weights = images.detach().double().cpu()
    scaled = weights / weights.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)  # in [-1, 1]
    pixels = _signed(scaled[:, 0]) if images.shape[1] == 1 else (scaled.movedim(1, -1) + 1) * 127.5  # (units, H, W, 3)
    factor = max(1, round(TILE_PIXELS / max(images.shape[2:])))
    return _png(pixels.nan_to_num(255.0).round().to(torch.uint8), factor)


def _signed(scaled: Tensor) -> Tensor:
    """(units, H, W) in [-1, 1] as colours (units, H, W, 3)."""
    ends = torch.where((scaled < 0).unsqueeze(-1), scaled.new_tensor(NEGATIVE), scaled.new_tensor(POSITIVE))
    share = scaled.abs().unsqueeze(-1)
    return scaled.new_tensor(ZERO) * (1 - share) + ends * share


def _png(pixels: Tensor, factor: int) -> bytes:
    """Tiles (units, H, W, 3), enlarged by ``factor``, in a grid as nearly square as it can be."""
    n, (height, width) = len(pixels), (factor * length for length in pixels.shape[1:3])
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = Image.new("RGB", (columns * (width + GAP_PIXELS) + GAP_PIXELS, rows * (height + GAP_PIXELS) + GAP_PIXELS), PAPER)
    for number, tile in enumerate(pixels):
        row, column = divmod(number, columns)
        large = Image.fromarray(tile.contiguous().numpy()).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(large, (GAP_PIXELS + column * (width + GAP_PIXELS), GAP_PIXELS + row * (height + GAP_PIXELS)))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=COMPRESSION)
    return buffer.getvalue()
