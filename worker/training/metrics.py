"""A task's own metrics, of the stacked validation outputs of an array."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import vmap

from common.errors import TaskError
from worker.tasks.base import Measure

AGREEMENT = 1e-3  # relative: what vmap computes may differ by rounding from one trial's own value, and by no more


@dataclass(eq=False)
class Metric:
    """One metric. Under vmap where that gives what a trial alone gives; else a trial at a time, so that it may be any Python."""

    name: str
    function: Measure
    _stacks: bool | None = field(default=None, init=False)  # None: not tried yet

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(K,) float64 values.

        Args:
            outputs: (K, N, ...) of K trials on the whole validation part.
            targets: (N, ...), the same for all.

        Raises:
            TaskError: it gives something other than one number a trial.
            Exception: whatever the function raises.
        """
        if len(outputs) == 1:
            return self._alone(outputs, targets)
        if self._stacks is None:
            own = self._alone(outputs, targets)
            self._stacks = self._agrees(outputs, targets, own)
            return own
        return self._stacked(outputs, targets) if self._stacks else self._alone(outputs, targets)

    def _alone(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([self._number(self.function(one, targets)).to(outputs.device) for one in outputs])

    def _stacked(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = vmap(self.function, in_dims=(0, None))(outputs, targets)
        return found.double()

    def _agrees(self, outputs: Tensor, targets: Tensor, own: Tensor) -> bool:
        """Whether vmap can be trusted with it: what it makes of these outputs is what each trial alone gives."""
        try:
            found = self._stacked(outputs, targets)
        except Exception:  # data-dependent Python, numpy, scikit-learn: vmap raises whatever they lead to
            return False
        return found.shape == own.shape and torch.allclose(found, own, rtol=AGREEMENT, atol=AGREEMENT, equal_nan=True)

    def _number(self, value: object) -> Tensor:
        if isinstance(value, Tensor) and value.numel() == 1:
            return value.detach().double().reshape(())
        try:
            return torch.tensor(float(value), dtype=torch.float64)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise TaskError(f"metric {self.name} gives {shape}; one number is needed") from None


def stacking(metrics: Mapping[str, Measure]) -> dict[str, Metric]:
    """The task's metrics as ``measured`` takes them; make them once, since each remembers how it can be computed."""
    return {name: Metric(name, function) for name, function in metrics.items()}


def measured(metrics: Mapping[str, Measure | Metric], outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """All metrics of K trials.

    Args:
        metrics: of ``stacking``, or plain functions.
        outputs: (K, N, ...) on the whole validation part.
        targets: (N, ...).

    Returns:
        (K,) float64 values by name.

    Raises:
        TaskError: one gives something other than one number a trial.
    """
    with torch.no_grad():
        return {
            name: (metric if isinstance(metric, Metric) else Metric(name, metric))(outputs, targets) for name, metric in metrics.items()
        }
