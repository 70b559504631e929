"""Check that each of the task's own metrics gives a finite number."""

from __future__ import annotations

import math
from collections.abc import Mapping

from worker.checks.report import Finding, Status
from worker.tasks import trees
from worker.tasks.base import Measure
from worker.tasks.trees import Tree
from worker.training.math.metrics import measure, stacking


def numbers(own: Mapping[str, Measure], outputs: Tree, targets: Tree) -> Finding:
    """Check each metric on the outputs of an untrained model.

    Args:
        own: the task's metrics by name.
        outputs: (1, N, ...) on validation examples.
        targets: (N, ...).

    Raises:
        TaskError: a metric does not give a single number.
        Exception: whatever a metric raises.
    """
    name = "metrics"
    values = {
        metric: float(value) for metric, value in measure(stacking(own), outputs, targets).items()
    }
    found = (
        "before learning "
        f"{', '.join(f'{metric} {value:.4g}' for metric, value in values.items())}, on "
        f"{trees.count_rows(targets)} examples"
    )
    if odd := [metric for metric, value in values.items() if not math.isfinite(value)]:
        means = (
            f"{', '.join(odd)} is not a number here, and a trial with such a value ranks last. "
            "Return a number even if all outputs are alike."
        )
        return Finding(name, Status.WARNING, found, means, values)
    return Finding(name, Status.PASSED, found, "", values)
