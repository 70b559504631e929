"""Dropout noise from a counter hash of (trial seed, step, layer, position).

There is no generator and no state. A slot's noise depends neither on its place in the array nor on
its neighbours, and it is the same after a resume. One 64-bit hash gives the noise of four positions
of Bernoulli dropout, at a tenth of the cost of drawing it, or of two positions of Gaussian dropout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor, nn

# 2^64 / the golden ratio as a signed number. Neighbouring counters are mapped far apart.
GOLDEN = -0x61C8864680B583EB
MIX_1, MIX_2 = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
STIR = 0x2545F4914F6CDD1D  # an odd number with well-spread bits (Vigna's xorshift64*)
LANES = 4  # 16-bit numbers per hash
# A rate is rounded to a multiple of 1/65536. The scale is that of the rounded rate.
LEVELS = 1 << 16
NORMAL_LANES = 2  # 32-bit numbers per hash
# Bits of a number that becomes normal. With half a unit added, single precision still holds it
# exactly, and it stays below 1.
NORMAL_BITS = 23
BERNOULLI, GAUSSIAN = "bernoulli", "gaussian"
OFF = {BERNOULLI: 1.0, GAUSSIAN: 0.0}  # the scale at which noise does nothing


class SlotDropout(nn.Module):
    """The replacement of a dropout layer, whose noise is made outside.

    In training it multiplies by ``mask``, which the step has filled. An empty mask does nothing.
    """

    mask: Tensor

    def __init__(self, kind: str = BERNOULLI) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(0), persistent=False)
        self.kind = kind
        # Shapes of the inputs, recorded while it is a list.
        self.seen: list[tuple[int, ...]] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply inverted dropout. In evaluation mode it is the identity."""
        if not self.training:
            return inputs
        if self.seen is not None:
            self.seen.append(tuple(inputs.shape))
        return (inputs * self.mask).to(inputs.dtype) if self.mask.numel() else inputs


def scramble(counters: Tensor) -> Tensor:
    """Return a 64-bit hash of each int64.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (the
    finaliser of SplitMix64).
    """
    x = (counters ^ ((counters >> 30) & 0x3FFFFFFFF)) * MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def noise_keys(seeds: Tensor, steps: Tensor, n_layers: int) -> Tensor:
    """Return the hash keys of each dropout layer.

    Args:
        seeds: (K,) int64, seeds of the trials.
        steps: (n, K) int64, step numbers of the slots.
        n_layers: number of dropout layers, L.

    Returns:
        (n, K, n_layers, 2) int64: an odd factor and an offset.
    """
    slot_steps = scramble(scramble(seeds) + GOLDEN * (steps + 1))  # (n, K)
    words = scramble(torch.arange(2 * n_layers, device=seeds.device) + 1)
    # (n, K, L, 2)
    keys = scramble(slot_steps.unsqueeze(-1) ^ words).view(*steps.shape, n_layers, 2)
    return keys | torch.tensor([1, 0], device=seeds.device)


def position_table(n_positions: int, device: torch.device) -> Tensor:
    """Return (1, ceil(n / 4)) int64: one random constant for every four positions."""
    return scramble(torch.arange(-(-n_positions // LANES), device=device) + LEVELS).unsqueeze(0)


def quantise(rate: float) -> tuple[int, float]:
    """Return a rate as (threshold for a signed 16-bit number, scale of what is kept)."""
    level = min(round(rate * LEVELS), LEVELS - 1)
    return level - LEVELS // 2, 0.0 if rate >= 1 else LEVELS / (LEVELS - level)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed as ``torch.manual_seed`` does, but only the devices in use.

    ``torch.manual_seed`` walks the stack once for each device that is not there.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):  # it seeds the current one
            torch.cuda.manual_seed(seed)


def level(kind: str, rate: float) -> tuple[int, float]:
    """Return the (threshold, scale) of a dropout layer's rate.

    For Gaussian dropout the scale is the standard deviation, and there is no threshold.
    """
    if kind == BERNOULLI:
        return quantise(rate)
    return -LEVELS // 2, math.sqrt(rate / (1 - rate))


def active_layers(scales: Tensor, kinds: Sequence[str]) -> list[bool]:
    """Return which layers do anything in any slot, given scales (K, L). Waits for the device."""
    neutral = torch.tensor([OFF[kind] for kind in kinds], device=scales.device, dtype=scales.dtype)
    found: list[bool] = (scales != neutral).any(0).tolist()
    return found


def hash_counters(table: Tensor, keys: Tensor) -> Tensor:
    """Return (K, n) int64 hashes of constants (1, n), mixed with each slot's key (K, 2)."""
    words = torch.mul(table, keys[:, 0:1]).add_(keys[:, 1:2])
    words.bitwise_xor_(words >> 29).mul_(STIR)
    return words.bitwise_xor_((words >> 32).bitwise_and_(0xFFFFFFFF))


def normal(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (K, 2 n) normal numbers of mean 0 and variance 1, made from (K, n) hashes.

    They are computed by the inverse of the normal distribution function. None is beyond 5.5.
    """
    bits = words.view(torch.int32) >> (32 - NORMAL_BITS - 1)  # from -2^23 to 2^23 - 1
    return torch.erfinv(bits.to(dtype).add_(0.5).mul_(2.0**-NORMAL_BITS)).mul_(math.sqrt(2))


class DropoutMasks:
    """The masks of all dropout layers of an array, filled anew for each step."""

    def __init__(
        self,
        width: int,
        shapes: Sequence[tuple[int, ...]],
        device: torch.device,
        dtype: torch.dtype,
        kinds: Sequence[str] | None = None,
        active: Sequence[bool] | None = None,
    ) -> None:
        """Allocate the masks.

        Args:
            width: K.
            shapes: (B, ...), the shape of each layer's input for one slot.
            device: where the array is.
            dtype: type of the masks.
            kinds: kind of noise of each layer. Default: Bernoulli.
            active: whether a layer does anything in any slot. The others cost nothing, and their
                masks are empty.
        """
        self.shapes = shapes
        self.kinds = kinds or [BERNOULLI] * len(shapes)
        self.active = active if active is not None else [True] * len(shapes)
        counts = [
            torch.Size(shape).numel() if on else 0
            for shape, on in zip(shapes, self.active, strict=True)
        ]
        lanes = [LANES if kind == BERNOULLI else NORMAL_LANES for kind in self.kinds]
        self.tables = [
            position_table(count * LANES // n, device)
            for count, n in zip(counts, lanes, strict=True)
        ]
        self.whole = [
            torch.empty(width, n * table.shape[1], device=device, dtype=dtype)
            for n, table in zip(lanes, self.tables, strict=True)
        ]
        self._bind()

    def narrow(self, width: int) -> DropoutMasks:
        """Return the masks of the first slots, which share this memory."""
        first = copy(self)
        first.whole = [whole[:width] for whole in self.whole]
        first._bind()
        return first

    def _bind(self) -> None:
        self.masks = [
            whole[:, : math.prod(shape)].view(len(whole), *shape) if on else whole
            for whole, shape, on in zip(self.whole, self.shapes, self.active, strict=True)
        ]

    def hashes(self, keys: Tensor, tables: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the random numbers of one step: (K, n) for each active layer.

        The function is pure. A compiler fuses its nine passes into one.

        Args:
            keys: (K, L, 2) from ``noise_keys``.
            tables: used in place of its own, for a tracer.
        """
        active = [layer for layer, on in enumerate(self.active) if on]
        return [hash_counters((tables or self.tables)[layer], keys[:, layer]) for layer in active]

    def fill(
        self,
        keys: Tensor,
        thresholds: Tensor,
        scales: Tensor,
        hashes: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Fill the masks of one step and return them.

        Args:
            keys: (K, L, 2) from ``noise_keys``. Keys of further layers, which have no masks, may
                follow.
            thresholds: (K, L) int16.
            scales: (K, L).
            hashes: of these keys, if already computed.

        Returns:
            (K, B, ...) for each layer, overwritten by the next call. Bernoulli: 0 where dropped and
            the scale where kept. Gaussian: normal numbers about 1. (K, 0) if the layer is not
            active.
        """
        found = iter(hashes if hashes is not None else self.hashes(keys))
        for layer, (kind, mask) in enumerate(zip(self.kinds, self.whole, strict=True)):
            if not self.active[layer]:
                continue
            words, scale = next(found), scales[:, layer : layer + 1]
            if kind == BERNOULLI:
                torch.ge(words.view(torch.int16), thresholds[:, layer : layer + 1], out=mask)
                mask.mul_(scale)
            else:
                torch.mul(normal(words, mask.dtype), scale, out=mask)
                mask.add_(1)
        return self.masks
