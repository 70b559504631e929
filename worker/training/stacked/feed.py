"""The batches of a training part that is loaded, for one array."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from common.errors import TaskError
from worker.tasks import trees
from worker.tasks.loading import Loaded
from worker.tasks.trees import Tree
from worker.training.stacked.batches import shuffle

Pair = tuple[Tree, Tree]


class Feed:
    """The batches from any step on, on the device.

    The batches of an epoch are a function of the search's seed and the number of the epoch, as far
    as the source allows. On a GPU, copies from pinned memory run beside the steps.
    """

    def __init__(
        self,
        loaded: Loaded,
        batch_size: int,
        search_seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._loaded = loaded
        self._batch_size = loaded.size(batch_size)
        self._per_epoch = loaded.steps(batch_size)
        self._search_seed, self._device, self._dtype = search_seed, device, dtype
        self._step = -1  # of the next batch
        self._open: Iterator[Pair] | None = None
        self._side = _stream(device)

    def take(self, step: int) -> Pair:
        """Return the batch (inputs, targets) of a step, counted from the first epoch.

        Batches are quickest in turn. From another step on, the ones before in its epoch are
        skipped: without being loaded, where the order is the engine's.

        Raises:
            TaskError: the source gives no whole batch.
            Exception: whatever the source raises.
        """
        if self._open is None or step != self._step or step % self._per_epoch == 0:
            self.close()
            self._open = self._epoch(*divmod(step, self._per_epoch))
        self._step = step + 1
        return self._move(next(self._open))

    def close(self) -> None:
        """End the processes that load."""
        if self._open is not None:
            self._open.close()  # type: ignore[attr-defined]
            self._open = None

    def _epoch(self, epoch: int, done: int) -> Iterator[Pair]:
        """Yield the batches of an epoch after the first ``done``, endlessly."""
        loaded, size = self._loaded, self._batch_size
        n, skipped, order = loaded.count(), done, None
        for again in range(1 << 62):
            n_whole = 0
            if loaded.ordered and n is not None:
                # An epoch may be longer than the data.
                start = skipped % max(1, n // size)
                order = shuffle(n, self._search_seed, epoch).tolist()[start * size :]
                skipped = 0
            seed = _seed(self._search_seed, epoch, again)
            batches = loaded.iterate(
                self._batch_size, seed, epoch, order, pin=self._side is not None
            )
            try:
                for batch in batches:
                    if trees.count_rows(batch[1]) != size:
                        continue  # every step has the same shape
                    n_whole += 1
                    if skipped:
                        skipped -= 1
                    else:
                        yield batch
            finally:
                batches.close()  # type: ignore[attr-defined]
            if not n_whole:
                raise TaskError(
                    f"epoch {epoch + 1}: the loaded part gives no batch of {size} examples, as "
                    "its first batch had; give batches of one size"
                )

    def _move(self, batch: Pair) -> Pair:
        if self._side is None:
            moved: Pair = trees.move(batch, self._device, self._dtype)
            return moved
        now = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._side):
            ahead: Pair = trees.move(batch, self._device, self._dtype, non_blocking=True)
        now.wait_stream(self._side)
        for leaf in trees.list_leaves(ahead):
            leaf.record_stream(now)
        return ahead


def _seed(search_seed: int, epoch: int, again: int) -> int:
    digest = hashlib.sha256(f"load/{search_seed}/{epoch}/{again}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
