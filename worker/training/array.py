"""An array of trials: a stack of tensors and what the host knows of each slot, trained from boundary to boundary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.trial import TrialState
from worker.training import explosion, kept
from worker.training.backends import Backends, Sample
from worker.training.called import LoneNetwork
from worker.training.check import differences
from worker.training.interface import Job, Outcome, View, Watch
from worker.training.monitor import Monitor, watched
from worker.training.networks import network_for
from worker.training.rows import Row, fresh_row
from worker.training.setting import Setting
from worker.training.slot import Moment, Pick, Slot, packed
from worker.training.stack import Stack
from worker.training.step import Pace, Plan, StepResult
from worker.training.structure import Model
from worker.training.validation import Validation

SAMPLED_STEPS = 4  # that a backend is timed on


@dataclass
class Entry:
    """A trial on its way into an array: new, resumed from a file, or carried over from another array."""

    job: Job
    model: Model
    state: dict[str, Any] | None = None


class TrialArray:
    """Slots of one structure that train together. Positions in ``slots`` are rows of ``stack``."""

    def __init__(
        self, entries: Sequence[Entry], shapes: Sequence[tuple[int, ...]], setting: Setting, backends: Backends | None = None
    ) -> None:
        """``backends``: chooses how steps are computed; eagerly without."""
        model = entries[0].model
        self._setting = setting
        self._model = model
        self.parts = setting.parts(model.recipe)
        self.batches = setting.batches(model.recipe.batch_size)
        self._objective = setting.objective(model.recipe)
        self._network = LoneNetwork(model) if model.structure.alone else network_for(model, lone=len(entries) == 1)
        self._rates: list[float] | None = None  # of the last step
        self._backends = backends
        self.waiting_steps = 0  # of trials that will join, as far as is known
        self.slots, rows, sums = self._admitted(entries)
        self.stack = Stack(model, self._network, self._objective, rows, shapes, setting.frame(model))
        self.monitor = Monitor(model.layout, self._network.layers, 0, setting.device)
        self.validation = Validation(setting, model, self.parts.val, self._objective, self.batches.batch_size)
        self._monitor_new(sums)

    @property
    def width(self) -> int:
        """How many slots."""
        return len(self.slots)

    @property
    def stacked(self) -> bool:
        """Whether more trials could join."""
        return not isinstance(self._network, LoneNetwork)

    def admit(self, entries: Sequence[Entry]) -> None:
        """Adds trials at the end."""
        slots, rows, sums = self._admitted(entries)
        self.stack.append(rows)
        self.slots += slots
        self._monitor_new(sums)

    def entry(self, position: int) -> Entry:
        """One slot on its way out again."""
        slot = self.slots[position]
        return self.carried([position])[0] if slot.steps else Entry(slot.job, slot.model, slot.job.resume)

    def strangers(self, positions: Sequence[int]) -> dict[int, str]:
        """Those of the slots that do not compute what their own modules do, and what differs."""
        inputs, targets = self._setting.sample(self._model)
        return differences(self.stack, {p: self.slots[p].model for p in positions}, inputs, targets)

    def advance(self, watch: Watch) -> None:
        """Trains to the next boundary of any slot and evaluates the slots that are due; returns early where told to stop.

        Raises:
            Exception: whatever the task's model raises. Every slot then stands after its last whole step.
        """
        n_steps = min(slot.to_boundary for slot in self.slots)
        if n_steps and self._backends is not None:
            self._equip(self._backends, watch)
        started = time.perf_counter()
        for slot in self.slots:
            slot.width = max(slot.width, self.width)
        try:
            if n_steps:
                self._train(n_steps, watch)
        finally:
            passed = time.perf_counter() - started
            for slot in self.slots:
                slot.seconds += passed
        if not watch.stopping():
            self._evaluate(watch)

    def leave(self) -> list[Outcome]:
        """Removes the slots that ended or lost their lease; returns the outcomes of those that ended."""
        going = [position for position, slot in enumerate(self.slots) if slot.ended]
        outcomes = [kept.outcome(self.slots[p], self.stack.row(p), self._setting) for p in going if not self.slots[p].lost]
        self.drop(going)
        return outcomes

    def drop(self, positions: Sequence[int]) -> None:
        """Removes slots."""
        staying = [position for position in range(self.width) if position not in set(positions)]
        if 0 < len(staying) < self.width:
            self.stack.keep(staying)
            self.monitor.keep(staying)
        self.slots = [self.slots[position] for position in staying]

    def carried(self, positions: Sequence[int]) -> list[Entry]:
        """These slots with all that they know, to go on elsewhere."""
        return [Entry(self.slots[p].job, self.slots[p].model, self._state(p)) for p in positions]

    def views(self) -> list[View]:
        """The running trials."""
        return [self._view(slot) for slot in self.slots]

    def failed(self, reason: str, traceback: str) -> list[Outcome]:
        """The outcomes where what raised was the trials' own model."""
        return [
            Outcome(
                slot.job,
                TrialState.FAILED,
                reason,
                traceback,
                epochs=slot.epoch,
                first_loss=slot.first_loss,
                curves=slot.curves,
                seconds=slot.seconds,
                array_width=slot.width,
            )
            for slot in self.slots
        ]

    def _view(self, slot: Slot) -> View:
        return View(
            slot.job,
            slot.epoch,
            slot.best.metrics.get("val_acc") if slot.best else None,
            slot.last_epoch_s,
            self.width,
            lambda: packed(self._state(self.slots.index(slot))),
            slot.value,
            slot.curves,
        )

    def _state(self, position: int) -> dict[str, Any]:
        return {**self.slots[position].state(self.stack.row(position)), "monitor": self.monitor.state(position)}

    def _admitted(self, entries: Sequence[Entry]) -> tuple[list[Slot], list[Row], list[Sequence[float]]]:
        slots, rows, sums = [], [], []
        for entry in entries:
            slot, row = self._fresh(entry)
            if entry.state is not None:
                try:
                    slot.resume(row, entry.state)
                except (KeyError, ValueError, TypeError, RuntimeError) as error:
                    self._setting.log(f"{entry.job.id}: its saved state does not fit ({error}); it starts anew")
                    slot, row = self._fresh(entry)
            slots.append(slot)
            rows.append(row)
            sums.append(entry.state.get("monitor", ()) if entry.state is not None and slot.steps else ())
        return slots, rows, sums

    def _fresh(self, entry: Entry) -> tuple[Slot, Row]:
        trial, options, model = entry.job.claim.trial, self._setting.options, entry.model
        slot = Slot(
            entry.job,
            model,
            self.batches.per_epoch,
            self.batches.budget(trial.epochs),
            Pick(options.metric, options.sign),
            options.stages.get(trial.stage),
            self._objective.chance(model.recipe.values),
            self._setting.n_classes,
            len(self.parts.val),
        )
        return slot, fresh_row(model, trial.seed, self._setting.device, self._setting.dtype)

    def _monitor_new(self, sums: Sequence[Sequence[float]]) -> None:
        """Makes room for slots at the end, each with the sums that it brings."""
        before = self.monitor.width
        self.monitor.append(len(sums))
        for position, own in enumerate(sums, start=before):
            if own:
                self.monitor.restore(position, own)

    def _train(self, n_steps: int, watch: Watch) -> None:
        plan, looks = self._plan(n_steps), self._looks(n_steps)
        train = self.parts.train
        unsettled: list[StepResult] = []
        number, shared, started = 0, self._shared, time.perf_counter()
        try:
            for number in range(n_steps):
                self.mark_lost(watch)
                if watch.stopping() or all(slot.dead for slot in self.slots):
                    break
                rows = plan.batches[number]
                result = self.stack.step(train.inputs[rows], train.targets[rows], plan, number, number in looks)
                if result.looked is not None:
                    counted = looks[number]
                    self.monitor.after_step(result.looked.before, self.stack.rows["flat"], result.looked.gradients, counted)
                unsettled.append(result._replace(looked=None))
                watch.beat()
                if len(unsettled) == explosion.LOOK_EVERY:
                    self._settle(unsettled)
                    unsettled = []
            else:
                if self._backends is not None:
                    self._backends.note(self.stack, shared, n_steps * self.width, time.perf_counter() - started)
        finally:
            if unsettled:
                self._settle(unsettled)
            self._rates = plan.rates[max(0, number)].tolist()

    def _equip(self, backends: Backends, watch: Watch) -> None:
        """Chooses how the next steps are computed; the time that takes is nobody's."""

        def sample() -> Sample:
            plan = self._plan(min(SAMPLED_STEPS, *(slot.to_boundary for slot in self.slots)))
            rows = plan.batches[0]
            return Sample(self.parts.train.inputs[rows], self.parts.train.targets[rows], plan)

        left = sum(slot.total - slot.steps for slot in self.slots) + self.waiting_steps
        backends.equip(self.stack, self._shared, left, sample, watch)

    @property
    def _shared(self) -> bool:
        """Whether all slots see the same inputs at their next step."""
        return self.stack.shared(len({slot.steps for slot in self.slots}) == 1)

    def _plan(self, n_steps: int) -> Plan:
        first, slots = [slot.steps for slot in self.slots], self.slots
        off = [bool(slot.model.recipe.kinds["plateau_momentum_off"]) and slot.plateau.drops > 0 for slot in slots]
        pace = Pace(first, [slot.total for slot in slots], [slot.plateau.drops for slot in slots], off)
        if len(set(first)) == 1:
            return self.stack.plan(self.batches.rows(first[0], n_steps), True, pace)
        rows = torch.stack([self.batches.rows(step, n_steps) for step in first], dim=1)  # (n, K, B)
        return self.stack.plan(rows, False, pace)

    def _looks(self, n_steps: int) -> dict[int, Tensor | None]:
        """The steps that the monitor looks at, and (K,) for which slots it does; None for all."""
        per_epoch = self.batches.per_epoch
        offsets = [slot.steps % per_epoch for slot in self.slots]
        if not self._setting.options.watching:
            return {}
        looks: dict[int, Tensor | None] = {}
        for number in range(n_steps):
            seen = {offset for offset in set(offsets) if watched(offset + number, per_epoch)}
            if seen:
                everyone = seen == set(offsets)
                looks[number] = None if everyone else torch.tensor([offset in seen for offset in offsets], device=self._setting.device)
        return looks

    def mark_lost(self, watch: Watch) -> None:
        """Notes which slots' leases are gone."""
        lost = watch.lost()
        if lost:
            for slot in self.slots:
                slot.lost = slot.lost or slot.job.id in lost

    def _settle(self, results: Sequence[StepResult]) -> None:
        """Looks at the last steps: the only place where the host waits for the device inside an epoch."""
        rows, factor = self.stack.rows, self._setting.options.explosion_factor
        losses = torch.stack([r.loss for r in results])  # (m, K)
        costs = losses + torch.stack([r.penalty for r in results])
        new = torch.tensor([slot.steps == 0 for slot in self.slots], device=losses.device)
        rows["first"].copy_(torch.where(new, costs[0], rows["first"]))
        at = explosion.first_explosions(costs, rows["first"], rows["recent"].T, factor, self._small)
        history = torch.cat([rows["recent"].T, costs])  # (9 + m, K)
        correct = torch.stack([r.correct for r in results]).sum(0)
        told = torch.stack([losses.sum(0), correct.to(losses.dtype), rows["first"], at.to(losses.dtype)]).tolist()
        for position, (slot, loss, right, first, row) in enumerate(zip(self.slots, *told, strict=True)):
            if not slot.dead:
                self._settle_slot(slot, len(results), loss, right, first, int(row), history[:, position])
        rows["recent"].copy_(history[-rows["recent"].shape[1] :].T)
        if self._setting.options.watching:
            self.monitor.note_losses(losses)

    def _settle_slot(self, slot: Slot, n_steps: int, loss: float, right: float, first: float, row: int, history: Tensor) -> None:
        slot.first_loss = first
        slot.loss_sum += loss
        slot.correct_sum += right
        slot.n_summed += n_steps
        if row == n_steps:
            slot.steps += n_steps
            return
        window = history[row : row + explosion.WINDOW].tolist()  # ends with the cost that was too much
        factor = self._setting.options.explosion_factor
        slot.exploded = explosion.explained(window, first, factor, slot.steps + row, slot.per_epoch, self._small)
        slot.steps += row + 1

    @property
    def _small(self) -> float:
        return explosion.small_loss(self._objective.chance(self._model.recipe.values))

    def _evaluate(self, watch: Watch) -> None:
        due = [position for position, slot in enumerate(self.slots) if slot.due and not slot.lost]
        if not due:
            return
        started = time.perf_counter()
        metrics = self.validation(self.stack, self.monitor, watch)
        passed = time.perf_counter() - started
        for slot in self.slots:
            slot.seconds += passed
        better = [p for p in due if self.slots[p].note_evaluation(self._point(p), metrics[p])]
        if better:
            self.stack.keep_best(better)
        for position in due:
            self._snapshot(position)

    def _point(self, position: int) -> dict[str, float | None]:
        """What training leaves in the curves of one slot."""
        slot = self.slots[position]
        point = slot.train_point(self.batches.batch_size) | {"learning_rate": self._rate(position)}
        return point | (self.monitor.points(position) if self._setting.options.watching else {})

    def _snapshot(self, position: int) -> None:
        slot = self.slots[position]
        if slot.snapshot_due and slot.stopped is None and slot.value is not None:
            names = ("flat", "ema", "state.", "buffer.")
            row = {name: tensor.cpu() for name, tensor in self.stack.row(position).items() if name.startswith(names)}
            metric = slot.curves[slot.pick.metric][-1]
            slot.moments.append(Moment(slot.epoch, metric if metric is not None else float("nan"), row))

    def _rate(self, position: int) -> float | None:
        """The learning rate of the last step."""
        return None if self._rates is None else self._rates[position]
