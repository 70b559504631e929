"""Which examples a step sees: a function of (search seed, the slot's own epoch, the step in it), the same for every trial."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

CACHED_EPOCHS = 64  # orders kept; slots of one array are seldom further apart


class Batches:
    """The order of examples. The last, smaller batch of an epoch is left out, so that every step has the same shape."""

    def __init__(self, n_train: int, batch_size: int, search_seed: int, device: torch.device) -> None:
        self.batch_size = min(batch_size, n_train)
        self.per_epoch = n_train // self.batch_size  # steps
        self.order = lru_cache(CACHED_EPOCHS)(lambda epoch: shuffled(n_train, search_seed, epoch).to(device))

    def budget(self, epochs: float) -> int:
        """Steps in so many epochs, which may be a fraction; at least one."""
        return max(1, round(epochs * self.per_epoch))

    def rows(self, step: int, n_steps: int) -> Tensor:
        """(n_steps, B) row numbers of the batches from ``step`` on, all within one epoch."""
        epoch, first = divmod(step, self.per_epoch)
        chosen: Tensor = self.order(epoch)[first * self.batch_size : (first + n_steps) * self.batch_size]
        return chosen.view(n_steps, self.batch_size)


def shuffled(n: int, search_seed: int, epoch: int) -> Tensor:
    """(n,) a permutation for that epoch of that search."""
    digest = hashlib.sha256(f"order/{search_seed}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return torch.randperm(n, generator=generator)
