"""A task's own metrics, computed on the stacked validation outputs of an array."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import vmap

from common.errors import TaskError
from worker.tasks import trees
from worker.tasks.base import Measure
from worker.tasks.trees import Tree

# Relative tolerance: vmap may differ from one trial's own value by rounding only.
AGREEMENT = 1e-3


@dataclass(eq=False)
class Metric:
    """One metric, computed under vmap where that gives what each trial gives alone.

    Otherwise it is computed one trial at a time, so that it may be any Python code.
    """

    name: str
    function: Measure
    _stacks: bool | None = field(default=None, init=False)  # None: not tried yet

    def __call__(self, outputs: Tree, targets: Tree) -> Tensor:
        """Return (K,) float64 values.

        Args:
            outputs: (K, N, ...) of K trials on the whole validation set.
            targets: (N, ...), the same for all trials.

        Raises:
            TaskError: the metric does not return one number per trial.
            Exception: whatever the function raises.
        """
        if trees.count_rows(outputs) == 1:
            return self._alone(outputs, targets)
        if self._stacks is None:
            own = self._alone(outputs, targets)
            self._stacks = self._agrees(outputs, targets, own)
            return own
        return self._stack(outputs, targets) if self._stacks else self._alone(outputs, targets)

    def _alone(self, outputs: Tree, targets: Tree) -> Tensor:
        first = trees.first_leaf(outputs)
        return torch.stack(
            [
                self._number(self.function(trees.pick(outputs, slot), targets)).to(first.device)
                for slot in range(len(first))
            ]
        )

    def _stack(self, outputs: Tree, targets: Tree) -> Tensor:
        found: Tensor = vmap(self.function, in_dims=(0, None))(outputs, targets)
        return found.double()

    def _agrees(self, outputs: Tree, targets: Tree, own: Tensor) -> bool:
        """Return whether vmap gives on these outputs what each trial gives alone."""
        try:
            found = self._stack(outputs, targets)
        except Exception:
            # With data-dependent Python, numpy or scikit-learn, vmap may raise anything.
            return False
        return found.shape == own.shape and torch.allclose(
            found, own, rtol=AGREEMENT, atol=AGREEMENT, equal_nan=True
        )

    def _number(self, value: object) -> Tensor:
        if isinstance(value, Tensor) and value.numel() == 1:
            return value.detach().double().reshape(())
        try:
            return torch.tensor(float(value), dtype=torch.float64)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            shape = (
                f"a tensor of shape {tuple(value.shape)}"
                if isinstance(value, Tensor)
                else repr(value)
            )
            raise TaskError(f"metric {self.name} gives {shape}; one number is needed") from None


def stacking(metrics: Mapping[str, Measure]) -> dict[str, Metric]:
    """Wrap the task's metrics for ``measure``.

    Wrap them once: each ``Metric`` remembers whether it can be stacked.
    """
    return {name: Metric(name, function) for name, function in metrics.items()}


def measure(
    metrics: Mapping[str, Measure | Metric], outputs: Tree, targets: Tree
) -> dict[str, Tensor]:
    """Compute all metrics of K trials.

    Args:
        metrics: from ``stacking``, or plain functions.
        outputs: (K, N, ...) on the whole validation set.
        targets: (N, ...).

    Returns:
        (K,) float64 values by name.

    Raises:
        TaskError: a metric does not return one number per trial.
    """
    with torch.no_grad():
        return {
            name: (metric if isinstance(metric, Metric) else Metric(name, metric))(outputs, targets)
            for name, metric in metrics.items()
        }
