"""The tensors of an array, a row a slot, and one step of all of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from worker.training import averages
from worker.training.augment import STRENGTHS, Augmentation
from worker.training.called import LoneNetwork
from worker.training.losses import Objective
from worker.training.monitor import norms
from worker.training.network import Network, Note
from worker.training.networks import ChainNetwork
from worker.training.noise import DropoutMasks, active_layers, noise_keys, seed_generators
from worker.training.optimizers import Columns
from worker.training.recipe import COLUMN, NUMBERS
from worker.training.rows import BEST, Row
from worker.training.schedules import fade_factors, momentum_values, rate_factors
from worker.training.step import Batch, Frame, Looked, Pace, Plan, StepResult, Tensors, Whole
from worker.training.structure import Model
from worker.training.update import Piece, update

OTHER_KEYS = 2  # of each step, after those of the dropout layers: a module's own generator, augmentation
NEUTRAL = {"momentum_start": -1.0}  # numbers that do nothing at another value than 0
LIMITS = ("clip_norm", "clip_value", "max_norm")
FIXED = (*LIMITS, *STRENGTHS)  # columns that no schedule moves


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
        self._whole: Whole | None = None
        self._static: list[Tensor] | None = None
        self._ahead: tuple[Plan | None, int, Sequence[Tensor]] = (None, 0, ())
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
        if plan.seeds:
            seed_generators(plan.seeds[number], inputs.device)
        inputs, columns = self.ready(inputs, plan, number)
        if self._whole is not None and (self._whole.compiled or not look):
            return self._at_once(self._whole, Batch(inputs, targets, columns), plan, number, look)
        moved = {name: tensor.clone() for name, tensor in self._buffers.items()} if self._buffers else {}
        try:
            losses = self.objective(
                self._network.forward(inputs, self.shared(plan.shared), self._masks.masks), targets, self._objective_values
            )
            self._network.backward(losses.gradient)
            looked = Looked(self.rows["flat"].clone(), norms([self._gradients])) if look else None
        except Exception:
            for name, tensor in moved.items():
                self._buffers[name].copy_(tensor)
            raise
        return StepResult(losses.mean, losses.correct, self.move(columns, self.limits), looked)

    def move(self, columns: Columns, limits: Columns) -> Tensor:
        """Updates all slots by the gradients that are there; returns the penalties before that, (K,)."""
        return update(self.model.recipe.rule, [self._piece], self._views, columns, limits)

    def use(self, whole: Whole | None) -> None:
        """Takes another way to compute steps from now on, until slots come or go; None for the eager one."""
        self._whole = whole

    def ready(self, inputs: Tensor, plan: Plan, number: int) -> tuple[Tensor, Columns]:
        """Augments the inputs and makes the noise of a step; returns what ``Whole`` takes besides the targets."""
        keys = plan.keys[number]
        if self._augmentation is not None:
            inputs = self._augmentation(inputs, self._fixed, keys[:, len(self._shapes) + 1])
        plan_ahead, number_ahead, hashes = self._ahead
        known = hashes if plan_ahead is plan and number_ahead == number else None
        self._masks.fill(keys, self.rows["threshold"], self.rows["scale"], known)
        return inputs, {name: column[number] for name, column in plan.columns.items()}

    def shared(self, batches: bool) -> bool:
        """Whether all slots see the same inputs, where they do or do not share their batches: augmentation gives each its own."""
        return batches and self._augmentation is None

    @property
    def form(self) -> Hashable:
        """All that makes one step compute something else than another of the same structure, but for numbers."""
        shapes = [tuple(mask.shape) for mask in self._masks.masks]
        return self.width, str(self.rows["flat"].dtype), tuple(sorted(self._active)), tuple(shapes), tuple(self._objective_values)

    def predict(self, inputs: Tensor, averaged: bool = False, note: Note | None = None) -> Tensor:
        """Outputs (K, B, ...) in evaluation mode; ``averaged`` with the running average of the parameters.

        ``note`` hears of each activation layer in passing, of networks by hand alone.
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

    def sample(self, inputs: Tensor, number: int) -> Tensor:
        """Outputs (K, B, ...) of one stochastic pass: dropout as in training, all else as in evaluation. ``number`` seeds its noise.

        Args:
            inputs: (B, ...), at most as many as in a training batch.
            number: of the pass; negative ones are never a training step's.
        """
        steps = torch.full((1, self.width), -1 - number, device=inputs.device)
        keys = noise_keys(self.rows["seed"], steps, len(self._shapes) + OTHER_KEYS)[0]
        if isinstance(self._network, LoneNetwork):
            seed_generators(int(keys[0, len(self._shapes), 1]), inputs.device)  # a module that draws its own noise
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

    @property
    def limits(self) -> Columns:
        """(K, 1) columns of the limits on gradients and weights that some slot uses."""
        return {name: self._fixed[name] for name in LIMITS if name in self._active}

    @property
    def tensors(self) -> Tensors:
        """All that a step works on besides its batch and its columns."""
        views, rule = self.model.layout.views, self.model.recipe.rule
        states = {name: views(self.rows[f"state.{name}"]) for name in rule.states}
        averages_ = views(self.rows["ema"]) if self.model.recipe.averaged else {}
        return Tensors(
            self._views, states, averages_, self._buffers, self._masks.masks, self.limits, self._objective_values, self._masks.tables
        )

    @property
    def n_decayed(self) -> int:
        """How many columns of the parameters weight decay acts on; they come first."""
        return self._n_decayed

    def _at_once(self, whole: Whole, batch: Batch, plan: Plan, number: int, look: bool) -> StepResult:
        before = self.rows["flat"].clone() if look else None
        if self._static is None:
            self._static = self.tensors.listed()
        following = min(number + 1, len(plan.keys) - 1)
        mean, correct, penalty, *more = whole(self._static, *batch, plan.keys[following])
        n = len(self._views)
        if whole.compiled:
            self._ahead = (plan, following, more[n:])
        looked = Looked(before, norms(more[:n])) if before is not None else None
        return StepResult(mean, correct, penalty, looked)

    @property
    def noise(self) -> DropoutMasks:
        """What makes the masks."""
        return self._masks

    def _decay_columns(self, values: Columns, steps: Tensor) -> Columns:
        """``l2`` and ``l1`` are added to the gradient, ``shrink`` multiplies the weights where decay is decoupled; those that are used."""
        columns = {"l1": values["l1"].expand_as(steps)} if "l1" in self._active else {}
        if "weight_decay" in self._active:
            decay = values["weight_decay"].expand_as(steps)
            decoupled = self.model.recipe.rule.decoupled
            columns |= {"shrink": 1 - values["learning_rate"] * decay} if decoupled else {"l2": decay}
        return {name: column.unsqueeze(-1) for name, column in columns.items()}

    def _bind(self) -> None:
        flat, rule = self.rows["flat"], self.model.recipe.rule
        self._gradients = torch.zeros_like(flat)
        scratch = torch.empty_like(flat) if rule.uses_scratch else flat.new_empty(0)
        states = [self.rows[f"state.{name}"] for name in rule.states]
        self._piece = Piece(flat, self._gradients, states, self.rows.get("ema"), scratch, self._n_decayed)
        self._whole, self._static, self._ahead = None, None, (None, 0, ())
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
