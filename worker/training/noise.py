"""Dropout noise from a counter hash of (trial seed, step, layer, position): no generator, no state.

A slot's noise depends neither on its place in the array nor on its neighbours, and is the same again after a resume.
One 64-bit hash makes the noise of four positions of Bernoulli dropout, so that it costs a tenth of what drawing it would, or of two
positions of Gaussian dropout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

GOLDEN = -0x61C8864680B583EB  # 2^64 / the golden ratio as a signed number: neighbouring counters land far apart
MIX_1, MIX_2 = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
STIR = 0x2545F4914F6CDD1D  # an odd number with bits all over (Vigna's xorshift64*)
LANES = 4  # 16-bit numbers in a hash
LEVELS = 1 << 16  # a rate is rounded to a multiple of 1/65536, and the scale fits the rounded one
NORMAL_LANES = 2  # 32-bit numbers in a hash
NORMAL_BITS = 23  # of a number that becomes normal: with half a unit added, single precision holds it exactly, and never as far as 1
BERNOULLI, GAUSSIAN = "bernoulli", "gaussian"
OFF = {BERNOULLI: 1.0, GAUSSIAN: 0.0}  # the scale of noise that does nothing


class SlotDropout(nn.Module):
    """Stands where a dropout layer stood. In training, multiplies with ``mask``, which the step has filled; an empty one does nothing."""

    mask: Tensor

    def __init__(self, kind: str = BERNOULLI) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(0), persistent=False)
        self.kind = kind
        self.seen: list[tuple[int, ...]] | None = None  # shapes of the inputs, while somebody wants to know them

    def forward(self, inputs: Tensor) -> Tensor:
        """Inverted dropout; the identity in evaluation mode."""
        if not self.training:
            return inputs
        if self.seen is not None:
            self.seen.append(tuple(inputs.shape))
        return inputs * self.mask if self.mask.numel() else inputs


def scrambled(counters: Tensor) -> Tensor:
    """A 64-bit hash of each int64.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (the finaliser of SplitMix64).
    """
    x = (counters ^ ((counters >> 30) & 0x3FFFFFFFF)) * MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def noise_keys(seeds: Tensor, steps: Tensor, n_layers: int) -> Tensor:
    """What the hash of each layer starts from.

    Args:
        seeds: (K,) int64, of the trials.
        steps: (n, K) int64, each slot's own step numbers.
        n_layers: of dropout.

    Returns:
        (n, K, n_layers, 2) int64: an odd factor and an offset.
    """
    slot_steps = scrambled(scrambled(seeds) + GOLDEN * (steps + 1))  # (n, K)
    words = scrambled(torch.arange(2 * n_layers, device=seeds.device) + 1)
    keys = scrambled(slot_steps.unsqueeze(-1) ^ words).view(*steps.shape, n_layers, 2)  # (n, K, L, 2)
    return keys | torch.tensor([1, 0], device=seeds.device)


def position_table(n_positions: int, device: torch.device) -> Tensor:
    """(1, ceil(n / 4)) int64: a random constant for each four positions."""
    return scrambled(torch.arange(-(-n_positions // LANES), device=device) + LEVELS).unsqueeze(0)


def quantised(rate: float) -> tuple[int, float]:
    """A rate as (threshold for a signed 16-bit number, scale of what is kept)."""
    level = min(round(rate * LEVELS), LEVELS - 1)
    return level - LEVELS // 2, 0.0 if rate >= 1 else LEVELS / (LEVELS - level)


def seed_generators(seed: int, device: torch.device) -> None:
    """What ``torch.manual_seed`` does, but for the devices that are not there: it walks the stack once for each of them."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def level(kind: str, rate: float) -> tuple[int, float]:
    """(threshold, scale) of a dropout layer's rate; of Gaussian dropout the scale is the standard deviation, and there is no threshold."""
    if kind == BERNOULLI:
        return quantised(rate)
    return -LEVELS // 2, math.sqrt(rate / (1 - rate))


def active_layers(scales: Tensor, kinds: Sequence[str]) -> list[bool]:
    """Which layers do anything in any slot, of scales (K, L). Asks the device."""
    neutral = torch.tensor([OFF[kind] for kind in kinds], device=scales.device, dtype=scales.dtype)
    found: list[bool] = (scales != neutral).any(0).tolist()
    return found


def hashed(table: Tensor, keys: Tensor) -> Tensor:
    """(K, n) int64: the constants (1, n) of the counters, stirred by each slot's key (K, 2)."""
    words = torch.mul(table, keys[:, 0:1]).add_(keys[:, 1:2])
    words.bitwise_xor_(words >> 29).mul_(STIR)
    return words.bitwise_xor_((words >> 32).bitwise_and_(0xFFFFFFFF))


def normal(words: Tensor, dtype: torch.dtype) -> Tensor:
    """(K, 2 n) numbers of mean 0 and variance 1, from (K, n) hashes, by the inverse of the normal distribution; none beyond 5.5."""
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
        """Prepares.

        Args:
            width: K.
            shapes: of each layer's input for one slot, (B, ...).
            device: of the array.
            dtype: of the masks.
            kinds: of each layer's noise; Bernoulli where nothing is said.
            active: whether a layer does anything in any slot; the others cost nothing, and their masks are empty.
        """
        self.shapes = shapes
        self.kinds = kinds or [BERNOULLI] * len(shapes)
        self._active = active if active is not None else [True] * len(shapes)
        counts = [torch.Size(shape).numel() if on else 0 for shape, on in zip(shapes, self._active, strict=True)]
        lanes = [LANES if kind == BERNOULLI else NORMAL_LANES for kind in self.kinds]
        self.tables = [position_table(count * LANES // n, device) for count, n in zip(counts, lanes, strict=True)]
        self.whole = [
            torch.empty(width, n * table.shape[1], device=device, dtype=dtype) for n, table in zip(lanes, self.tables, strict=True)
        ]
        parts = zip(self.whole, counts, shapes, self._active, strict=True)
        self.masks = [whole[:, :count].view(width, *shape) if on else whole for whole, count, shape, on in parts]

    def hashes(self, keys: Tensor, tables: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The random numbers of one step, (K, n) a layer that is active. Pure: a compiler makes one pass of its nine.

        Args:
            keys: (K, L, 2) from ``noise_keys``.
            tables: in place of its own, for a tracer.
        """
        active = [layer for layer, on in enumerate(self._active) if on]
        return [hashed((tables or self.tables)[layer], keys[:, layer]) for layer in active]

    def fill(self, keys: Tensor, thresholds: Tensor, scales: Tensor, hashes: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The masks of one step.

        Args:
            keys: (K, L, 2) from ``noise_keys``; more layers than have masks may follow.
            thresholds: (K, L) int16.
            scales: (K, L).
            hashes: of these keys, where somebody has them already.

        Returns:
            For each layer (K, B, ...), overwritten by the next call: 0 where dropped and the scale where kept, or normal numbers
            about 1; (K, 0) where the layer is not active.
        """
        found = iter(hashes if hashes is not None else self.hashes(keys))
        for layer, (kind, mask) in enumerate(zip(self.kinds, self.whole, strict=True)):
            if not self._active[layer]:
                continue
            words, scale = next(found), scales[:, layer : layer + 1]
            if kind == BERNOULLI:
                torch.ge(words.view(torch.int16), thresholds[:, layer : layer + 1], out=mask)
                mask.mul_(scale)
            else:
                torch.mul(normal(words, mask.dtype), scale, out=mask)
                mask.add_(1)
        return self.masks
