"""Dropout noise from a counter hash of (trial seed, step, layer, position): no generator, no state.

A slot's noise depends neither on its place in the array nor on its neighbours, and is the same again after a resume.
One 64-bit hash makes the noise of four positions, so that it costs a tenth of what drawing it would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

GOLDEN = -0x61C8864680B583EB  # 2^64 / the golden ratio as a signed number: neighbouring counters land far apart
MIX_1, MIX_2 = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
STIR = 0x2545F4914F6CDD1D  # an odd number with bits all over (Vigna's xorshift64*)
LANES = 4  # 16-bit numbers in a hash
LEVELS = 1 << 16  # a rate is rounded to a multiple of 1/65536, and the scale fits the rounded one


class SlotDropout(nn.Module):
    """Stands where ``nn.Dropout`` stood. In training, multiplies with ``mask``, which the step has filled."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(()), persistent=False)
        self.seen: list[tuple[int, ...]] | None = None  # shapes of the inputs, while somebody wants to know them

    def forward(self, inputs: Tensor) -> Tensor:
        """Inverted dropout; the identity in evaluation mode."""
        if not self.training:
            return inputs
        if self.seen is not None:
            self.seen.append(tuple(inputs.shape))
        return inputs * self.mask


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


class DropoutMasks:
    """The masks of all dropout layers of an array, filled anew for each step."""

    def __init__(self, width: int, shapes: Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> None:
        """``shapes``: of each layer's input for one slot, (B, ...)."""
        self.shapes = shapes
        counts = [torch.Size(shape).numel() for shape in shapes]
        self.tables = [position_table(count, device) for count in counts]
        self.whole = [torch.empty(width, LANES * table.shape[1], device=device, dtype=dtype) for table in self.tables]
        self.masks = [w[:, :count].view(width, *shape) for w, count, shape in zip(self.whole, counts, shapes, strict=True)]

    def fill(self, keys: Tensor, thresholds: Tensor, scales: Tensor) -> list[Tensor]:
        """The masks of one step.

        Args:
            keys: (K, L, 2) from ``noise_keys``.
            thresholds: (K, L) int16.
            scales: (K, L).

        Returns:
            For each layer (K, B, ...): 0 where dropped, the scale where kept; overwritten by the next call.
        """
        for layer, (table, mask) in enumerate(zip(self.tables, self.whole, strict=True)):
            hashed = torch.mul(table, keys[:, layer, 0:1]).add_(keys[:, layer, 1:2])  # (K, n / 4)
            hashed.bitwise_xor_(hashed >> 29).mul_(STIR)
            hashed.bitwise_xor_((hashed >> 32).bitwise_and_(0xFFFFFFFF))
            torch.ge(hashed.view(torch.int16), thresholds[:, layer : layer + 1], out=mask)
            mask.mul_(scales[:, layer : layer + 1])
        return self.masks
