"""One call of ``Engine.train``: which trials go into an array together, and what happens when a step raises."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from common.trial import TrialState
from worker.tasks.base import no_exit
from worker.training.array import Entry, TrialArray
from worker.training.interface import Boundary, Job, Outcome, View, Watch
from worker.training.obstacles import explained
from worker.training.slot import packed

if TYPE_CHECKING:
    from worker.training.engine import Engine

LOADING_S = 600.0  # a data set may have to be downloaded and unpacked
MEASURING_S = 120.0  # some hundred steps of a model that nobody has timed yet
USED = "the model, the loss or a metric"
OTHER_DEVICE = ("not on the expected device", "to be on the same device")  # of torch's messages
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # of the CPU allocator's RuntimeError


class Session:
    """The waiting trials, the array that trains, and what ended since the last boundary."""

    def __init__(self, engine: Engine, refill: Callable[[int], Sequence[Job]], watch: Watch) -> None:
        self._engine = engine
        self._refill = refill
        self._watch = watch
        self._waiting: list[Entry] = []
        self._ended: list[Outcome] = []
        self._stopped = False

    def run(self, jobs: Sequence[Job]) -> Iterator[Boundary]:
        """See ``Engine.train``."""
        self._accept(jobs)
        while True:
            self._forget_lost()
            if self._watch.stopping():
                yield self._boundary(None)
                return
            if self._waiting:
                array = self._assembled()
                if array is not None:
                    yield from self._trained(array)
                    if self._stopped:
                        return
            elif self._ended:
                yield self._boundary(None)
            else:
                self._accept(self._refill(self._engine.widths.default))
                if not self._waiting and not self._ended:
                    return

    def _accept(self, jobs: Sequence[Job]) -> None:
        """Builds the models; those that cannot be built have ended."""
        if not jobs:
            return
        self._watch.beat("loading", LOADING_S)
        try:
            self._engine.setting()
        except Exception as error:
            self._ended += [_failed(job, "data()", error) for job in jobs]
            return
        for job in jobs:
            self._watch.beat()
            try:
                self._waiting.append(self._engine.entry(job))
            except Exception as error:
                self._ended.append(_failed(job, "", error))

    def _trained(self, array: TrialArray) -> Iterator[Boundary]:
        while array.slots:
            array.waiting_steps = self._waiting_steps(array)
            self._advance(array)
            self._ended += array.leave()
            self._stopped = self._watch.stopping()  # asked before the boundary, so that who reads it knows that it is the last
            yield self._boundary(array)
            if self._stopped:
                return
            array.mark_lost(self._watch)
            self._ended += array.leave()
            self._forget_lost()
            while array.slots and self._fill(array):
                pass

    def _waiting_steps(self, array: TrialArray) -> int:
        """Of the trials that could join."""
        first = array.slots[0].model
        batches = self._engine.setting().batches(first.recipe.batch_size)
        return sum(batches.budget(e.job.claim.trial.epochs) for e in self._waiting if e.model.structure == first.structure)

    def _advance(self, array: TrialArray) -> None:
        """One segment. What raises costs no trial but the one whose own model raises."""
        try:
            with no_exit(USED):
                array.advance(self._watch)
        except Exception as error:
            everyone = range(array.width)
            short = _out_of_memory(error)
            if short and array.width > 1:
                half = array.width // 2
                self._limit(array, half)
                self._waiting[:0] = array.carried(everyone[half:])
                array.drop(everyone[half:])
            elif short or not array.stacked:
                self._ended += array.failed(_told(error), traceback.format_exc())
                array.drop(everyone)
            else:
                carried = [self._engine.alone(entry, f"a stacked step raised {explained(error)}") for entry in array.carried(everyone)]
                self._waiting[:0] = carried
                array.drop(everyone)

    def _assembled(self) -> TrialArray | None:
        """The next array; None if its trials have to be sorted anew."""
        first = self._waiting[0]
        alike = [first] if _solitary(first) else [entry for entry in self._waiting if _together(entry, first)]
        width = self._width(alike)
        n_arrays = -(-len(alike) // width)
        group = alike[: -(-len(alike) // n_arrays)]  # arrays of about the same width
        self._take(group)
        self._share_cores(first, len(group))
        try:
            with no_exit(USED):
                array = TrialArray(group, self._engine.shapes(first.model) or [], self._engine.setting(), self._engine.backends)
                strangers = array.strangers(range(array.width)) if array.stacked else {}
        except Exception as error:
            self._regroup(group, error)
            return None
        self._send_away(array, strangers)
        return array if array.slots else None

    def _fill(self, array: TrialArray) -> bool:
        """Puts waiting trials into free slots, or new ones where none waits; True if some did not fit and others may."""
        first = array.slots[0]
        room = self._engine.widths.guess(first.model.structure) - array.width
        if room <= 0 or not array.stacked or first.job.claim.alone:
            return False
        if not self._waiting:
            self._accept(self._refill(room))
        entries = [e for e in self._waiting if not _solitary(e) and e.model.structure == first.model.structure][:room]
        if not entries:
            return False
        self._take(entries)
        before = array.width
        try:
            with no_exit(USED):
                array.admit(entries)
                strangers = array.strangers(range(before, array.width))
        except Exception as error:
            array.drop(range(before, array.width))
            self._regroup(entries, error)
            return False
        self._send_away(array, strangers)
        return bool(strangers)

    def _send_away(self, array: TrialArray, strangers: dict[int, str]) -> None:
        for position, why in strangers.items():
            self._waiting.append(self._engine.alone(array.entry(position), why))
        array.drop(list(strangers))

    def _regroup(self, group: list[Entry], error: Exception) -> None:
        """An array could not be built: narrower ones, or each trial alone; one that is alone already has failed."""
        if len(group) == 1 and (group[0].model.structure.alone or _out_of_memory(error)):
            self._ended.append(_failed(group[0].job, "", error))
        elif _out_of_memory(error):
            self._engine.widths.limit(group[0].model.structure, len(group) // 2)
            self._waiting[:0] = group
        else:
            self._waiting[:0] = [self._engine.alone(entry, explained(error)) for entry in group]

    def _width(self, alike: Sequence[Entry]) -> int:
        first = alike[0]
        if _solitary(first):
            return 1
        engine = self._engine
        batches = engine.setting().batches(first.model.recipe.batch_size)
        n_steps = sum(batches.budget(entry.job.claim.trial.epochs) for entry in alike)

        def measure(width: int) -> float:
            self._watch.beat("measuring", MEASURING_S)
            try:
                return engine.slot_step_s(first.model, width)
            except Exception as error:
                if width > 1 and not _out_of_memory(error):  # nobody will try to stack it again
                    engine.once(f"models of this structure train alone: {explained(error)}", key=first.model.structure)
                raise

        return engine.widths.choose(first.model, len(alike), n_steps, measure)

    def _share_cores(self, first: Entry, width: int) -> None:
        def step_s() -> float:
            self._watch.beat("measuring", MEASURING_S)
            return width * self._engine.slot_step_s(first.model, width)

        self._engine.share_cores(first.model.structure, step_s)
        self._watch.beat()

    def _limit(self, array: TrialArray, width: int) -> None:
        self._engine.widths.limit(array.slots[0].model.structure, width)
        self._engine.once(f"out of memory with {array.width} trials at a time: going on with {width}")

    def _take(self, entries: Sequence[Entry]) -> None:
        taken = {id(entry) for entry in entries}
        self._waiting = [entry for entry in self._waiting if id(entry) not in taken]

    def _forget_lost(self) -> None:
        lost = self._watch.lost()
        if lost:
            self._waiting = [entry for entry in self._waiting if entry.job.id not in lost]

    def _boundary(self, array: TrialArray | None) -> Boundary:
        ended, self._ended = self._ended, []
        carried = [entry for entry in self._waiting if entry.state is not entry.job.resume]
        running = (array.views() if array else []) + [self._carried_view(entry) for entry in carried]
        return Boundary(ended, running, [entry.job for entry in self._waiting if entry.state is entry.job.resume])

    def _carried_view(self, entry: Entry) -> View:
        """A trial between two arrays: it has been trained, and its state is in memory."""
        state = entry.state or {}
        per_epoch = self._engine.setting().batches(entry.model.recipe.batch_size).per_epoch
        metric, metrics = self._engine.options.metric, (state["best"] or {}).get("metrics", {})
        return View(entry.job, state["steps"] / per_epoch, metrics.get("val_acc"), None, 1, lambda: packed(state), metrics.get(metric))


def _solitary(entry: Entry) -> bool:
    return entry.job.claim.alone or entry.model.structure.alone


def _together(entry: Entry, first: Entry) -> bool:
    return not _solitary(entry) and entry.model.structure == first.model.structure


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and any(t in str(error) for t in OUT_OF_MEMORY))


def _told(error: Exception) -> str:
    elsewhere = isinstance(error, RuntimeError) and any(part in str(error) for part in OTHER_DEVICE)
    remedy = " (make tensors on the device of the input, and constants with register_buffer)" if elsewhere else ""
    return f"{type(error).__name__}: {error}{remedy}"


def _failed(job: Job, where: str, error: Exception) -> Outcome:
    reason = f"{where} raised {_told(error)}" if where else _told(error)
    return Outcome(job, TrialState.FAILED, reason, "".join(traceback.format_exception(error)))
