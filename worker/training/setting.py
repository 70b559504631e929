"""What all arrays of an engine share: where, on what data, by which rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.tasks.base import Data
from worker.training.batches import Batches


@dataclass(frozen=True)
class Setting:
    """The data on the device, and the search's options."""

    train_inputs: Tensor  # (n, ...)
    train_targets: Tensor  # (n,)
    val_inputs: Tensor
    val_targets: Tensor
    n_classes: int
    device: torch.device
    dtype: torch.dtype
    search_seed: int
    task_name: str
    explosion_factor: float
    log: Callable[[str], None]
    _batches: dict[int, Batches] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        data: Data,
        device: torch.device,
        dtype: torch.dtype,
        search_seed: int,
        task_name: str,
        factor: float,
        log: Callable[[str], None],
    ) -> Setting:
        """Moves the training and validation parts to the device; the test part stays where it is."""
        kinds = [dtype if part.inputs.is_floating_point() else part.inputs.dtype for part in (data.train, data.val)]
        inputs = [part.inputs.to(device, kind) for part, kind in zip((data.train, data.val), kinds, strict=True)]
        targets = [part.targets.to(device) for part in (data.train, data.val)]
        return cls(inputs[0], targets[0], inputs[1], targets[1], data.n_classes, device, dtype, search_seed, task_name, factor, log)

    def batches(self, batch_size: int) -> Batches:
        """The order of examples for batches of that size."""
        if batch_size not in self._batches:
            self._batches[batch_size] = Batches(len(self.train_targets), batch_size, self.search_seed, self.device)
        return self._batches[batch_size]

    def sample(self, batch_size: int) -> Tensor:
        """The first training examples, a batch of them: to look at shapes and to compare with."""
        return self.train_inputs[: self.batches(batch_size).batch_size]
