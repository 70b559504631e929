"""One configuration's model as the engine trains it, on a small batch in double precision, and the same by plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from common.space import Hyperparameters, Scalar
from worker.checks.training import job_of
from worker.tasks.base import Part, own_loss
from worker.training.called import LoneNetwork
from worker.training.engine import Engine
from worker.training.layout import constants
from worker.training.network import Network
from worker.training.networks import network_for
from worker.training.noise import seed_generators
from worker.training.recipe import COLUMN
from worker.training.rows import Row, fresh_row
from worker.training.stack import Stack
from worker.training.step import Pace, Plan, StepResult
from worker.training.structure import Model

MOVED = 2e-3  # of the weights' size, a step: twenty steps are clearly off the start, and far from a gradient that has vanished
TINY = 1e-12  # a gradient below is none
PLAIN: dict[str, Scalar] = {"optimizer": "sgd", "momentum": 0.0, "nesterov": False, "learning_rate": 1.0}


class Subject:
    """A model that is looked at; its weights move with ``train`` alone."""

    def __init__(self, engine: Engine, values: Hyperparameters, seed: int) -> None:
        """Builds it as the engine does.

        Args:
            engine: that knows task and data.
            values: of the configuration; its update rule gives way to plain gradient descent.
            seed: of its initial weights.

        Raises:
            Exception: whatever the task's model raises, or TaskError for what the engine refuses.
        """
        self._setting, self.values = engine.setting(), {**values, **PLAIN}
        job = job_of(self.values, seed=seed)
        self.model: Model = engine.entry(job).model
        self._shapes = engine.shapes(self.model) or []
        self.objective = self._setting.objective(self.model.recipe)
        self._row = fresh_row(self.model, job.claim.trial.seed, engine.device, engine.options.dtype)
        self._noise_seed: int | None = None  # of a module that draws its own
        self.stack = self._stack(self.model.structure.alone, [self._row])

    @property
    def stacked(self) -> bool:
        """Whether it trains in arrays."""
        return not isinstance(self.stack.network, LoneNetwork)

    def train(self, batch: Part, n_steps: int) -> None:
        """So many updates by the engine, each of ``MOVED`` times the size of the weights at the start, whatever the scale of the loss."""
        gradient = torch.cat([one.flatten() for one in self.gradients(batch)[1].values()])
        weights = self.stack.rows["flat"][0]
        rate = MOVED * float(weights.norm()) / max(float(gradient.norm()), TINY)
        for _ in range(n_steps):
            self._step(batch, rate)

    def _step(self, batch: Part, rate: float) -> StepResult:
        """One update by plain gradient descent. What cannot be stacked goes on alone, as in a training."""
        self.stack.rows["hp"][:, COLUMN["learning_rate"]] = rate
        plan = _plan(self.stack, batch)
        try:
            result = self.stack.step(batch.inputs, batch.targets, plan, 0)
        except Exception:
            if not self.stacked:
                raise
            self.stack = self._stack(True, [self._row])
            return self._step(batch, rate)
        self._noise_seed = plan.seeds[0] if plan.seeds else None
        return result

    def gradients(self, batch: Part) -> tuple[float, dict[str, Tensor]]:
        """The engine's loss and gradient by parameter; nothing is moved.

        The gradient is how far one update of plain gradient descent at a rate of 1 moves the weights: all of the engine's step is in it.

        Raises:
            Exception: whatever the model raises.
        """
        with self._unchanged() as before:
            result = self._step(batch, 1.0)
            moved = before["flat"] - self.stack.rows["flat"]  # (1, P)
        return float(result.loss[0]), {name: view[0] for name, view in self.model.layout.views(moved).items()}

    @contextmanager
    def _unchanged(self) -> Iterator[Row]:
        """Puts weights, states and buffers back where they were; gives them as they were."""
        kept = {name: tensor.clone() for name, tensor in self.stack.rows.items()}
        try:
            yield kept
        finally:
            for name, tensor in self.stack.rows.items():  # the stack's own memory, that its network works on
                tensor.copy_(kept[name])

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Views of the present weights: writing into them moves the model."""
        return {name: view[0] for name, view in self.model.layout.views(self.stack.rows["flat"]).items()}

    def plain_loss(self, batch: Part) -> float:
        """The loss of the present weights by the model's own module and plain PyTorch, without a hand-written line of the engine's."""
        if self._noise_seed is not None:
            seed_generators(self._noise_seed, batch.inputs.device)
        carried = {name: tensor.clone() for name, tensor in constants(self.model.module).items()}  # batch norm moves its statistics
        self.model.module.train()
        with torch.no_grad():
            outputs = functional_call(self.model.module, {**carried, **self.parameters}, (batch.inputs,))
            return float(self._loss(outputs, batch.targets))

    def penalties(self, batch: Part, changes: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
        """(loss, regularisation term) by the engine of the same initial weights under other numbers, in one array where it can be.

        Raises:
            Exception: whatever the model raises.
        """
        rows = []
        for numbers in changes:
            hp = self._row["hp"].clone()
            for name, value in numbers.items():
                hp[COLUMN[name]] = value
            rows.append({**self._row, "hp": hp})
        groups = [rows] if self.stacked else [[row] for row in rows]
        found: list[tuple[float, float]] = []
        for group in groups:
            stack = self._stack(not self.stacked, group)
            result = stack.step(batch.inputs, batch.targets, _plan(stack, batch), 0)
            found += zip(result.loss.tolist(), result.penalty.tolist(), strict=True)
        return found

    def decayed(self) -> Tensor:
        """(n,) the initial weights that regularisation acts on, flat."""
        everything = self.model.recipe.kinds["decay_biases"]
        flat: Tensor = self._row["flat"][: self.model.layout.size if everything else self.model.layout.n_decayed]
        return flat

    def _stack(self, lone: bool, rows: Sequence[Row]) -> Stack:
        network: Network = LoneNetwork(self.model) if lone else network_for(self.model, lone=False)
        return Stack(self.model, network, self.objective, rows, self._shapes, self._setting.frame(self.model))

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        own, numbers = own_loss(self._setting.task), self.model.recipe.values
        if own is not None:
            return own(outputs, targets, self.values)
        if self.model.recipe.kind("loss") == "hinge":
            return torch.nn.functional.multi_margin_loss(outputs, targets, margin=numbers["margin"]) * outputs.shape[1]
        return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=numbers["label_smoothing"])


def _plan(stack: Stack, batch: Part) -> Plan:
    return stack.plan(torch.zeros(1, len(batch), dtype=torch.int64), True, Pace.start(stack.width))
