"""An array of trials: a stack of tensors and what the host knows of each slot, trained from boundary to boundary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.trial import TrialState
from worker.training import explosion
from worker.training.check import differences
from worker.training.interface import Job, Outcome, View, Watch
from worker.training.networks import LoneNetwork, network_for
from worker.training.rows import Row, fresh_row
from worker.training.setting import Setting
from worker.training.slot import Slot, packed
from worker.training.stack import Plan, Stack, StepResult
from worker.training.structure import Model

EVALUATED_AT_ONCE = 1 << 16  # examples times slots: activations stay within tens of megabytes for small models


@dataclass
class Entry:
    """A trial on its way into an array: new, resumed from a file, or carried over from another array."""

    job: Job
    model: Model
    state: dict[str, Any] | None = None


class TrialArray:
    """Slots of one structure that train together. Positions in ``slots`` are rows of ``stack``."""

    def __init__(self, entries: Sequence[Entry], shapes: Sequence[tuple[int, ...]], setting: Setting) -> None:
        model = entries[0].model
        self._setting = setting
        self._batches = setting.batches(model.recipe.batch_size)
        self.slots, rows = self._admitted(entries)
        self._network = LoneNetwork(model) if model.structure.alone else network_for(model, lone=len(entries) == 1)
        self.stack = Stack(model, self._network, rows, shapes)

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
        slots, rows = self._admitted(entries)
        self.stack.append(rows)
        self.slots += slots

    def entry(self, position: int) -> Entry:
        """One slot on its way out again."""
        slot = self.slots[position]
        return self.carried([position])[0] if slot.steps else Entry(slot.job, slot.model, slot.job.resume)

    def strangers(self, positions: Sequence[int]) -> dict[int, str]:
        """Those of the slots that do not compute what their own modules do, and what differs."""
        inputs = self._setting.sample(self._batches.batch_size)
        return differences(self.stack, {p: self.slots[p].model for p in positions}, inputs, self._setting.train_targets[: len(inputs)])

    def advance(self, watch: Watch) -> None:
        """Trains to the next boundary of any slot and evaluates the slots that are due; returns early where told to stop.

        Raises:
            Exception: whatever the task's model raises. Every slot then stands after its last whole step.
        """
        started = time.perf_counter()
        for slot in self.slots:
            slot.width = max(slot.width, self.width)
        n_steps = min(slot.to_boundary for slot in self.slots)
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
        name = self._setting.task_name
        going = [position for position, slot in enumerate(self.slots) if slot.ended]
        outcomes = [self.slots[p].outcome(self.stack.row(p), name) for p in going if not self.slots[p].lost]
        self.drop(going)
        return outcomes

    def drop(self, positions: Sequence[int]) -> None:
        """Removes slots."""
        staying = [position for position in range(self.width) if position not in set(positions)]
        if 0 < len(staying) < self.width:
            self.stack.keep(staying)
        self.slots = [self.slots[position] for position in staying]

    def carried(self, positions: Sequence[int]) -> list[Entry]:
        """These slots with all that they know, to go on elsewhere."""
        return [Entry(slot.job, slot.model, slot.state(self.stack.row(p))) for p in positions for slot in [self.slots[p]]]

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
            slot.best.val_acc if slot.best else None,
            slot.last_epoch_s,
            self.width,
            lambda: packed(slot.state(self.stack.row(self.slots.index(slot)))),
        )

    def _admitted(self, entries: Sequence[Entry]) -> tuple[list[Slot], list[Row]]:
        slots, rows = [], []
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
        return slots, rows

    def _fresh(self, entry: Entry) -> tuple[Slot, Row]:
        trial = entry.job.claim.trial
        slot = Slot(entry.job, entry.model, self._batches.per_epoch, self._batches.budget(trial.epochs))
        return slot, fresh_row(entry.model, trial.seed, self._setting.device, self._setting.dtype)

    def _train(self, n_steps: int, watch: Watch) -> None:
        plan = self._plan(n_steps)
        unsettled: list[StepResult] = []
        try:
            for number in range(n_steps):
                self.mark_lost(watch)
                if watch.stopping() or all(slot.dead for slot in self.slots):
                    break
                rows = plan.batches[number]
                unsettled.append(self.stack.step(self._setting.train_inputs[rows], self._setting.train_targets[rows], plan, number))
                watch.beat()
                if len(unsettled) == explosion.LOOK_EVERY:
                    self._settle(unsettled)
                    unsettled = []
        finally:
            if unsettled:
                self._settle(unsettled)

    def _plan(self, n_steps: int) -> Plan:
        first = [slot.steps for slot in self.slots]
        if len(set(first)) == 1:
            return self.stack.plan(self._batches.rows(first[0], n_steps), True, first)
        rows = torch.stack([self._batches.rows(step, n_steps) for step in first], dim=1)  # (n, K, B)
        return self.stack.plan(rows, False, first)

    def mark_lost(self, watch: Watch) -> None:
        """Notes which slots' leases are gone."""
        lost = watch.lost()
        if lost:
            for slot in self.slots:
                slot.lost = slot.lost or slot.job.id in lost

    def _settle(self, results: Sequence[StepResult]) -> None:
        """Looks at the last steps: the only place where the host waits for the device inside an epoch."""
        setting, rows = self._setting, self.stack.rows
        losses = torch.stack([r.loss for r in results])  # (m, K)
        squares = torch.stack([r.squares for r in results])
        costs = losses + 0.5 * rows["hp.weight_decay"].to(losses.dtype) * squares
        new = torch.tensor([slot.steps == 0 for slot in self.slots], device=losses.device)
        rows["first"].copy_(torch.where(new, costs[0], rows["first"]))
        at = explosion.first_explosions(costs, rows["first"], rows["recent"].T, setting.explosion_factor, setting.n_classes)
        history = torch.cat([rows["recent"].T, costs])  # (9 + m, K)
        correct = torch.stack([r.correct for r in results]).sum(0)
        told = torch.stack([losses.sum(0), correct.to(losses.dtype), rows["first"], at.to(losses.dtype)]).tolist()
        for position, (slot, loss, right, first, row) in enumerate(zip(self.slots, *told, strict=True)):
            if not slot.dead:
                self._settle_slot(slot, len(results), loss, right, first, int(row), history[:, position])
        rows["recent"].copy_(history[-rows["recent"].shape[1] :].T)

    def _settle_slot(self, slot: Slot, n_steps: int, loss: float, right: float, first: float, row: int, history: Tensor) -> None:
        slot.first_loss = first
        slot.loss_sum += loss
        slot.correct_sum += right
        slot.n_summed += n_steps
        if row == n_steps:
            slot.steps += n_steps
            return
        window = history[row : row + explosion.WINDOW].tolist()  # ends with the cost that was too much
        factor, n_classes = self._setting.explosion_factor, self._setting.n_classes
        slot.exploded = explosion.explained(window, first, factor, slot.steps + row, slot.per_epoch, n_classes)
        slot.steps += row + 1

    def _evaluate(self, watch: Watch) -> None:
        due = [position for position, slot in enumerate(self.slots) if slot.due and not slot.lost]
        if not due:
            return
        started = time.perf_counter()
        losses, accuracies = self._validated(watch)
        passed = time.perf_counter() - started
        for slot in self.slots:
            slot.seconds += passed
        size = self._batches.batch_size
        better = [p for p in due if self.slots[p].note_evaluation(losses[p], accuracies[p], size)]
        if better:
            self.stack.keep_best(better)

    def _validated(self, watch: Watch) -> tuple[list[float], list[float]]:
        """(K,) mean losses in nats and accuracies on the validation part."""
        inputs, targets = self._setting.val_inputs, self._setting.val_targets
        loss = torch.zeros(self.width, dtype=torch.float64, device=inputs.device)
        correct = torch.zeros(self.width, dtype=torch.int64, device=inputs.device)
        chunk = max(1, EVALUATED_AT_ONCE // self.width)
        for x, y in zip(torch.split(inputs, chunk), torch.split(targets, chunk), strict=True):
            logits = self.stack.predict(x)  # (K, B, C)
            index = y.expand(logits.shape[:2]).unsqueeze(-1)
            loss += (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, index)).sum((1, 2), dtype=torch.float64)
            correct += (logits.argmax(-1, keepdim=True) == index).sum((1, 2))
            watch.beat()
        return (loss / len(targets)).tolist(), (correct.double() / len(targets)).tolist()
