"""Evaluation of an array's slots on the validation part, with a sample of their activations."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from common.errors import TaskError
from worker.tasks import trees
from worker.tasks.base import PART_PREFIX, Part
from worker.tasks.trees import Tree
from worker.training.device_errors import is_out_of_memory
from worker.training.math.losses import Objective, average
from worker.training.math.metrics import measure
from worker.training.model.networks import ChainNetwork
from worker.training.model.python_state import restore_attributes, save_attributes, untouched
from worker.training.model.structure import Model
from worker.training.stacked.monitor import Monitor, sample_size
from worker.training.stacked.stack import Stack
from worker.training.stacked.training_data import Setting
from worker.training.types import Watch


class _Stopped(Exception):
    """The engine is to stop."""


class Validation:
    """An evaluation of all slots at once, in pieces of the validation part."""

    def __init__(
        self, setting: Setting, model: Model, part: Part, objective: Objective, batch_size: int
    ) -> None:
        """Create an evaluation.

        Args:
            setting: the data and the options.
            model: the model of one slot; all have its structure.
            part: the validation part.
            objective: the loss.
            batch_size: of the training, for stochastic passes.
        """
        self._setting = setting
        self._part = part
        self._objective = objective
        self._batch_size = batch_size
        self._passes = model.recipe.val_passes
        self._averages = model.recipe.averaged
        # Examples to measure activations on.
        self._n_observed = sample_size(setting.n_train, len(part))

    def __call__(
        self, stack: Stack, monitor: Monitor, watch: Watch
    ) -> list[dict[str, float]] | None:
        """Return each slot's metrics, and let ``monitor`` measure its activations.

        Where memory runs out, the pieces are halved. Return None if ``watch`` says to stop while a
        part is loaded, which may take long.

        The metrics are val_loss, val_acc if there are classes, the task's own, and the same for
        running averages of the parameters.
        """
        while True:
            try:
                return self._evaluate(stack, monitor, watch)
            except RuntimeError as error:
                smaller = self._at_once(stack) * stack.width // 2
                again = not self._passes and stack.model.stateful is None
                if not (is_out_of_memory(error) and again and smaller >= stack.width):
                    raise
                self._setting.evaluated_at_once = smaller
            # The pass is repeated here, as its error would keep its tensors in memory.

    def _evaluate(
        self, stack: Stack, monitor: Monitor, watch: Watch
    ) -> list[dict[str, float]] | None:
        in_passing = self._in_passing(stack)
        module, stateful = stack.model.module, stack.model.stateful is not None
        before = save_attributes(module) if stateful and "val" in self._setting.loaded else {}
        try:
            found = self._measure(stack, watch, False, monitor if in_passing else None)
            if self._averages:
                found |= {
                    f"ema_{name}": values
                    for name, values in self._measure(stack, watch, averaged=True).items()
                }
        except _Stopped:
            restore_attributes(module, before)  # the evaluation is done again from its beginning
            return None
        if self._setting.options.watching and not in_passing:
            # A model with a state of its own must not notice this pass.
            with untouched(module) if stateful else nullcontext():
                observed = stack.network.observe(
                    trees.pick(self._part.inputs, slice(self._n_observed))
                )
            monitor.observe(observed)
        columns = {name: values.tolist() for name, values in found.items()}
        return [
            {name: values[position] for name, values in columns.items()}
            for position in range(stack.width)
        ]

    def _measure(
        self, stack: Stack, watch: Watch, averaged: bool, monitor: Monitor | None = None
    ) -> dict[str, Tensor]:
        """Return the metrics (K,) by name. ``monitor`` measures activations of the first piece."""
        loss = torch.zeros(stack.width, dtype=torch.float64, device=self._setting.device)
        correct = torch.zeros(stack.width, dtype=torch.int64, device=self._setting.device)
        own, size, kept_outputs = self._setting.metrics, self._at_once(stack), []
        parts: dict[str, Tensor] = {}
        kept_targets, n = [], 0
        note = monitor.note_activation if monitor is not None else None
        if monitor is not None:
            monitor.begin_sample()
        for x, y in self._setting.pieces("val", self._part, size):
            if self._passes and not averaged:
                outputs = self._mean_pass(stack, x)
            else:
                outputs = stack.predict(x, averaged, note)
                note = None  # the first piece is the sample
            losses, right, of_parts = self._objective.evaluate(outputs, y, stack.objective_values)
            loss += losses
            correct += right
            for name, total in of_parts.items():
                parts[name] = parts[name] + total if name in parts else total
            n += trees.count_rows(y)
            if own:
                kept_outputs.append(outputs)
                kept_targets.append(y)
            watch.beat()
            if "val" in self._setting.loaded and watch.stopping():
                raise _Stopped
        found = {"val_loss": loss / n}
        if self._setting.n_classes is not None:
            found["val_acc"] = correct.double() / n
        found |= {f"{PART_PREFIX}{name}": total / n for name, total in parts.items()}
        if twice := found.keys() & own.keys():
            raise TaskError(
                f"{min(twice)} is among the task's metrics and a part of its loss; rename one"
            )
        if not own:
            return found
        loaded = "val" in self._setting.loaded
        targets = trees.join(kept_targets) if loaded else self._part.targets
        return found | measure(own, trees.join(kept_outputs, dim=1), targets)

    def _at_once(self, stack: Stack) -> int:
        """Return the number of examples per pass."""
        return (
            self._batch_size
            if self._passes
            else max(1, self._setting.evaluated_at_once // stack.width)
        )

    def _in_passing(self, stack: Stack) -> bool:
        """Return whether activations are measured during the pass of the first piece.

        This needs no extra pass.
        """
        fits = not self._passes and self._at_once(stack) >= self._n_observed
        return self._setting.options.watching and fits and isinstance(stack.network, ChainNetwork)

    def _mean_pass(self, stack: Stack, inputs: Tree) -> Tree:
        """Return the mean of several stochastic passes. For classes, probabilities are averaged.

        Of outputs that are whole numbers, those of the first pass are returned.
        """
        passes = trees.stack(
            [
                trees.map_leaves(torch.clone, stack.sample(inputs, number))
                for number in range(self._passes)
            ]
        )
        if self._setting.n_classes is not None:
            return average(passes)
        return trees.map_leaves(lambda p: p.mean(0) if p.is_floating_point() else p[0], passes)
