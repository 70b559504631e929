"""One call of ``Engine.train``: it groups trials into arrays and handles errors of their steps."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from common.search.trial import Claim, TrialState
from worker.tasks.base import no_exit
from worker.training.compute.denormals import flush_denormals
from worker.training.device_errors import is_out_of_memory, refuse_poisoned
from worker.training.engine.array import Entry, TrialArray
from worker.training.engine.builder import USED, Builder
from worker.training.math.precision import multiplying
from worker.training.model.obstacles import explain_stacked_error
from worker.training.stacked.slot import pack
from worker.training.types import Boundary, Outcome, View, Watch

LOADING_S = 600.0  # a data set may have to be downloaded and unpacked
MEASURING_S = 120.0  # about a hundred steps of a model that was not timed yet
# Parts of torch's messages.
OTHER_DEVICE = ("not on the expected device", "to be on the same device")


@dataclass(frozen=True)
class Failure:
    """What an error of a step says. The error itself would keep the step's tensors in memory."""

    reason: str
    traceback: str
    out_of_memory: bool
    stacked: str  # what it says of a stacked step


class Session:
    """The waiting trials, the training array, and the outcomes since the last boundary."""

    def __init__(
        self, builder: Builder, refill: Callable[[int], Sequence[Claim]], watch: Watch
    ) -> None:
        self._builder = builder
        self._refill = refill
        self._watch = watch
        self._waiting: list[Entry] = []
        self._ended: list[Outcome] = []
        # Array width for trials like those of the last array.
        self._width_of_last = builder.widths.default
        self._stopped = False
        self._computed: tuple[Claim, ...] = ()  # trials of the array that trains now

    def run(self, claims: Sequence[Claim]) -> Iterator[Boundary]:
        """Train the trials and yield boundaries, see ``Engine.train``."""
        try:
            yield from self._run(claims)
        except Exception as error:  # a device may raise wherever it is asked
            refuse_poisoned(error, self._computed)
            raise

    def _run(self, claims: Sequence[Claim]) -> Iterator[Boundary]:
        self._accept(claims)
        while True:
            self._forget_lost()
            if self._watch.stopping():
                yield self._boundary(None)
                return
            if self._waiting:
                yield from self._train()
                if self._stopped:
                    return
            elif self._ended:
                yield self._boundary(None)
            else:
                self._accept(self._refill(self._width_of_last))
                if not self._waiting and not self._ended:
                    return

    def _accept(self, claims: Sequence[Claim]) -> None:
        """Build the models of the claims. Trials whose model cannot be built end as FAILED."""
        if not claims:
            return
        self._watch.beat("loading", LOADING_S)
        try:
            self._builder.setting()
        except Exception as error:
            refuse_poisoned(error, (*self._computed, *claims))
            self._ended += [_fail(claim, "data()", error) for claim in claims]
            return
        for claim in claims:
            self._watch.beat()
            try:
                self._builder.teach(claim, self._still_loading)
                self._waiting.append(self._builder.entry(claim))
            except Exception as error:
                refuse_poisoned(error, (*self._computed, claim))
                self._ended.append(_fail(claim, "", error))

    def _still_loading(self) -> None:
        self._watch.beat("loading", LOADING_S)

    def _train(self) -> Iterator[Boundary]:
        """Train the next array to its end. It is freed before the next one is built."""
        array = self._assemble()
        if array is None:
            return
        try:
            yield from self._to_its_end(array)
            self._computed = ()
        finally:
            array.close()

    def _to_its_end(self, array: TrialArray) -> Iterator[Boundary]:
        while array.slots:
            array.waiting_steps = self._waiting_steps(array)
            self._advance(array)
            self._ended += array.leave()
            # Asked before the boundary is yielded, so that the caller knows whether it is the last.
            self._stopped = self._watch.stopping()
            yield self._boundary(array)
            if self._stopped:
                return
            array.mark_lost(self._watch)
            self._ended += array.leave()
            self._forget_lost()
            # Trials that joined inside an epoch would not share its batches.
            while array.slots and not array.paused and self._fill(array):
                pass

    def _waiting_steps(self, array: TrialArray) -> int:
        """Return the total number of steps of the waiting trials that could join the array."""
        first = array.slots[0].model
        batches = self._builder.setting().batches(first.recipe.batch_size)
        joining = [entry for entry in self._waiting if entry.model.structure == first.structure]
        return sum(
            max(batches.budget(entry.claim.trial.epochs) - entry.steps, 0) for entry in joining
        )

    def _advance(self, array: TrialArray) -> None:
        """Train to the next boundary and handle errors.

        Running out of memory halves the array. Another error makes each trial of a stacked array
        train alone, so only a trial whose own model raises fails.

        Raises:
            Poisoned: the device serves this process no more.
        """
        failure = self._try_to_advance(array)
        if failure is None:
            return
        everyone = range(array.width)
        if failure.out_of_memory and array.width > 1:
            self._limit(array, array.width // 2)
            # The host's memory takes all states: the device has none for copies.
            self._waiting[:0] = array.carry(everyone)
        elif failure.out_of_memory or not array.stacked:
            self._ended += array.fail(failure.reason, failure.traceback)
        else:
            self._waiting[:0] = [
                self._builder.alone(entry, failure.stacked) for entry in array.carry(everyone)
            ]
        array.drop(everyone)
        if failure.out_of_memory and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()

    def _try_to_advance(self, array: TrialArray) -> Failure | None:
        """Train to the next boundary. Return what went wrong, if anything did.

        An error of loading while the worker is stopping is none: the loading processes may have got
        the same signal.
        """
        self._computed = tuple(slot.claim for slot in array.slots)
        try:
            with no_exit(USED), flush_denormals(), self._multiplying(array):
                array.advance(self._watch)
        except Exception as error:
            if array.loads and self._watch.stopping():
                return None
            refuse_poisoned(error, self._computed)
            return Failure(
                _explain(error),
                traceback.format_exc(),
                is_out_of_memory(error),
                explain_stacked_error(error),
            )
        return None

    def _multiplying(self, array: TrialArray) -> AbstractContextManager[None]:
        precision = array.slots[0].model.recipe.kind("precision")
        return multiplying(precision, self._builder.options.device)

    def _assemble(self) -> TrialArray | None:
        """Build the next array, or return None if its trials must be grouped again."""
        for entry in self._waiting:
            self._builder.renew(entry.model)
        first = self._waiting[0]
        loads = bool(self._builder.setting().loaded)
        alike = (
            [first]
            if _solitary(first)
            else [
                entry
                for entry in self._waiting
                # One loaded batch serves a whole array.
                if _together(entry, first) and (not loads or entry.steps == first.steps)
            ]
        )
        width = self._width(alike)
        n_arrays = -(-len(alike) // width)
        # Trials at the same step share their batches.
        near = sorted(alike, key=lambda entry: abs(entry.steps - first.steps))
        group = near[: -(-len(alike) // n_arrays)]  # so that all arrays have about the same width
        self._take(group)
        self._share_cores(first, len(group))
        try:
            with no_exit(USED):
                array = TrialArray(
                    group,
                    self._builder.shapes(first.model),
                    self._builder.setting(),
                    self._builder.backends,
                )
                strangers = array.strangers(range(array.width)) if array.stacked else {}
        except Exception as error:
            refuse_poisoned(error, [entry.claim for entry in group])
            self._regroup(group, error)
            return None
        self._send_away(array, strangers)
        self._width_of_last = self._builder.widths.guess(first.model) if array.stacked else 1
        return array if array.slots else None

    def _fill(self, array: TrialArray) -> bool:
        """Put waiting or new trials into free slots.

        Returns:
            True if some trials did not fit and others might.
        """
        first = array.slots[0]
        room = self._builder.widths.guess(first.model) - array.width
        if room <= 0 or not array.stacked or first.claim.alone:
            return False
        if not self._waiting and array.takes_new:
            self._accept(self._refill(room))
        entries = [
            e
            for e in self._waiting
            if not _solitary(e) and e.model.structure == first.model.structure and array.in_step(e)
        ][:room]
        if not entries:
            return False
        self._take(entries)
        before = array.width
        try:
            with no_exit(USED):
                array.admit(entries)
                strangers = array.strangers(range(before, array.width))
        except Exception as error:
            refuse_poisoned(error, (*self._computed, *(entry.claim for entry in entries)))
            array.drop(range(before, array.width))
            self._regroup(entries, error)
            return False
        self._send_away(array, strangers)
        return bool(strangers)

    def _send_away(self, array: TrialArray, strangers: dict[int, str]) -> None:
        for position, why in strangers.items():
            self._waiting.append(self._builder.alone(array.entry(position), why))
        array.drop(list(strangers))

    def _regroup(self, group: list[Entry], error: Exception) -> None:
        """Handle an array that could not be built.

        Its trials go into narrower arrays, or each trains alone. A trial that is alone already ends
        as FAILED.
        """
        if len(group) == 1 and (group[0].model.structure.alone or is_out_of_memory(error)):
            self._ended.append(_fail(group[0].claim, "", error))
        elif is_out_of_memory(error):
            self._builder.widths.limit(group[0].model.structure, len(group) // 2)
            self._waiting[:0] = group
        else:
            self._waiting[:0] = [
                self._builder.alone(entry, explain_stacked_error(error)) for entry in group
            ]

    def _width(self, alike: Sequence[Entry]) -> int:
        first = alike[0]
        if _solitary(first):
            return 1
        builder = self._builder
        batches = builder.setting().batches(first.model.recipe.batch_size)
        n_steps = sum(
            max(batches.budget(entry.claim.trial.epochs) - entry.steps, 0) for entry in alike
        )

        def measure(width: int) -> float:
            self._watch.beat("measuring", MEASURING_S)
            try:
                return builder.slot_step_s(first.model, width)
            except Exception as error:
                refuse_poisoned(error, [entry.claim for entry in alike])
                # This structure is not stacked again.
                if width > 1 and not is_out_of_memory(error):
                    builder.once(
                        f"models of this structure train alone: {explain_stacked_error(error)}",
                        key=first.model.structure,
                    )
                raise

        return builder.widths.choose(first.model, len(alike), n_steps, measure)

    def _share_cores(self, first: Entry, width: int) -> None:
        def step_s() -> float:
            self._watch.beat("measuring", MEASURING_S)
            return width * self._builder.slot_step_s(first.model, width)

        self._builder.share_cores(first.model.structure, step_s)
        self._watch.beat()

    def _limit(self, array: TrialArray, width: int) -> None:
        self._builder.widths.limit(array.slots[0].model.structure, width)
        self._builder.once(
            f"out of memory with {array.width} trials at a time: going on with {width}"
        )

    def _take(self, entries: Sequence[Entry]) -> None:
        taken = {id(entry) for entry in entries}
        self._waiting = [entry for entry in self._waiting if id(entry) not in taken]

    def _forget_lost(self) -> None:
        lost = self._watch.lost()
        if lost:
            self._waiting = [entry for entry in self._waiting if entry.claim.id not in lost]

    def _boundary(self, array: TrialArray | None) -> Boundary:
        ended, self._ended = self._ended, []
        carried = [entry for entry in self._waiting if entry.state is not entry.claim.resume]
        running = (array.views() if array else []) + [
            self._view_carried(entry) for entry in carried
        ]
        return Boundary(
            ended,
            running,
            [entry.claim for entry in self._waiting if entry.state is entry.claim.resume],
            within=array is not None and array.paused,
        )

    def _view_carried(self, entry: Entry) -> View:
        """Return the view of a trial between two arrays.

        It has been trained, and its state is in memory.
        """
        state = entry.state or {}
        per_epoch = self._builder.setting().batches(entry.model.recipe.batch_size).per_epoch
        found = state["history"]["best"]
        metrics = found["metrics"] if found else {}
        value = metrics.get(self._builder.options.metric)
        return View(
            entry.claim,
            state["steps"] / per_epoch,
            None,
            1,
            lambda: pack(state),
            metrics,
            value,
        )


def _solitary(entry: Entry) -> bool:
    return entry.claim.alone or entry.model.structure.alone


def _together(entry: Entry, first: Entry) -> bool:
    return not _solitary(entry) and entry.model.structure == first.model.structure


def _explain(error: Exception) -> str:
    elsewhere = isinstance(error, RuntimeError) and any(part in str(error) for part in OTHER_DEVICE)
    remedy = (
        " (make tensors on the device of the input, and constants with register_buffer)"
        if elsewhere
        else ""
    )
    return f"{type(error).__name__}: {error}{remedy}"


def _fail(claim: Claim, where: str, error: Exception) -> Outcome:
    reason = f"{where} raised {_explain(error)}" if where else _explain(error)
    return Outcome(claim, TrialState.FAILED, reason, "".join(traceback.format_exception(error)))
