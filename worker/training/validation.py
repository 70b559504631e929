"""What the slots of an array come to on the validation part, and what their activations look like there."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.tasks.base import Part
from worker.training.interface import Watch
from worker.training.losses import Objective, averaged
from worker.training.metrics import measured
from worker.training.monitor import Monitor, sample_size
from worker.training.networks import ChainNetwork
from worker.training.setting import Setting
from worker.training.stack import Stack
from worker.training.structure import Model

EVALUATED_AT_ONCE = 1 << 16  # examples times slots: activations stay within tens of megabytes for small models


class Validation:
    """Measures all slots at once, in pieces of the validation part."""

    def __init__(self, setting: Setting, model: Model, part: Part, objective: Objective, batch_size: int) -> None:
        """``model`` stands for all slots."""
        self._setting = setting
        self._part = part
        self._objective = objective
        self._batch_size = batch_size
        self._passes = model.recipe.val_passes
        self._averages = model.recipe.averaged
        self._n_observed = sample_size(setting.n_train, len(part))  # examples that activations are looked at on

    def __call__(self, stack: Stack, monitor: Monitor, watch: Watch) -> list[dict[str, float]]:
        """Each slot's metrics: val_loss, val_acc where there are classes, the task's own, and those of averages; ``monitor`` looks on."""
        in_passing = self._in_passing(stack)
        found = self._measured(stack, watch, averaged=False, monitor=monitor if in_passing else None)
        if self._averages:
            found |= {f"ema_{name}": values for name, values in self._measured(stack, watch, averaged=True).items()}
        if self._setting.options.watching and not in_passing:
            monitor.observe(stack.network.observe(self._part.inputs[: self._n_observed]))
        columns = {name: values.tolist() for name, values in found.items()}
        return [{name: values[position] for name, values in columns.items()} for position in range(stack.width)]

    def _measured(self, stack: Stack, watch: Watch, averaged: bool, monitor: Monitor | None = None) -> dict[str, Tensor]:
        """(K,) by name; ``monitor`` looks at the activations of the first piece."""
        inputs, targets = self._part.inputs, self._part.targets
        loss = torch.zeros(stack.width, dtype=torch.float64, device=inputs.device)
        correct = torch.zeros(stack.width, dtype=torch.int64, device=inputs.device)
        own, size, kept_outputs = self._setting.metrics, self._at_once(stack), []
        note = monitor.note_activation if monitor is not None else None
        if monitor is not None:
            monitor.begin_sample()
        for x, y in zip(torch.split(inputs, size), torch.split(targets, size), strict=True):
            if self._passes and not averaged:
                outputs = self._mean_pass(stack, x)
            else:
                outputs = stack.predict(x, averaged, note)
                note = None  # the first piece is the sample
            losses, right = self._objective.evaluate(outputs, y, stack.objective_values)
            loss += losses
            correct += right
            if own:
                kept_outputs.append(outputs)
            watch.beat()
        found = {"val_loss": loss / len(targets)}
        if self._setting.n_classes is not None:
            found["val_acc"] = correct.double() / len(targets)
        return found | (measured(own, torch.cat(kept_outputs, dim=1), targets) if own else {})

    def _at_once(self, stack: Stack) -> int:
        """Examples that are passed at once."""
        return self._batch_size if self._passes else max(1, EVALUATED_AT_ONCE // stack.width)

    def _in_passing(self, stack: Stack) -> bool:
        """Whether activations are looked at while the first piece passes, which costs no pass of its own."""
        fits = not self._passes and self._at_once(stack) >= self._n_observed
        return self._setting.options.watching and fits and isinstance(stack.network, ChainNetwork)

    def _mean_pass(self, stack: Stack, inputs: Tensor) -> Tensor:
        """The mean of several stochastic passes: of the probabilities where there are classes."""
        passes = torch.stack([stack.sample(inputs, number).clone() for number in range(self._passes)])
        return averaged(passes) if self._setting.n_classes is not None else passes.mean(0)
