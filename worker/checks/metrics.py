"""Whether the task's own metrics give a number each."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from worker.checks.report import Finding, Status
from worker.tasks.base import Measure
from worker.training.metrics import measured, stacking


def numbers(own: Mapping[str, Measure], outputs: Tensor, targets: Tensor) -> Finding:
    """Each metric of an untrained model.

    Args:
        own: by name.
        outputs: (1, N, ...) on validation examples.
        targets: (N, ...).

    Raises:
        Exception: whatever a metric raises, TaskError where it gives no single number.
    """
    name = "metrics"
    values = {metric: float(value) for metric, value in measured(stacking(own), outputs, targets).items()}
    found = f"before learning {', '.join(f'{metric} {value:.4g}' for metric, value in values.items())}, on {len(targets)} examples"
    if odd := [metric for metric, value in values.items() if not math.isfinite(value)]:
        means = f"{', '.join(odd)}: a trial for which this is not a number ranks last; give a number for outputs that are all alike too."
        return Finding(name, Status.WARNING, found, means, values)
    return Finding(name, Status.PASSED, found, "", values)
