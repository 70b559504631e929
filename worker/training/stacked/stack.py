"""The tensors of an array, with one row per slot, and one training step of all rows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from worker.tasks import trees
from worker.tasks.trees import Tree
from worker.training.math import averages
from worker.training.math.augment import STRENGTHS, Augmentation
from worker.training.math.losses import Losses, Objective
from worker.training.math.noise import DropoutMasks, active_layers, noise_keys, seed_generators
from worker.training.math.optimizers import Columns
from worker.training.math.recipe import COLUMN, NUMBERS
from worker.training.math.regularization import activation_penalty
from worker.training.math.schedules import fade_factors, momentum_values, rate_factors
from worker.training.math.update import Piece, cut, name_of_group, take_span, update
from worker.training.model.network import Network, Note
from worker.training.model.networks import ChainNetwork
from worker.training.model.python_state import seed_python
from worker.training.model.structure import LIFTED, Model
from worker.training.model.vmap_networks import LoneNetwork
from worker.training.stacked.monitor import norms
from worker.training.stacked.rows import BEST, Row, take_row
from worker.training.stacked.step import (
    Batch,
    Frame,
    Looked,
    Pace,
    Plan,
    StepResult,
    Tensors,
    Whole,
)

# Keys per step after those of the dropout layers: for a module's own generator, and for
# augmentation.
OTHER_KEYS = 2
NEUTRAL = {"momentum_start": -1.0}  # values without effect, where they are not 0
LIMITS = ("clip_norm", "clip_value", "max_norm")
FIXED = (*LIMITS, *STRENGTHS)  # columns that no schedule changes


class Stack:
    """The tensors of K slots of one structure.

    They are the first K rows of a storage, which stays where it is while slots leave and join. It
    is replaced only where there are more slots than ever before.
    """

    def __init__(
        self,
        model: Model,
        network: Network,
        objective: Objective,
        rows: Row,
        shapes: Sequence[tuple[int, ...]],
        frame: Frame,
    ) -> None:
        """Create a stack.

        Args:
            model: the model of one slot; all have its structure.
            network: computes forward and backward.
            objective: the loss.
            rows: the slots' tensors, (K, ...) each, as ``fresh_rows`` returns them.
            shapes: of the inputs of the dropout layers, for one slot.
            frame: the facts about the data.
        """
        self.model = model
        self.objective = objective
        self._network = network
        self._shapes = shapes
        self._frame = frame
        self._spans = model.layout.spans(bool(model.recipe.kinds["decay_biases"]))
        self.rows = dict(rows)
        self._storage = self.rows  # (C, ...) each
        self._whole: Whole | None = None
        self._static: list[Tensor] | None = None
        self._ahead: tuple[Plan | None, int, Sequence[Tensor]] = (None, 0, ())
        self._allocate(self.width)
        self._bind(self.width)

    @property
    def width(self) -> int:
        """The number of slots."""
        return len(self.rows["flat"])

    @property
    def network(self) -> Network:
        """The network that computes forward and backward."""
        return self._network

    def row(self, slot: int) -> Row:
        """Return one slot's tensors, which the next step changes."""
        return take_row(self.rows, slot)

    def take(self, slots: Sequence[int]) -> Row:
        """Return copies of the tensors of some slots, (n, ...) each."""
        index = torch.tensor(slots, device=self.rows["flat"].device)
        return {name: tensor.index_select(0, index) for name, tensor in self.rows.items()}

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all other slots. The given ones are in order, and those behind a hole move up."""
        first = next((place for place, slot in enumerate(slots) if place != slot), len(slots))
        index = torch.tensor(slots[first:], dtype=torch.int64, device=self.rows["flat"].device)
        # One after the other, so that the copies take little memory.
        for tensor in self.rows.values():
            tensor[first : len(slots)].copy_(tensor.index_select(0, index))
        self._bind(len(slots))

    def append(self, rows: Row) -> None:
        """Add slots at the end, with tensors (n, ...)."""
        before, width = self.width, self.width + len(rows["flat"])
        if width > len(self._storage["flat"]):
            self._allocate(width)
        for name, tensor in self._storage.items():
            tensor[before:width].copy_(rows[name])
        self._bind(width)

    def keep_best(self, slots: Sequence[int]) -> None:
        """Save the current weights of these slots as those of their best epoch."""
        index = torch.tensor(slots, device=self.rows["flat"].device)
        for name in [n for n in self.rows if n.startswith(BEST)]:
            self.rows[name].index_copy_(
                0, index, self.rows[name.removeprefix(BEST)].index_select(0, index)
            )

    def plan(self, batches: Tensor, shared: bool, pace: Pace) -> Plan:
        """Prepare ``len(batches)`` steps for slots at ``pace``."""
        flat, recipe = self.rows["flat"], self.model.recipe
        steps = torch.tensor(pace.steps, device=flat.device) + torch.arange(
            len(batches), device=flat.device
        ).unsqueeze(-1)  # (n, K)
        values = dict(zip(NUMBERS, self.rows["hp"].unbind(1), strict=True))  # (K,) each
        totals = torch.tensor(pace.totals, device=flat.device)
        factors: Tensor | None = None
        if recipe.kinds["schedule"] != "constant" or "warmup_epochs" in self._active:
            drops = torch.tensor(pace.drops, device=flat.device)
            factors = rate_factors(
                recipe.kind("schedule"), values, steps, self._frame.per_epoch, totals, drops
            )
        if "momentum_start" in self._active or any(pace.momentum_off):
            values["momentum"] = momentum_values(
                values,
                steps,
                self._frame.per_epoch,
                torch.tensor(pace.momentum_off, device=flat.device),
            )
        left = fade_factors(values, steps, totals) if "fade" in self._active else None
        columns: Columns = {}
        rates = values["learning_rate"] if factors is None else values["learning_rate"] * factors
        for group in sorted({0, *(span.group for span in self._spans)}):
            own = self._of_group(values, group)
            if factors is not None:
                own["learning_rate"] = own["learning_rate"] * factors
            if left is not None:
                own |= {name: own[name] * left for name in ("weight_decay", "l1")}
            found = recipe.rule.columns(own, steps.double())
            found |= self._decay_columns(own, steps, group)
            columns |= {name_of_group(name, group): column for name, column in found.items()}
        if "activation_l1" in self._active:
            strength = values["activation_l1"] * (1.0 if left is None else left)
            columns["activation_l1"] = strength.expand_as(steps).unsqueeze(-1)
        columns |= (
            {"ema": averages.decays(values["ema"], steps).unsqueeze(-1)} if recipe.averaged else {}
        )
        keys = noise_keys(self.rows["seed"], steps, len(self._shapes) + OTHER_KEYS)
        seeds = (
            keys[:, 0, len(self._shapes), 1].tolist()
            if isinstance(self._network, LoneNetwork)
            else []
        )
        return Plan(
            batches,
            shared,
            keys,
            {name: column.to(flat.dtype) for name, column in columns.items()},
            rates.expand_as(steps),
            seeds,
        )

    @torch.no_grad()
    def step(
        self, inputs: Tree, targets: Tree, plan: Plan, number: int, look: bool = False
    ) -> StepResult:
        """Update every slot once.

        Everything that may raise or run out of memory comes before the first change of a weight.

        Args:
            inputs: (B, ...) if the plan says that all slots share them, else (K, B, ...).
            targets: (B, ...) or (K, B, ...).
            plan: as returned by ``plan``.
            number: of the step in the plan.
            look: whether to return ``Looked`` as well.
        """
        if plan.seeds:
            self._seed(plan.seeds[number])
        inputs, columns = self.ready(inputs, plan, number)
        if self._whole is not None and (self._whole.compiled or not look):
            return self._at_once(self._whole, Batch(inputs, targets, columns), plan, number, look)
        moved = (
            {name: tensor.clone() for name, tensor in self._buffers.items()}
            if self._buffers
            else {}
        )
        try:
            strength = columns.get("activation_l1")
            losses = self._differentiate(inputs, targets, plan.shared, strength)
            looked = Looked(self.rows["flat"].clone(), norms([self._gradients])) if look else None
        except Exception:
            for name, tensor in moved.items():
                self._buffers[name].copy_(tensor)
            raise
        penalty = self.move(columns, self.limits)
        if losses.penalty is not None:
            penalty = penalty + losses.penalty
        return StepResult(losses.mean, losses.correct, penalty, looked, losses.parts)

    @property
    def whole_batches(self) -> bool:
        """Whether a step computes its batch at once."""
        return self.model.recipe.accumulate == 1

    def _differentiate(
        self, inputs: Tree, targets: Tree, shared: bool, strength: Tensor | None
    ) -> Losses:
        """Return the losses of a batch, and put the gradients where the update takes them.

        With ``accumulate``, the batch is computed in pieces. Their gradients are added, each by its
        share of the examples. ``strength`` (K, 1) is that of the penalty on activations.
        """
        alike = self.is_shared(shared)
        if self.whole_batches:
            return self._differentiate_piece(
                inputs, targets, alike, self._masks.masks, 1.0, strength
            )
        n = trees.first_leaf(targets).shape[0 if shared else 1]
        size = -(-n // self.model.recipe.accumulate)
        total, found = torch.zeros_like(self._gradients), []
        penalties: list[Tensor] = []
        for start in range(0, n, size):
            own = slice(start, start + size)
            share = len(range(n)[own]) / n
            losses = self._differentiate_piece(
                trees.pick(inputs, own if alike else (slice(None), own)),
                trees.pick(targets, own if shared else (slice(None), own)),
                alike,
                [mask[:, own] for mask in self._masks.masks],
                share,
                strength,
            )
            total += self._gradients
            parts = {name: part * share for name, part in losses.parts.items()}
            penalties += [losses.penalty * share] if losses.penalty is not None else []
            found.append((losses.mean * share, losses.correct, parts))
        self._gradients.copy_(total)
        means, correct, of_parts = zip(*found, strict=True)
        sums = {name: torch.stack([one[name] for one in of_parts]).sum(0) for name in of_parts[0]}
        penalty = torch.stack(penalties).sum(0) if penalties else None
        return Losses(torch.stack(means).sum(0), torch.stack(correct).sum(0), None, sums, penalty)

    def _differentiate_piece(
        self,
        inputs: Tree,
        targets: Tree,
        alike: bool,
        masks: Sequence[Tensor],
        share: float,
        strength: Tensor | None,
    ) -> Losses:
        outputs = self._network.forward(inputs, alike, masks, activity=strength is not None)
        losses = self.objective(outputs, targets, self._objective_values)
        gradient = losses.gradient
        if share != 1.0:
            gradient = trees.map_leaves(
                lambda one: one * share if one.is_floating_point() else one, gradient
            )
        if strength is None:
            self._network.backward(gradient)
            return losses
        self._network.backward(gradient, strength.squeeze(-1) * share)
        return losses._replace(penalty=activation_penalty(self._network.activity, strength))

    def _seed(self, seed: int) -> None:
        """Seed the generators that a module may draw its own noise from."""
        seed_generators(seed, self.rows["flat"].device)
        if self.model.stateful is not None:
            seed_python(seed)

    def move(self, columns: Columns, limits: Columns) -> Tensor:
        """Update all slots with the current gradients.

        Returns:
            The penalties before the update, (K,).
        """
        return update(self.model.recipe.rule, self._pieces, self._views, columns, limits)

    def use(self, whole: Whole | None) -> None:
        """Compute steps with ``whole`` until slots are added or dropped.

        None computes them eagerly.
        """
        self._whole = whole

    def ready(self, inputs: Tree, plan: Plan, number: int) -> tuple[Tree, Columns]:
        """Augment the inputs and make the noise of a step.

        Returns:
            The inputs and the columns, for ``Whole``.
        """
        keys = plan.keys[number]
        if self._augmentation is not None:
            inputs = self._augmentation(inputs, self._fixed, keys[:, len(self._shapes) + 1])
        plan_ahead, number_ahead, hashes = self._ahead
        known = hashes if plan_ahead is plan and number_ahead == number else None
        self._masks.fill(keys, self.rows["threshold"], self.rows["scale"], known)
        return inputs, {name: column[number] for name, column in plan.columns.items()}

    def is_shared(self, batches: bool) -> bool:
        """Return whether all slots see the same inputs.

        Args:
            batches: whether they share their batches. With augmentation each slot still has its own
                inputs.
        """
        return batches and self._augmentation is None

    @property
    def form(self) -> Hashable:
        """A key of the code of a step: stacks of one structure and form differ in numbers alone."""
        shapes = [tuple(mask.shape) for mask in self._masks.masks]
        return (
            self.width,
            str(self.rows["flat"].dtype),
            tuple(sorted(self._active)),
            tuple(sorted(self._decaying)),
            tuple(shapes),
            tuple(self._objective_values),
        )

    def predict(self, inputs: Tree, averaged: bool = False, note: Note | None = None) -> Tree:
        """Return the outputs (K, B, ...) in evaluation mode.

        Args:
            inputs: (B, ...).
            averaged: whether to use the running average of the parameters.
            note: called with the activations of each layer during the pass. Only a ``ChainNetwork``
                does so.
        """
        with torch.no_grad():
            if note is not None and isinstance(self._network, ChainNetwork):
                return self._network.predict(inputs, note)
            if not averaged:
                return self._network.predict(inputs)
            self._network.bind(self.rows["ema"], self._gradients, self._buffers)
            try:
                return self._network.predict(inputs)
            finally:
                self._network.bind(self.rows["flat"], self._gradients, self._buffers)

    def sample(self, inputs: Tree, number: int) -> Tree:
        """Return the outputs (K, B, ...) of one stochastic pass.

        Dropout acts as in training, everything else as in evaluation.

        Args:
            inputs: (B, ...), at most as many as in a training batch.
            number: of the pass; it seeds the noise. The noise differs from that of all training
                steps.
        """
        device, n = self.rows["flat"].device, trees.count_rows(inputs)
        steps = torch.full((1, self.width), -1 - number, device=device)
        keys = noise_keys(self.rows["seed"], steps, len(self._shapes) + OTHER_KEYS)[0]
        if isinstance(self._network, LoneNetwork):
            self._seed(int(keys[0, len(self._shapes), 1]))
        with torch.no_grad():
            masks = self._masks.fill(keys, self.rows["threshold"], self.rows["scale"])
            return self._network.sample(inputs, [mask[:, :n] for mask in masks])

    def rehearse(self, inputs: Tree) -> Tree:
        """Return the outputs (K, B, ...) in training mode with the noise of step 0.

        Nothing is moved.
        """
        plan = self.plan(torch.zeros(1, 1, dtype=torch.int64), True, Pace.start(self.width))
        masks = self._masks.fill(plan.keys[0], self.rows["threshold"], self.rows["scale"])
        kept = {name: tensor.clone() for name, tensor in self._buffers.items()}
        try:
            with torch.no_grad():
                outputs = self._network.forward(inputs, True, masks)
            return trees.map_leaves(torch.clone, outputs)
        finally:
            for name, tensor in kept.items():
                self._buffers[name].copy_(tensor)

    def masks_of(self, slot: int) -> list[Tensor]:
        """Return the masks (1, B, ...) of one slot in the last step or rehearsal."""
        return [mask[slot : slot + 1] for mask in self._masks.masks]

    @property
    def objective_values(self) -> Columns:
        """The hyperparameters that the objective reads, as columns (K, 1)."""
        return self._objective_values

    @property
    def limits(self) -> Columns:
        """The limits on gradients and weights that some slot uses, as columns (K, 1)."""
        return {name: self._fixed[name] for name in LIMITS if name in self._active}

    @property
    def tensors(self) -> Tensors:
        """All tensors that a step works on besides its batch and its columns."""
        views, rule = self.model.layout.views, self.model.recipe.rule
        states = {name: views(self.rows[f"state.{name}"]) for name in rule.states}
        averages_ = views(self.rows["ema"]) if self.model.recipe.averaged else {}
        return Tensors(
            self._views,
            states,
            averages_,
            self._buffers,
            self._masks.masks,
            self.limits,
            self._objective_values,
            self._masks.tables,
        )

    def _at_once(
        self, whole: Whole, batch: Batch, plan: Plan, number: int, look: bool
    ) -> StepResult:
        before = self.rows["flat"].clone() if look else None
        if self._static is None:
            self._static = self.tensors.list_tensors()
        following = min(number + 1, len(plan.keys) - 1)
        mean, correct, penalty, *more = whole(self._static, *batch, plan.keys[following])
        parts = dict(zip(whole.parts, more, strict=False))
        n, more = len(self._views), more[len(parts) :]
        if whole.compiled:
            self._ahead = (plan, following, more[n:])
        looked = Looked(before, norms(more[:n])) if before is not None else None
        return StepResult(mean, correct, penalty, looked, parts)

    @property
    def noise(self) -> DropoutMasks:
        """The dropout masks."""
        return self._masks

    def _of_group(self, values: Columns, group: int) -> Columns:
        """Return the hyperparameters (K,) of a parameter group."""
        if not group:
            return dict(values)
        own = self.rows["groups"][:, group - 1].unbind(-1)
        return values | {
            name: torch.where(one.isnan(), values[name], one)
            for name, one in zip(("learning_rate", "weight_decay"), own, strict=True)
        }

    def _decay_columns(self, values: Columns, steps: Tensor, group: int) -> Columns:
        """Return the columns of the regularisation that some slot uses.

        ``l2`` and ``l1`` are added to the gradient. If decay is decoupled, ``shrink`` multiplies
        the weights instead of ``l2``.
        """
        columns = {"l1": values["l1"].expand_as(steps)} if "l1" in self._active else {}
        if group in self._decaying:
            decay = values["weight_decay"].expand_as(steps)
            decoupled = self.model.recipe.rule.decoupled
            columns |= (
                {"shrink": 1 - values["learning_rate"] * decay} if decoupled else {"l2": decay}
            )
        return {name: column.unsqueeze(-1) for name, column in columns.items()}

    def _allocate(self, capacity: int) -> None:
        """Make room for so many slots, at least those that are there, and for what steps need."""
        storage = self._storage
        if capacity > self.width:
            storage = {
                name: tensor.new_empty(capacity, *tensor.shape[1:])
                for name, tensor in self.rows.items()
            }
            for name, tensor in self.rows.items():
                storage[name][: self.width].copy_(tensor)
        flat, uses_scratch = storage["flat"], self.model.recipe.rule.uses_scratch
        gradients = torch.zeros_like(flat)
        scratch = torch.empty_like(flat) if uses_scratch else flat.new_empty(0)
        # Memory may have run out before, and then nothing has changed.
        self._storage, self._all_gradients, self._all_scratch = storage, gradients, scratch
        self._all_masks: DropoutMasks | None = None

    def _bind(self, width: int) -> None:
        """Work on the first slots of the storage."""
        self.rows = {name: tensor[:width] for name, tensor in self._storage.items()}
        flat, rule = self.rows["flat"], self.model.recipe.rule
        self._gradients = self._all_gradients[:width]
        states = [self.rows[f"state.{name}"] for name in rule.states]
        whole = Piece(
            flat, self._gradients, states, self.rows.get("ema"), self._all_scratch[:width], 0
        )
        self._pieces = [
            piece
            for span in self._spans
            for piece in cut(
                rule, take_span(whole, span.start, span.end, span.n_decayed, span.group)
            )
        ]
        self._whole, self._static, self._ahead = None, None, (None, 0, ())
        self._buffers = {
            name.removeprefix("buffer."): tensor
            for name, tensor in self.rows.items()
            if name.startswith(("buffer.", LIFTED))
        }
        self._masks = self._find_masks(width)
        self._views = self.model.layout.views(flat)
        self._bind_numbers()
        self._network.bind(flat, self._gradients, self._buffers)

    def _find_masks(self, width: int) -> DropoutMasks:
        active = active_layers(self.rows["scale"], self.model.noises)
        if self._all_masks is None or self._all_masks.active != active:
            flat = self._storage["flat"]
            self._all_masks = DropoutMasks(
                len(flat), self._shapes, flat.device, flat.dtype, self.model.noises, active
            )
        return self._all_masks.narrow(width)

    def _bind_numbers(self) -> None:
        """Determine which features some slot uses, so that the others cost nothing."""
        hp, dtype = self.rows["hp"], self.rows["flat"].dtype
        neutral = torch.tensor(
            [NEUTRAL.get(name, 0.0) for name in NUMBERS], device=hp.device, dtype=hp.dtype
        )
        used = (hp != neutral).any(0).tolist()
        self._active = {name for name, one in zip(NUMBERS, used, strict=True) if one}
        values = dict(zip(NUMBERS, hp.unbind(1), strict=True))
        self._decaying = {
            group
            for group in {0, *(span.group for span in self._spans)}
            if bool((self._of_group(values, group)["weight_decay"] != 0).any())
        }
        augmented = self._active & set(STRENGTHS)
        self._augmentation = (
            Augmentation(self._frame.batch_shape, self._frame.image_shape, augmented, hp.device)
            if augmented
            else None
        )
        numbers = {name: hp[:, place : place + 1].to(dtype) for name, place in COLUMN.items()}
        own = {
            name: self.rows["own"][:, place : place + 1].to(dtype)
            for place, name in enumerate(sorted(self.model.recipe.own))
        }
        self._fixed = {name: numbers[name] for name in FIXED}
        # A task's own loss gets its hyperparameters even if they are zero.
        read = {
            *self.model.recipe.reads,
            *(self._active & set(self.objective.reads)),
        }
        self._objective_values = {
            name: column for name, column in (numbers | own).items() if name in read
        }
