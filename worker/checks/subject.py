"""The model of one configuration in double precision, as the engine and as plain PyTorch see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from common.search.values import Hyperparameters, Value
from worker.checks.training import claim_of
from worker.tasks.base import Part, own_loss
from worker.tasks.trees import Tree
from worker.training.engine.engine import Engine
from worker.training.math.losses import take_apart
from worker.training.math.noise import seed_generators
from worker.training.math.recipe import COLUMN
from worker.training.model.layout import constants
from worker.training.model.network import Network, find_activation_kind
from worker.training.model.networks import network_for
from worker.training.model.python_state import attributes_kept, save_attributes, seed_python
from worker.training.model.structure import Model
from worker.training.model.vmap_networks import LoneNetwork
from worker.training.stacked.rows import Row, fresh_rows, name_tensors, take_row
from worker.training.stacked.slot import pack
from worker.training.stacked.stack import Stack
from worker.training.stacked.step import Pace, Plan, StepResult

# Norm of one update relative to the weights. Twenty such steps clearly leave the start, and the
# gradient has not vanished yet.
MOVED = 2e-3
TINY = 1e-12  # a smaller gradient counts as none
PLAIN: dict[str, Value] = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "nesterov": False,
    "learning_rate": 1.0,
}


class Subject:
    """The model to check. Only ``train`` moves its weights."""

    def __init__(self, engine: Engine, values: Hyperparameters, seed: int) -> None:
        """Build the model as the engine does.

        Args:
            engine: the engine with task and data.
            values: of the configuration. Plain gradient descent replaces its update rule.
            seed: of the initial weights.

        Raises:
            TaskError: the engine refuses the model.
            Exception: whatever the task's model raises.
        """
        self._setting, self.values = engine.builder.setting(), {**values, **PLAIN}
        claim = claim_of(self.values, seed=seed)
        self.model: Model = engine.builder.entry(claim).model
        # The checks use batches of several sizes, and a mask has one.
        self._calls = len(self.model.calls)
        self.model.take_calls(())
        self._shapes = engine.builder.shapes(self.model)
        self.objective = self._setting.objective(self.model.recipe)
        options = engine.builder.options
        found = fresh_rows([self.model], [claim.trial.seed], options.device, options.dtype)
        self._row = take_row(found, 0)
        self._noise_seed: int | None = None  # of a module that draws its own noise
        self.stack = self._stack(self.model.structure.alone, [self._row])

    @property
    def stacked(self) -> bool:
        """Whether the model trains in arrays."""
        lone = self.model.structure.alone
        return not lone and (self._calls > 0 or not isinstance(self.stack.network, LoneNetwork))

    def train(self, batch: Part, n_steps: int) -> None:
        """Update the weights ``n_steps`` times by the engine.

        The learning rate is chosen so that the first update has ``MOVED`` times the norm of the
        weights, whatever the scale of the loss.
        """
        gradient = torch.cat([one.flatten() for one in self.gradients(batch)[1].values()])
        weights = self.stack.rows["flat"][0]
        rate = MOVED * float(weights.norm()) / max(float(gradient.norm()), TINY)
        for _ in range(n_steps):
            self._step(batch, rate)

    def _step(self, batch: Part, rate: float) -> StepResult:
        """Do one update by plain gradient descent.

        A model that cannot be stacked goes on alone, as in a training.
        """
        self.stack.rows["hp"][:, COLUMN["learning_rate"]] = rate
        plan = _plan(self.stack, batch)
        try:
            result = self.stack.step(batch.inputs, batch.targets, plan, 0)
        except Exception:
            if isinstance(self.stack.network, LoneNetwork):
                raise
            self.stack = self._stack(True, [self._row])
            return self._step(batch, rate)
        self._noise_seed = plan.seeds[0] if plan.seeds else None
        return result

    def gradients(self, batch: Part) -> tuple[float, dict[str, Tensor]]:
        """Return the engine's loss, and its gradient by parameter. Nothing is moved.

        The gradient is the distance that one update of plain gradient descent moves the weights at
        a rate of 1. So it includes the engine's whole step.

        Raises:
            Exception: whatever the model raises.
        """
        with self._keep_unchanged() as before:
            result = self._step(batch, 1.0)
            moved = before["flat"] - self.stack.rows["flat"]  # (1, P)
        return float(result.loss[0]), {
            name: view[0] for name, view in self.model.layout.views(moved).items()
        }

    def parts(self, batch: Part) -> list[str]:
        """Return the names of the parts of the loss."""
        with self._keep_unchanged():
            return list(self._step(batch, 1.0).parts)

    @contextmanager
    def _keep_unchanged(self) -> Iterator[Row]:
        """Yield a copy of weights, states and buffers, and restore them at the end."""
        kept = {name: tensor.clone() for name, tensor in self.stack.rows.items()}
        try:
            with self._same_state():
                yield kept
        finally:
            # In place, because the network works on the stack's memory.
            for name, tensor in self.stack.rows.items():
                tensor.copy_(kept[name])

    @contextmanager
    def _same_state(self) -> Iterator[None]:
        """Let each forward begin with the same attributes, and the same noise of Python."""
        if self.model.stateful is None:
            yield
            return
        with attributes_kept(self.model.module.modules()):
            if self._noise_seed is not None:
                seed_python(self._noise_seed)
            yield

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Views of the current weights by name. Writing into them changes the model."""
        return {
            name: view[0] for name, view in self.model.layout.views(self.stack.rows["flat"]).items()
        }

    def plain_loss(self, batch: Part) -> float:
        """Return the loss of the current weights by the model's own module and plain PyTorch.

        None of the engine's hand-written code is used.
        """
        if self._noise_seed is not None:
            seed_generators(self._noise_seed, self._row["flat"].device)
        # A copy, because batch norm changes its statistics.
        carried = {name: tensor.clone() for name, tensor in constants(self.model.module).items()}
        self.model.module.train()
        with torch.no_grad(), self._same_state():
            outputs = functional_call(
                self.model.module, {**carried, **self.parameters}, (batch.inputs,)
            )
            return float(self._loss(outputs, batch.targets))

    def activity(self, batch: Part) -> float:
        """Return the sum of the sizes of an example's hidden activations, by plain PyTorch.

        It is the mean over the batch, with the current weights.
        """
        layers = [m for m in self.model.module.modules() if find_activation_kind(m) is not None]
        sizes: list[float] = []
        handles = [
            layer.register_forward_hook(lambda *told: sizes.append(float(told[2].abs().sum())))
            for layer in layers
        ]
        try:
            self.plain_loss(batch)
        finally:
            for handle in handles:
                handle.remove()
        return sum(sizes) / len(batch)

    def saved(self) -> bytes:
        """Return the weights as the file of a kept trial has them, and what a resume needs.

        Raises:
            Exception: whatever the model's ``state_dict`` raises, or what it holds has no form in a
                file.
        """
        content = name_tensors(self.model, self.stack.row(0), optimizer=False)
        if self.model.stateful is not None:
            content["attributes"] = save_attributes(self.model.module)
        return pack(content)

    def penalties(
        self, batch: Part, changes: Sequence[Mapping[str, float]]
    ) -> list[tuple[float, float]]:
        """Return (loss, regularisation term) of the initial weights for each set of other values.

        The engine computes them, in one array if the model can be stacked.

        Args:
            batch: the examples.
            changes: for each result, the hyperparameters to change and their values.

        Raises:
            Exception: whatever the model raises.
        """
        rows = []
        for numbers in changes:
            hp = self._row["hp"].clone()
            for name, value in numbers.items():
                hp[COLUMN[name]] = value
            rows.append({**self._row, "hp": hp})
        lone = isinstance(self.stack.network, LoneNetwork)
        groups = [[row] for row in rows] if lone else [rows]
        found: list[tuple[float, float]] = []
        for group in groups:
            stack = self._stack(lone, group)
            with self._same_state():
                result = stack.step(batch.inputs, batch.targets, _plan(stack, batch), 0)
            found += zip(result.loss.tolist(), result.penalty.tolist(), strict=True)
        return found

    def decayed_weights(self) -> Tensor:
        """Return the initial weights that regularisation acts on, flat (n,)."""
        everything = self.model.recipe.kinds["decay_biases"]
        flat: Tensor = self._row["flat"][
            : self.model.layout.size if everything else self.model.layout.n_decayed
        ]
        return flat

    def _stack(self, lone: bool, rows: Sequence[Row]) -> Stack:
        network: Network = LoneNetwork(self.model) if lone else network_for(self.model, lone=False)
        columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        frame = self._setting.frame(self.model)
        return Stack(self.model, network, self.objective, columns, self._shapes, frame)

    def _loss(self, outputs: Tree, targets: Tree) -> Tensor:
        own, numbers = own_loss(self._setting.task), self.model.recipe.values
        if own is not None:
            return take_apart(own(outputs, targets, self.values))[0]
        if self.model.recipe.kind("loss") == "hinge":
            margin = numbers["margin"]
            loss = torch.nn.functional.multi_margin_loss(outputs, targets, margin=margin)
            return loss * int(outputs.shape[1])
        return torch.nn.functional.cross_entropy(
            outputs, targets, label_smoothing=numbers["label_smoothing"]
        )


def _plan(stack: Stack, batch: Part) -> Plan:
    return stack.plan(torch.zeros(1, len(batch), dtype=torch.int64), True, Pace.start(stack.width))
