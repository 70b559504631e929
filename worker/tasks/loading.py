"""Parts of the data that do not fit in memory: they are loaded batch by batch.

The order of a map-style dataset is the engine's. Everything else that is random, such as a sampler
of the user's own or a transform, draws from generators that are seeded by the search and the epoch.
The global generators are as before afterwards, so loading changes neither weights nor noise.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from common.errors import TaskError
from worker.tasks import trees
from worker.tasks.trees import Tree

FIRST = 32  # examples of the batch that shows the form of a dataset
PAIR = "(inputs, targets)"


class Loaded:
    """A part of the data that is loaded batch by batch.

    One loaded batch serves all trials of an array. An epoch never continues the one before: it
    begins a new iteration of the source.
    """

    def __init__(
        self,
        source: Any,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        sampler: Sampler[int] | None = None,
        epoch_steps: int | None = None,
    ) -> None:
        """Describe a part.

        Args:
            source: a map-style dataset of examples (input, target), which the engine shuffles; an
                ``IterableDataset`` of such examples; or any iterable of batches (inputs, targets),
                such as a ``DataLoader``. If it, its sampler or its dataset has ``set_epoch``, that
                is called with the number of each epoch.
            num_workers: processes that load. They end with the epoch.
            collate_fn: makes a batch of a list of examples. By default torch's.
            sampler: of a map-style dataset, instead of the engine's order.
            epoch_steps: batches per epoch, for a source without a length, or for shorter epochs.

        Raises:
            TaskError: an option cannot be used.
        """
        self.source = source
        self._is_set = not isinstance(source, DataLoader | IterableDataset) and hasattr(
            source, "__getitem__"
        )
        self._has_examples = self._is_set or isinstance(source, IterableDataset)
        self._num_workers, self._collate_fn = num_workers, collate_fn
        self._sampler, self._epoch_steps = sampler, epoch_steps
        if (not hasattr(source, "__iter__") and not self._is_set) or isinstance(source, Iterator):
            raise TaskError(
                f"Loaded({type(source).__name__}) cannot be iterated again in each epoch; give a "
                f"Dataset, a DataLoader, or a class with __iter__ that yields {PAIR}"
            )
        if not self._has_examples and (num_workers or collate_fn or sampler):
            raise TaskError(
                f"Loaded({type(source).__name__}) yields batches already; give num_workers, "
                "collate_fn and sampler to the DataLoader itself"
            )
        if not self._is_set and sampler is not None:
            raise TaskError("a sampler is for a dataset with __getitem__ and __len__")
        if epoch_steps is not None and epoch_steps < 1:
            raise TaskError(f"epoch_steps = {epoch_steps}: at least 1 is needed")

    @property
    def ordered(self) -> bool:
        """Whether the engine decides on the order of the examples."""
        return self._is_set and self._sampler is None

    @property
    def fixed_size(self) -> int | None:
        """The batch size if the source has chosen it, else None."""
        return None if self._has_examples else self._own_size()

    def size(self, batch_size: int) -> int:
        """Return the examples of a batch, given those that the trial asks for."""
        n = self.count()
        return self.fixed_size or min(batch_size, n if self._is_set and n else batch_size)

    def count(self) -> int | None:
        """Return the number of examples, or None if it is unknown."""
        counted = self.source if self._has_examples else getattr(self.source, "sampler", None)
        return _length(counted if self._sampler is None else self._sampler)

    def steps(self, batch_size: int) -> int:
        """Return the batches per epoch. A last, smaller batch is left out.

        Raises:
            TaskError: it is unknown.
        """
        size, n, batches = self.size(batch_size), self.count(), _length(self.source)
        if self._epoch_steps is not None:
            return self._epoch_steps
        if n is not None and (self._has_examples or getattr(self.source, "batch_size", None)):
            found = n // size
        elif batches is not None and not self._has_examples:
            found = batches
        else:
            raise TaskError(
                f"{type(self.source).__name__} has no length; say how many batches an epoch has: "
                "Loaded(..., epoch_steps=1000)"
            )
        if not found:
            raise TaskError(f"{n} examples are too few for a batch of {size}")
        return found

    def first(self, batch_size: int = FIRST) -> tuple[Tree, Tree]:
        """Return the first batch, without shuffling.

        Raises:
            TaskError: there is none, or it is not a pair.
        """
        for batch in self.iterate(batch_size, 0, quick=True):
            return batch
        raise TaskError(
            f"{type(self.source).__name__} gives no batch; it needs an example at least"
        )

    def iterate(
        self,
        batch_size: int,
        seed: int,
        epoch: int = 0,
        order: Sequence[int] | None = None,
        pin: bool = False,
        quick: bool = False,
    ) -> Iterator[tuple[Tree, Tree]]:
        """Yield the batches (inputs, targets) of one iteration of the source, on the CPU.

        Args:
            batch_size: of examples.
            seed: of everything that is random.
            epoch: its number, from 0.
            order: the examples to take, one batch after the other. None takes the sampler's, or all
                of them in turn.
            pin: whether to pin the memory, for copies to a GPU.
            quick: whether to start no processes, if that can be avoided.

        Raises:
            TaskError: a batch is not a pair.
            Exception: whatever the source raises.
        """
        own = _Generators(seed)
        with own:
            _tell_epoch(self.source, epoch)
            loader = self._loader(batch_size, order, seed, pin, quick)
            iterator = iter(loader)
        limit = self._epoch_steps if order is None else None
        try:
            while limit is None or limit > 0:
                with own:
                    batch = next(iterator, None)
                if batch is None:
                    return
                yield _pair(batch)
                limit = None if limit is None else limit - 1
        finally:
            _end_workers(loader, iterator)

    def _loader(
        self, batch_size: int, order: Sequence[int] | None, seed: int, pin: bool, quick: bool
    ) -> Iterable[Any]:
        if not self._has_examples:
            if isinstance(self.source, DataLoader):
                if self.source.generator is not None:
                    self.source.generator.manual_seed(seed)
                if not isinstance(self.source.worker_init_fn, _Start):
                    self.source.worker_init_fn = _Start(self.source.worker_init_fn)
            source: Iterable[Any] = self.source
            return source
        options: dict[str, Any] = {
            "num_workers": 0 if quick else self._num_workers,
            "collate_fn": self._collate_fn,
            "pin_memory": pin,
            "generator": torch.Generator().manual_seed(seed),
            "worker_init_fn": _Start(None),
        }
        if not self._is_set:
            return DataLoader(self.source, batch_size=batch_size, **options)
        taken: Any = order if order is not None else self._sampler
        taken = range(len(self.source)) if taken is None else taken
        batches = BatchSampler(taken, self.size(batch_size), drop_last=False)
        return DataLoader(self.source, batch_sampler=batches, **options)

    def _own_size(self) -> int:
        known = getattr(self.source, "batch_size", None)
        return int(known) if known else trees.count_rows(self._look()[1])

    def _look(self) -> tuple[Tree, Tree]:
        if not hasattr(self, "_seen"):
            self._seen = next(islice(self.iterate(FIRST, 0), 1), None)
        if self._seen is None:
            raise TaskError(f"{type(self.source).__name__} gives no batch")
        return self._seen


def as_loaded(part: Any) -> Any:
    """Return a dataset or a loader as a ``Loaded``, and anything else as it is."""
    return Loaded(part) if isinstance(part, DataLoader | Dataset) else part


class _Generators:
    """The global random generators, seeded, for as long as the ``with`` block runs."""

    def __init__(self, seed: int) -> None:
        self._own: tuple[Any, Any, Any] | None = None
        self._seed = seed

    def __enter__(self) -> None:
        self._before = self._read()
        if self._own is None:
            torch.default_generator.manual_seed(self._seed)
            random.seed(self._seed)
            np.random.seed(self._seed % 2**32)
        else:
            self._write(self._own)

    def __exit__(self, *error: object) -> None:
        self._own = self._read()
        self._write(self._before)

    @staticmethod
    def _read() -> tuple[Any, Any, Any]:
        return torch.default_generator.get_state(), random.getstate(), np.random.get_state()

    @staticmethod
    def _write(states: tuple[Any, Any, Any]) -> None:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


class _Start:
    """What a loading process does first: it forgets how its parent handles signals."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then

    def __call__(self, number: int) -> None:
        signal.set_wakeup_fd(-1)
        for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(one, signal.SIG_DFL)
        # Ctrl-C reaches the whole group; the parent ends its loaders in order.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._then is not None:
            self._then(number)


def _end_workers(loader: Any, iterator: Any) -> None:
    """End the processes of an iteration, also those that a DataLoader keeps for its next one."""
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
    if getattr(loader, "persistent_workers", False):
        vars(loader)["_iterator"] = None


def _tell_epoch(source: Any, epoch: int) -> None:
    names = ("", "sampler", "batch_sampler", "dataset")
    for one in [getattr(source, name, None) if name else source for name in names]:
        if callable(tell := getattr(one, "set_epoch", None)):
            tell(epoch)


def _pair(batch: Any) -> tuple[Tree, Tree]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        told = f"{len(batch)} items" if isinstance(batch, tuple | list) else type(batch).__name__
        raise TaskError(
            f"a loaded batch is a {type(batch).__name__} of {told}; each example or batch is a "
            f"pair {PAIR}. Put several inputs into a dict or a tuple"
        )
    return batch[0], batch[1]


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None
