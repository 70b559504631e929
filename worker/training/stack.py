"""The tensors of an array, a row a slot, and one step of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worker.training.losses import cross_entropy
from worker.training.networks import LoneNetwork, Network
from worker.training.noise import DropoutMasks, noise_keys, seed_generators
from worker.training.optimizers import Columns
from worker.training.rows import BEST, Row
from worker.training.structure import Model


class Plan(NamedTuple):
    """What the steps of a segment need, made beforehand; index 0 is the step."""

    batches: Tensor  # (n, B) row numbers where all slots share them, else (n, K, B)
    shared: bool
    keys: Tensor  # (n, K, L + 1, 2) of the dropout noise; the last seeds a module's own
    columns: Columns  # (n, K, 1) each
    seeds: list[int]  # (n) for a module that draws its own noise, where it is alone


class StepResult(NamedTuple):
    """What a step leaves of each slot, on the device."""

    loss: Tensor  # (K,) data loss before the update, nats
    correct: Tensor  # (K,) examples of the batch
    squares: Tensor  # (K,) sum of the squares of the weights that decay, before the update


class Stack:
    """K rows of one structure."""

    def __init__(self, model: Model, network: Network, rows: Sequence[Row], shapes: Sequence[tuple[int, ...]]) -> None:
        """``model`` stands for all; ``shapes`` are those of the dropout layers' inputs for one slot."""
        self.model = model
        self._network = network
        self._shapes = shapes
        self.rows = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        self._bind()

    @property
    def width(self) -> int:
        """How many slots."""
        return len(self.rows["flat"])

    def row(self, slot: int) -> Row:
        """A copy of one slot's tensors."""
        return {name: tensor[slot].clone() for name, tensor in self.rows.items()}

    def keep(self, slots: Sequence[int]) -> None:
        """Drops all others."""
        index = torch.tensor(slots, device=self.rows["flat"].device)
        self.rows = {name: tensor.index_select(0, index) for name, tensor in self.rows.items()}
        self._bind()

    def put(self, slot: int, row: Row) -> None:
        """Replaces a slot; the others keep their memory."""
        for name, tensor in self.rows.items():
            tensor[slot].copy_(row[name])

    def append(self, rows: Sequence[Row]) -> None:
        """Adds slots at the end."""
        self.rows = {name: torch.cat([tensor, torch.stack([row[name] for row in rows])]) for name, tensor in self.rows.items()}
        self._bind()

    def keep_best(self, slots: Sequence[int]) -> None:
        """Notes the present weights of these slots as their best."""
        index = torch.tensor(slots, device=self.rows["flat"].device)
        for name in [n for n in self.rows if n.startswith(BEST)]:
            self.rows[name].index_copy_(0, index, self.rows[name.removeprefix(BEST)].index_select(0, index))

    def plan(self, batches: Tensor, shared: bool, first_steps: Sequence[int]) -> Plan:
        """Prepares ``len(batches)`` steps for slots that stand at ``first_steps``."""
        flat = self.rows["flat"]
        steps = torch.tensor(first_steps, device=flat.device) + torch.arange(len(batches), device=flat.device).unsqueeze(-1)
        values = {name.removeprefix("hp."): tensor for name, tensor in self.rows.items() if name.startswith("hp.")}
        columns = self.model.recipe.rule.columns(values, steps.double())
        columns["weight_decay"] = values["weight_decay"].expand_as(steps).unsqueeze(-1)
        keys = noise_keys(self.rows["seed"], steps, len(self._shapes) + 1)
        seeds = keys[:, 0, -1, 1].tolist() if isinstance(self._network, LoneNetwork) else []
        return Plan(batches, shared, keys, {name: column.to(flat.dtype) for name, column in columns.items()}, seeds)

    @torch.no_grad()
    def step(self, inputs: Tensor, targets: Tensor, plan: Plan, number: int) -> StepResult:
        """One update of every slot. All that may raise or run out of memory comes before the first change of a weight."""
        masks = self._masks.fill(plan.keys[number], self.rows["threshold"], self.rows["scale"])
        if plan.seeds:
            seed_generators(plan.seeds[number], inputs.device)
        moved = {name: tensor.clone() for name, tensor in self._buffers.items()} if self._buffers else {}
        try:
            losses = cross_entropy(self._network.forward(inputs, plan.shared, masks), targets)
            self._network.backward(losses.gradient)
        except Exception:
            for name, tensor in moved.items():
                self._buffers[name].copy_(tensor)
            raise
        columns = {name: column[number] for name, column in plan.columns.items()}
        return StepResult(losses.mean, losses.correct, self._update(columns))

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits (K, B, C) in evaluation mode."""
        with torch.no_grad():
            return self._network.predict(inputs)

    def rehearse(self, inputs: Tensor) -> Tensor:
        """Logits (K, B, C) in training mode, with the noise of step 0; nothing is moved."""
        plan = self.plan(torch.zeros(1, 1, dtype=torch.int64), True, [0] * self.width)
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

    def _update(self, columns: Columns) -> Tensor:
        n, flat, gradients = self.model.layout.n_decayed, self.rows["flat"], self._gradients
        decay = columns.pop("weight_decay")
        norms: Tensor = torch.linalg.vector_norm(flat[:, :n], dim=1)  # (K,)
        gradients[:, :n].addcmul_(flat[:, :n], decay)
        states = [self.rows[f"state.{name}"] for name in self.model.recipe.rule.states]
        self.model.recipe.rule.apply(flat, gradients, states, columns, self._scratch)
        return norms.square_()

    def _bind(self) -> None:
        flat = self.rows["flat"]
        self._gradients = torch.zeros_like(flat)
        self._scratch = torch.empty_like(flat) if len(self.model.recipe.rule.states) > 1 else flat.new_empty(0)
        self._buffers = {name.removeprefix("buffer."): tensor for name, tensor in self.rows.items() if name.startswith("buffer.")}
        self._masks = DropoutMasks(self.width, self._shapes, flat.device, flat.dtype)
        self._network.bind(flat, self._gradients, self._buffers)
