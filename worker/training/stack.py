"""The tensors of an array, a row a slot, and one step of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worker.training import averages, regularization
from worker.training.augment import STRENGTHS, Augmentation
from worker.training.losses import Losses, Objective
from worker.training.networks import LoneNetwork, Network
from worker.training.noise import DropoutMasks, active_layers, noise_keys, seed_generators
from worker.training.optimizers import Columns
from worker.training.recipe import COLUMN, NUMBERS
from worker.training.rows import BEST, Row
from worker.training.schedules import fade_factors, momentum_values, rate_factors
from worker.training.structure import Model

OTHER_KEYS = 2  # of each step, after those of the dropout layers: a module's own generator, augmentation
NEUTRAL = {"momentum_start": -1.0}  # numbers that do nothing at another value than 0
FIXED = ("clip_norm", "clip_value", "max_norm", *STRENGTHS)  # columns that no schedule moves


class Frame(NamedTuple):
    """What of the data a step has to know."""

    per_epoch: int  # steps
    batch_shape: tuple[int, ...]  # (B, ...) of one slot's inputs
    image_shape: tuple[int, ...] | None  # (H, W) or (C, H, W) of an input that is an image


class Pace(NamedTuple):
    """Where each slot stands, for schedules; lists of K."""

    steps: Sequence[int]  # done
    totals: Sequence[int]  # the budgets, in steps
    drops: Sequence[int]  # by plateaus so far
    momentum_off: Sequence[bool]  # by a plateau

    @classmethod
    def start(cls, width: int) -> Pace:
        """Slots at their first step."""
        return cls([0] * width, [1] * width, [0] * width, [False] * width)


class Plan(NamedTuple):
    """What the steps of a segment need, made beforehand; index 0 is the step."""

    batches: Tensor  # (n, B) row numbers where all slots share them, else (n, K, B)
    shared: bool
    keys: Tensor  # (n, K, L + 2, 2) of the dropout noise, then those of OTHER_KEYS
    columns: Columns  # (n, K, 1) each
    rates: Tensor  # (n, K) learning rates
    seeds: list[int]  # (n) for a module that draws its own noise, where it is alone


class Looked(NamedTuple):
    """What a step that is looked at leaves besides, each (K, P)."""

    before: Tensor  # the parameters before the update
    gradients: Tensor  # of the loss on the batch, before clipping and regularisation


class StepResult(NamedTuple):
    """What a step leaves of each slot, on the device."""

    loss: Tensor  # (K,) data loss before the update
    correct: Tensor  # (K,) examples of the batch
    penalty: Tensor  # (K,) the regularisation term that belongs to the loss, before the update
    looked: Looked | None = None


class Stack:
    """K rows of one structure."""

    def __init__(
        self,
        model: Model,
        network: Network,
        objective: Objective,
        rows: Sequence[Row],
        shapes: Sequence[tuple[int, ...]],
        frame: Frame,
    ) -> None:
        """``model`` stands for all; ``shapes`` are those of the dropout layers' inputs for one slot."""
        self.model = model
        self.objective = objective
        self._network = network
        self._shapes = shapes
        self._frame = frame
        self._n_decayed = model.layout.size if model.recipe.kinds["decay_biases"] else model.layout.n_decayed
        self.rows = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        self._bind()

    @property
    def width(self) -> int:
        """How many slots."""
        return len(self.rows["flat"])

    @property
    def network(self) -> Network:
        """What computes forward and backward."""
        return self._network

    def row(self, slot: int) -> Row:
        """A copy of one slot's tensors."""
        return {name: tensor[slot].clone() for name, tensor in self.rows.items()}

    def keep(self, slots: Sequence[int]) -> None:
        """Drops all others."""
        index = torch.tensor(slots, device=self.rows["flat"].device)
        self.rows = {name: tensor.index_select(0, index) for name, tensor in self.rows.items()}
        self._bind()

    def append(self, rows: Sequence[Row]) -> None:
        """Adds slots at the end."""
        self.rows = {name: torch.cat([tensor, torch.stack([row[name] for row in rows])]) for name, tensor in self.rows.items()}
        self._bind()

    def keep_best(self, slots: Sequence[int]) -> None:
        """Notes the present weights of these slots as their best."""
        index = torch.tensor(slots, device=self.rows["flat"].device)
        for name in [n for n in self.rows if n.startswith(BEST)]:
            self.rows[name].index_copy_(0, index, self.rows[name.removeprefix(BEST)].index_select(0, index))

    def plan(self, batches: Tensor, shared: bool, pace: Pace) -> Plan:
        """Prepares ``len(batches)`` steps for slots that stand at ``pace``."""
        flat, recipe = self.rows["flat"], self.model.recipe
        steps = torch.tensor(pace.steps, device=flat.device) + torch.arange(len(batches), device=flat.device).unsqueeze(-1)  # (n, K)
        values = dict(zip(NUMBERS, self.rows["hp"].unbind(1), strict=True))  # (K,) each
        totals = torch.tensor(pace.totals, device=flat.device)
        if recipe.kinds["schedule"] != "constant" or "warmup_epochs" in self._active:
            drops = torch.tensor(pace.drops, device=flat.device)
            factors = rate_factors(recipe.kind("schedule"), values, steps, self._frame.per_epoch, totals, drops)
            values["learning_rate"] = values["learning_rate"] * factors
        if "momentum_start" in self._active or any(pace.momentum_off):
            values["momentum"] = momentum_values(values, steps, self._frame.per_epoch, torch.tensor(pace.momentum_off, device=flat.device))
        if "fade" in self._active:
            left = fade_factors(values, steps, totals)
            values |= {name: values[name] * left for name in ("weight_decay", "l1")}
        columns = recipe.rule.columns(values, steps.double()) | self._decay_columns(values, steps)
        columns |= {"ema": averages.decays(values["ema"], steps).unsqueeze(-1)} if recipe.averaged else {}
        keys = noise_keys(self.rows["seed"], steps, len(self._shapes) + OTHER_KEYS)
        seeds = keys[:, 0, len(self._shapes), 1].tolist() if isinstance(self._network, LoneNetwork) else []
        rates = values["learning_rate"].expand_as(steps)
        return Plan(batches, shared, keys, {name: column.to(flat.dtype) for name, column in columns.items()}, rates, seeds)

    @torch.no_grad()
    def step(self, inputs: Tensor, targets: Tensor, plan: Plan, number: int, look: bool = False) -> StepResult:
        """One update of every slot. All that may raise or run out of memory comes before the first change of a weight.

        Args:
            inputs: (B, ...) where the plan says that all slots share them, else (K, B, ...).
            targets: (B, ...) or (K, B, ...).
            plan: of ``plan``.
            number: of the step in it.
            look: whether to keep what ``Looked`` holds.
        """
        keys = plan.keys[number]
        if plan.seeds:
            seed_generators(plan.seeds[number], inputs.device)
        moved = {name: tensor.clone() for name, tensor in self._buffers.items()} if self._buffers else {}
        try:
            losses = self._forward_backward(inputs, targets, plan.shared, keys)
            looked = Looked(self.rows["flat"].clone(), self._gradients.clone()) if look else None
        except Exception:
            for name, tensor in moved.items():
                self._buffers[name].copy_(tensor)
            raise
        penalty = self._update({name: column[number] for name, column in plan.columns.items()})
        return StepResult(losses.mean, losses.correct, penalty, looked)

    def predict(self, inputs: Tensor, averaged: bool = False) -> Tensor:
        """Outputs (K, B, ...) in evaluation mode; ``averaged`` with the running average of the parameters."""
        with torch.no_grad():
            if not averaged:
                return self._network.predict(inputs)
            self._network.bind(self.rows["ema"], self._gradients, self._buffers)
            try:
                return self._network.predict(inputs)
            finally:
                self._network.bind(self.rows["flat"], self._gradients, self._buffers)

    def sample(self, inputs: Tensor, number: int) -> Tensor:
        """Outputs (K, B, ...) of one stochastic pass: dropout as in training, all else as in evaluation. ``number`` seeds its noise.

        Args:
            inputs: (B, ...), at most as many as in a training batch.
            number: of the pass; negative ones are never a training step's.
        """
        steps = torch.full((1, self.width), -1 - number, device=inputs.device)
        keys = noise_keys(self.rows["seed"], steps, len(self._shapes) + OTHER_KEYS)[0]
        with torch.no_grad():
            masks = self._masks.fill(keys, self.rows["threshold"], self.rows["scale"])
            return self._network.sample(inputs, [mask[:, : len(inputs)] for mask in masks])

    def rehearse(self, inputs: Tensor) -> Tensor:
        """Outputs (K, B, ...) in training mode, with the noise of step 0; nothing is moved."""
        plan = self.plan(torch.zeros(1, 1, dtype=torch.int64), True, Pace.start(self.width))
        masks = self._masks.fill(plan.keys[0], self.rows["threshold"], self.rows["scale"])
        kept = {name: tensor.clone() for name, tensor in self._buffers.items()}
        try:
            with torch.no_grad():
                return self._network.forward(inputs, True, masks).clone()
        finally:
            for name, tensor in kept.items():
                self._buffers[name].copy_(tensor)

    def masks_of(self, slot: int) -> list[Tensor]:
        """The masks (1, B, ...) that the last step or rehearsal used for one slot."""
        return [mask[slot : slot + 1] for mask in self._masks.masks]

    @property
    def objective_values(self) -> Columns:
        """(K, 1) columns of what the objective reads."""
        return self._objective_values

    def _forward_backward(self, inputs: Tensor, targets: Tensor, shared: bool, keys: Tensor) -> Losses:
        if self._augmentation is not None:
            inputs, shared = self._augmentation(inputs, self._fixed, keys[:, len(self._shapes) + 1]), False
        masks = self._masks.fill(keys, self.rows["threshold"], self.rows["scale"])
        losses = self.objective(self._network.forward(inputs, shared, masks), targets, self._objective_values)
        self._network.backward(losses.gradient)
        return losses

    def _decay_columns(self, values: Columns, steps: Tensor) -> Columns:
        """``l2`` and ``l1`` are added to the gradient, ``shrink`` multiplies the weights where decay is decoupled; those that are used."""
        columns = {"l1": values["l1"].expand_as(steps)} if "l1" in self._active else {}
        if "weight_decay" in self._active:
            decay = values["weight_decay"].expand_as(steps)
            decoupled = self.model.recipe.rule.decoupled
            columns |= {"shrink": 1 - values["learning_rate"] * decay} if decoupled else {"l2": decay}
        return {name: column.unsqueeze(-1) for name, column in columns.items()}

    def _update(self, columns: Columns) -> Tensor:
        """Clips, regularises and moves; returns the penalty before the move, (K,)."""
        flat, gradients, rule = self.rows["flat"], self._gradients, self.model.recipe.rule
        weights = flat[:, : self._n_decayed]
        if "clip_value" in self._active:
            regularization.clip_value(gradients, self._fixed["clip_value"])
        if "clip_norm" in self._active:
            regularization.clip_norm(gradients, self._fixed["clip_norm"])
        l2, l1, shrink, decay = (columns.pop(name, None) for name in ("l2", "l1", "shrink", "ema"))
        penalty = regularization.penalties(weights, l2, l1)
        regularization.add_gradients(gradients[:, : self._n_decayed], weights, l2, l1)
        if shrink is not None:
            weights.mul_(shrink)
        rule.apply(flat, gradients, [self.rows[f"state.{name}"] for name in rule.states], columns, self._scratch)
        if "max_norm" in self._active:
            regularization.max_norm(self._views, self._fixed["max_norm"])
        if decay is not None:
            averages.update(self.rows["ema"], flat, decay)
        return penalty

    def _bind(self) -> None:
        flat, recipe = self.rows["flat"], self.model.recipe
        self._gradients = torch.zeros_like(flat)
        self._scratch = torch.empty_like(flat) if recipe.rule.uses_scratch else flat.new_empty(0)
        self._buffers = {name.removeprefix("buffer."): tensor for name, tensor in self.rows.items() if name.startswith("buffer.")}
        active = active_layers(self.rows["scale"], self.model.noises)
        self._masks = DropoutMasks(self.width, self._shapes, flat.device, flat.dtype, self.model.noises, active)
        self._views = self.model.layout.views(flat)
        self._bind_numbers()
        self._network.bind(flat, self._gradients, self._buffers)

    def _bind_numbers(self) -> None:
        """Notes which features some slot uses: the others cost nothing."""
        hp, dtype = self.rows["hp"], self.rows["flat"].dtype
        neutral = torch.tensor([NEUTRAL.get(name, 0.0) for name in NUMBERS], device=hp.device, dtype=hp.dtype)
        used = (hp != neutral).any(0).tolist()
        self._active = {name for name, one in zip(NUMBERS, used, strict=True) if one}
        augmented = self._active & set(STRENGTHS)
        self._augmentation = Augmentation(self._frame.batch_shape, self._frame.image_shape, augmented, hp.device) if augmented else None
        numbers = {name: hp[:, place : place + 1].to(dtype) for name, place in COLUMN.items()}
        own = {name: self.rows["own"][:, place : place + 1].to(dtype) for place, name in enumerate(sorted(self.model.recipe.own))}
        self._fixed = {name: numbers[name] for name in FIXED}
        read = {*self.model.recipe.reads, *(self._active & set(self.objective.reads))}  # a task's own loss reads zeros as well
        self._objective_values = {name: column for name, column in (numbers | own).items() if name in read}
