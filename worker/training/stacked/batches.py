"""The order of the training examples.

It is a function of (search seed, the slot's own epoch, the step in it), the same for every trial.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

from worker.tasks.loading import Loaded

CACHED_EPOCHS = 64  # orders kept in the cache; slots of one array are seldom further apart


class Batches:
    """The batches of each epoch.

    The last, smaller batch of an epoch is left out, so that every step has the same shape.
    """

    def __init__(
        self, n_train: int, batch_size: int, search_seed: int, device: torch.device
    ) -> None:
        self.batch_size = min(batch_size, n_train)
        self.per_epoch = n_train // self.batch_size  # steps
        self.order = lru_cache(CACHED_EPOCHS)(
            lambda epoch: shuffle(n_train, search_seed, epoch).to(device)
        )

    def budget(self, epochs: float) -> int:
        """Return the number of steps in ``epochs``, which may be a fraction; at least one."""
        return max(1, round(epochs * self.per_epoch))

    def rows(self, step: int, n_steps: int) -> Tensor:
        """Return the row numbers (n_steps, B) of the batches from ``step`` on, all in one epoch."""
        epoch, first = divmod(step, self.per_epoch)
        chosen: Tensor = self.order(epoch)[
            first * self.batch_size : (first + n_steps) * self.batch_size
        ]
        return chosen.view(n_steps, self.batch_size)


class LoadedBatches(Batches):
    """The batches of a training part that is loaded: ``Feed`` gives them, and this their number.

    The rows are those of the first batch, which shows the shapes.
    """

    def __init__(self, loaded: Loaded, batch_size: int, device: torch.device) -> None:
        self.batch_size, self.per_epoch = loaded.size(batch_size), loaded.steps(batch_size)
        self._device = device

    def rows(self, step: int, n_steps: int) -> Tensor:
        """Return (n_steps, B) row numbers in the first batch."""
        return torch.arange(self.batch_size, device=self._device).expand(n_steps, -1)


def shuffle(n: int, search_seed: int, epoch: int) -> Tensor:
    """Return the permutation (n,) for that epoch of that search."""
    digest = hashlib.sha256(f"order/{search_seed}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return torch.randperm(n, generator=generator)
