"""An array of trials: a stack of tensors, and the slots that the host keeps for its rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from common.repeats import list_few
from common.search.stage import explosion_factor
from common.search.trial import Claim, TrialState
from worker.tasks import trees
from worker.tasks.trees import Tree
from worker.training.compute.backends import Backends, Sample
from worker.training.history.history import History
from worker.training.model.network import Network
from worker.training.model.networks import network_for
from worker.training.model.structure import Model
from worker.training.model.vmap_networks import LoneNetwork
from worker.training.outcome import kept_weights
from worker.training.outcome.validation import Validation
from worker.training.stacked import explosion
from worker.training.stacked.agreement import Sampling, differences
from worker.training.stacked.monitor import Monitor, is_watched
from worker.training.stacked.rows import Row, fresh_rows, moving, take_row
from worker.training.stacked.slot import Moment, Slot, pack
from worker.training.stacked.stack import Stack
from worker.training.stacked.step import Pace, Plan, StepResult
from worker.training.stacked.training_data import Setting
from worker.training.types import Outcome, View, Watch

SAMPLED_STEPS = 4  # steps that a backend is timed on
# A trial whose model raised is not ranked.
NO_BEST: dict[str, Any] = {"metrics": {}, "value": None, "best_epoch": None, "epoch_s": None}
PAUSE_S = 30.0  # of training without a boundary; then the states can be saved inside an epoch


@dataclass
class Entry:
    """A trial to put into an array: new, resumed from a file, or moved from another array."""

    claim: Claim
    model: Model
    state: dict[str, Any] | None = None

    @property
    def steps(self) -> int:
        """The steps of its state. ``Slot.resume`` checks later that it fits."""
        steps = self.state.get("steps") if self.state is not None else 0
        return steps if isinstance(steps, int) else 0


class TrialArray:
    """Slots of one structure that train together. A position in ``slots`` is a row of ``stack``."""

    def __init__(
        self,
        entries: Sequence[Entry],
        shapes: Sequence[tuple[int, ...]],
        setting: Setting,
        backends: Backends | None = None,
    ) -> None:
        """Create an array.

        Args:
            entries: the trials.
            shapes: of the inputs of the dropout layers, for one slot.
            setting: the data and the options.
            backends: chooses how steps are computed. Without it they are computed eagerly.
        """
        model = entries[0].model
        self._setting = setting
        self._model = model
        self.parts = setting.parts(model.recipe)
        self.batches = setting.batches(model.recipe.batch_size)
        self._feed = setting.feed(model.recipe)
        self._objective = setting.objective(model.recipe)
        self._network = network_for(model, lone=len(entries) == 1)
        self.stacked = not isinstance(self._network, LoneNetwork)  # whether more trials could join
        self._rates: list[float] | None = None  # learning rates of the last step
        self._backends = backends
        self.waiting_steps = 0  # steps of trials that will join, as far as known
        self.paused = False  # whether all slots are inside an epoch
        self._sampling = Sampling(model.structure in setting.agreed)
        self.slots, rows, sums = self._prepare_entries(entries)
        self._shapes = shapes
        self.stack = self._stack(self._network, rows)
        self.monitor = Monitor(model.layout, self._network.layers, 0, setting.device)
        self.validation = Validation(
            setting, model, self.parts.val, self._objective, self.batches.batch_size
        )
        self._monitor_new(sums)

    @property
    def width(self) -> int:
        """The number of slots."""
        return len(self.slots)

    def admit(self, entries: Sequence[Entry]) -> None:
        """Add trials at the end."""
        slots, rows, sums = self._prepare_entries(entries)
        self.stack.append(rows)
        self.slots += slots
        self._monitor_new(sums)

    def entry(self, position: int) -> Entry:
        """Return the entry of one slot, to train it elsewhere."""
        slot = self.slots[position]
        return (
            self.carry([position])[0]
            if slot.steps
            else Entry(slot.claim, slot.model, slot.claim.resume)
        )

    def strangers(self, positions: Sequence[int]) -> dict[int, str]:
        """Return the slots whose outputs differ from those of their own modules, with reasons.

        A sample of the slots is compared. If one of them differs, all are.
        """
        slots = {position: self.slots[position] for position in positions}
        sharing = [position for position, slot in slots.items() if slot.model.start is not None]
        chosen = self._sampling.choose(
            {position: slot.claim.trial.hyperparameters for position, slot in slots.items()},
            sharing,
        )
        found = self._compare(chosen)
        if not found and set(sharing) & set(chosen):
            self._setting.agreed.add(self._model.structure)
        return found | self._compare(sorted(slots.keys() - {*chosen})) if found else found

    def _compare(self, positions: Sequence[int]) -> dict[int, str]:
        """Compare some slots, in a stack of their own: the others would only take time."""
        if not positions:
            return {}
        inputs, targets = self._setting.sample(self._model)
        network = network_for(self._model, lone=False)
        stack = self._stack(network, self.stack.take(positions))
        models = {place: self.slots[p].model for place, p in enumerate(positions)}
        found = differences(stack, models, inputs, targets)
        return {positions[place]: why for place, why in found.items()}

    def _stack(self, network: Network, rows: Row) -> Stack:
        frame = self._setting.frame(self._model)
        return Stack(self._model, network, self._objective, rows, self._shapes, frame)

    def advance(self, watch: Watch) -> None:
        """Train to the next boundary of any slot, and evaluate the slots that are due.

        It returns early if ``watch`` says to stop, and after ``PAUSE_S``.

        Raises:
            Exception: whatever the task's model raises. Every slot is then at its last whole step.
        """
        self.paused = False
        n_steps = min(slot.to_boundary for slot in self.slots)
        if n_steps and self._backends is not None:
            self._equip(self._backends, watch)
        started, now = time.perf_counter(), time.time()
        for slot in self.slots:
            slot.width = max(slot.width, self.width)
            slot.began_at = slot.began_at or now
        try:
            if n_steps:
                self._train(n_steps, watch)
        finally:
            passed = time.perf_counter() - started
            for slot in self.slots:
                slot.history.seconds += passed
        self.paused = not any(slot.due for slot in self.slots)
        if not watch.stopping():
            self._evaluate(watch)
        now = time.time()
        for slot in self.slots:
            slot.trained_until = now

    def close(self) -> None:
        """End what loads the training part, if anything does."""
        if self._feed is not None:
            self._feed.close()

    @property
    def loads(self) -> bool:
        """Whether the training part is loaded batch by batch."""
        return self._feed is not None

    @property
    def takes_new(self) -> bool:
        """Whether a new trial may join. Where batches are loaded, only at the very beginning."""
        return self._feed is None or all(slot.steps == 0 for slot in self.slots)

    def in_step(self, entry: Entry) -> bool:
        """Return whether a trial may join: one loaded batch serves all slots at the same step."""
        return self._feed is None or all(slot.steps == entry.steps for slot in self.slots)

    def leave(self) -> list[Outcome]:
        """Remove the slots that ended or lost their lease. Return outcomes of those that ended."""
        going = [position for position, slot in enumerate(self.slots) if slot.ended]
        told = [position for position in going if not self.slots[position].lost]
        if not told:
            self.drop(going)
            return []
        # If all leave, no step changes the stack any more.
        rows = self.stack.take(told) if len(told) < self.width else self.stack.rows
        on_host = cache(partial(_fetch, rows))
        outcomes = [
            kept_weights.outcome(self.slots[p], rows, on_host, place, self._setting, self._sums(p))
            for place, p in enumerate(told)
        ]
        self.drop(going)
        return outcomes

    def drop(self, positions: Sequence[int]) -> None:
        """Remove slots. Without any, all tensors are freed, and nothing can be trained."""
        if not self.slots:
            return
        leaving = set(positions)
        staying = [position for position in range(self.width) if position not in leaving]
        if not staying:
            # Views of earlier boundaries still refer to the array.
            del self.stack, self.monitor, self._network
        elif len(staying) < self.width:
            self.stack.keep(staying)
            self.monitor.keep(staying)
        self.slots = [self.slots[position] for position in staying]

    def carry(self, positions: Sequence[int]) -> list[Entry]:
        """Return entries with the full state of these slots, to go on elsewhere."""
        rows = _fetch(self.stack.rows)
        return [
            Entry(self.slots[p].claim, self.slots[p].model, self._state(p, rows)) for p in positions
        ]

    def views(self) -> list[View]:
        """Return views of the running trials. Their states share one copy of the stack."""
        # Views live until the next boundary, and must not keep the tensors of slots that leave.
        on_host = cache(lambda: _fetch(self.stack.rows))
        return [self._view(position, on_host) for position in range(self.width)]

    def fail(self, reason: str, traceback: str) -> list[Outcome]:
        """Return an outcome of state FAILED for every slot, after the trials' own model raised."""
        return [
            Outcome(
                slot.claim,
                TrialState.FAILED,
                reason,
                traceback,
                **slot.collect_measurements() | NO_BEST | {"trained_until": time.time()},
                guess_acc=self._setting.largest_share,
            )
            for slot in self.slots
        ]

    def _view(self, position: int, on_host: Callable[[], Row]) -> View:
        slot = self.slots[position]
        return View(
            slot.claim,
            slot.epoch,
            slot.history.last_epoch_s,
            self.width,
            lambda: pack(self._state(position, on_host())),
            slot.history.metrics,
            slot.history.value,
            slot.history.curves,
        )

    def _state(self, position: int, rows: Row) -> dict[str, Any]:
        return {
            **self.slots[position].state(take_row(rows, position)),
            "monitor": self.monitor.state(position),
        }

    def _sums(self, position: int) -> Sequence[float]:
        """Return the monitor's sums since the last evaluation; nothing for an exploded trial.

        At the end of a budget they are zero, and the device is not asked.
        """
        slot = self.slots[position]
        return self.monitor.state(position) if slot.exploded is None else ()

    def _prepare_entries(
        self, entries: Sequence[Entry]
    ) -> tuple[list[Slot], Row, list[Sequence[float]]]:
        slots, rows = [self._fresh(entry) for entry in entries], self._fresh_rows(entries)
        sums: list[Sequence[float]] = []
        unfit: dict[str, list[str]] = {}
        for place, entry in enumerate(entries):
            if entry.state is not None:
                row = take_row(rows, place)
                try:
                    slots[place].resume(row, entry.state)
                except (KeyError, ValueError, TypeError, RuntimeError) as error:
                    unfit.setdefault(str(error), []).append(entry.claim.id)
                    slots[place] = self._fresh(entry)
                    for name, tensor in self._fresh_rows([entry]).items():
                        row[name].copy_(tensor[0])
            resumed = entry.state is not None and slots[place].steps
            sums.append(entry.state.get("monitor", ()) if entry.state and resumed else ())
        for why, trials in unfit.items():
            its, starts = ("its", "it starts") if len(trials) == 1 else ("their", "they start")
            self._setting.log(
                f"{list_few(trials)}: {its} saved state does not fit ({why}); {starts} anew"
            )
        return slots, rows, sums

    def _fresh_rows(self, entries: Sequence[Entry]) -> Row:
        return fresh_rows(
            [entry.model for entry in entries],
            [entry.claim.trial.seed for entry in entries],
            self._setting.device,
            self._setting.dtype,
        )

    def _fresh(self, entry: Entry) -> Slot:
        trial, options, model = entry.claim.trial, self._setting.options, entry.model
        stage = options.stages.get(trial.stage)
        return Slot(
            entry.claim,
            model,
            self.batches.per_epoch,
            self.batches.budget(trial.epochs),
            History(options.metric, options.mode),
            stage,
            self._objective.chance(model.recipe.values),
            self._setting.n_classes,
            self._setting.n_val,
            self.batches.budget(trial.horizon),
            explosion_factor(stage, options.explosion, options.explosion_factor),
        )

    def _monitor_new(self, sums: Sequence[Sequence[float]]) -> None:
        """Add slots at the end of the monitor and restore the sums that they bring."""
        before = self.monitor.width
        self.monitor.append(len(sums))
        for position, own in enumerate(sums, start=before):
            if own:
                self.monitor.restore(position, own)

    def _train(self, n_steps: int, watch: Watch) -> None:
        plan, looks = self._plan(n_steps), self._looks(n_steps)
        first = self.slots[0].steps
        unsettled: list[StepResult] = []
        number, shared, started = 0, self._shared, time.perf_counter()
        read_at, waits = started, self._setting.device.type != "cpu"
        try:
            for number in range(n_steps):
                self.mark_lost(watch)
                if watch.stopping() or all(slot.dead for slot in self.slots):
                    break
                inputs, targets = (
                    self._pick(plan.batches[number])
                    if self._feed is None
                    else self._feed.take(first + number)
                )
                result = self.stack.step(inputs, targets, plan, number, number in looks)
                if result.looked is not None:
                    counted = looks[number]
                    self.monitor.after_step(
                        result.looked.before,
                        self.stack.rows["flat"],
                        result.looked.gradients,
                        counted,
                    )
                unsettled.append(result._replace(looked=None))
                watch.beat()
                now = time.perf_counter()
                if len(unsettled) >= explosion.LOOK_EVERY and (
                    not waits or now - read_at >= explosion.LOOK_S
                ):
                    self._settle(unsettled)
                    unsettled, read_at = [], now
                if now - started >= PAUSE_S:
                    break
            else:
                if unsettled:  # so that the time is that of the device
                    self._settle(unsettled)
                    unsettled = []
                if self._backends is not None:
                    self._backends.note(
                        self.stack, shared, n_steps * self.width, time.perf_counter() - started
                    )
        finally:
            if unsettled:
                self._settle(unsettled)
            self._rates = plan.rates[max(0, number)].tolist()

    def _equip(self, backends: Backends, watch: Watch) -> None:
        """Choose how the next steps are computed. The time this takes counts for no trial."""

        def sample() -> Sample:
            plan = self._plan(min(SAMPLED_STEPS, *(slot.to_boundary for slot in self.slots)))
            rows = plan.batches[0]
            return Sample(*self._pick(rows), plan)

        left = sum(slot.total - slot.steps for slot in self.slots) + self.waiting_steps
        backends.equip(self.stack, self._shared, left, sample, watch)

    def _pick(self, rows: Tensor) -> tuple[Tree, Tree]:
        train = self.parts.train
        return trees.pick(train.inputs, rows), trees.pick(train.targets, rows)

    @property
    def _shared(self) -> bool:
        """Whether all slots see the same inputs at their next step."""
        return self.stack.is_shared(len({slot.steps for slot in self.slots}) == 1)

    def _plan(self, n_steps: int) -> Plan:
        first, slots = [slot.steps for slot in self.slots], self.slots
        off = [
            bool(slot.model.recipe.kinds["plateau_momentum_off"]) and slot.plateau.drops > 0
            for slot in slots
        ]
        pace = Pace(
            first, [slot.horizon for slot in slots], [slot.plateau.drops for slot in slots], off
        )
        if len(set(first)) == 1:
            return self.stack.plan(self.batches.rows(first[0], n_steps), True, pace)
        rows = torch.stack([self.batches.rows(step, n_steps) for step in first], dim=1)  # (n, K, B)
        return self.stack.plan(rows, False, pace)

    def _looks(self, n_steps: int) -> dict[int, Tensor | None]:
        """Return the steps that the monitor measures, each with the slots to count (K,).

        None instead of the slots means all of them.
        """
        per_epoch = self.batches.per_epoch
        offsets = [slot.steps % per_epoch for slot in self.slots]
        if not self._setting.options.watching:
            return {}
        looks: dict[int, Tensor | None] = {}
        for number in range(n_steps):
            seen = {offset for offset in set(offsets) if is_watched(offset + number, per_epoch)}
            if seen:
                everyone = seen == set(offsets)
                looks[number] = (
                    None
                    if everyone
                    else torch.tensor(
                        [offset in seen for offset in offsets], device=self._setting.device
                    )
                )
        return looks

    def mark_lost(self, watch: Watch) -> None:
        """Mark the slots whose lease is lost."""
        lost = watch.lost()
        if lost:
            for slot in self.slots:
                slot.lost = slot.lost or slot.claim.id in lost

    def _settle(self, results: Sequence[StepResult]) -> None:
        """Read the results of the last steps and update the slots.

        Inside an epoch, the host waits for the device only here: once, and once a second if the
        epoch takes longer.
        """
        rows = self.stack.rows
        losses = torch.stack([r.loss for r in results])  # (m, K)
        costs = losses + torch.stack([r.penalty for r in results])
        new = torch.tensor([slot.steps == 0 for slot in self.slots], device=losses.device)
        rows["first"].copy_(torch.where(new, costs[0], rows["first"]))
        own = [slot.explosion_factor for slot in self.slots]
        factors = costs.new_tensor([math.inf if factor is None else factor for factor in own])
        at = explosion.first_explosions(
            costs, rows["first"], rows["recent"].T, factors, self._small
        )
        history = torch.cat([rows["recent"].T, costs])  # (9 + m, K)
        correct = torch.stack([r.correct for r in results]).sum(0)
        names = list(results[0].parts)
        parts = [torch.stack([r.parts[name] for r in results]).sum(0) for name in names]
        told = torch.stack(
            [losses.sum(0), correct.to(losses.dtype), rows["first"], at.to(losses.dtype), *parts]
        ).tolist()
        # If any slot has exploded, the costs of all are read at once.
        exploding = any(
            row < len(results) and slot.may_explode
            for slot, row in zip(self.slots, told[3], strict=True)
        )
        costs_of = history.T.tolist() if exploding else []
        for position, (slot, loss, right, first, row, *sums) in enumerate(
            zip(self.slots, *told, strict=True)
        ):
            if not slot.dead:
                if names:
                    slot.note_parts(dict(zip(names, sums, strict=True)))
                costs_of_slot = costs_of[position] if costs_of else []
                self._settle_slot(slot, len(results), loss, right, first, int(row), costs_of_slot)
        rows["recent"].copy_(history[-rows["recent"].shape[1] :].T)
        if self._setting.options.watching:
            self.monitor.note_losses(losses)

    def _settle_slot(
        self,
        slot: Slot,
        n_steps: int,
        loss: float,
        right: float,
        first: float,
        row: int,
        costs: Sequence[float],
    ) -> None:
        slot.first_loss = first
        slot.loss_sum += loss
        slot.correct_sum += right
        slot.n_summed += n_steps
        if row == n_steps or not slot.may_explode:
            slot.steps += n_steps
            return
        # Ends with the cost above the limit.
        window = list(costs[row : row + explosion.WINDOW])
        slot.exploded = explosion.explain_explosion(
            window,
            first,
            slot.explosion_factor or math.inf,
            slot.steps + row,
            slot.per_epoch,
            self._small,
        )
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
        if metrics is None:
            return  # whoever resumes the trials evaluates them first
        passed = time.perf_counter() - started
        for slot in self.slots:
            slot.history.seconds += passed
        better = [p for p in due if self.slots[p].note_evaluation(self._point(p), metrics[p])]
        if better:
            self.stack.keep_best(better)
        self._take_snapshots(due)

    def _point(self, position: int) -> dict[str, float | None]:
        """Return the values that training adds to the curves of one slot."""
        slot = self.slots[position]
        point = slot.train_point(self.batches.batch_size)
        point["learning_rate"] = self._rate(position)
        if self._setting.options.watching:
            point.update(self.monitor.points(position))
        return point

    def _take_snapshots(self, due: Sequence[int]) -> None:
        wanted = [
            position
            for position in due
            if self.slots[position].snapshot_due
            and self.slots[position].stopped is None
            and self.slots[position].history.value is not None
        ]
        rows = _fetch(self.stack.take(wanted)) if wanted else {}
        for place, position in enumerate(wanted):
            slot = self.slots[position]
            row = {name: one.clone() for name, one in moving(take_row(rows, place)).items()}
            metric = slot.history.curves[slot.history.metric][-1]
            slot.moments.append(
                Moment(slot.epoch, metric if metric is not None else float("nan"), row)
            )

    def _rate(self, position: int) -> float | None:
        """Return the learning rate of the last step."""
        return None if self._rates is None else self._rates[position]


def _fetch(rows: Row) -> Row:
    """Return the tensors on the CPU. Those that are there already are not copied."""
    return {name: tensor.cpu() for name, tensor in rows.items()}
