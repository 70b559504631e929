"""Check that the units of each layer start different from one another."""

from __future__ import annotations

from torch import Tensor

from worker.checks.report import Finding, Status
from worker.checks.subject import Subject
from worker.tasks.base import Part


def broken(subject: Subject, batch: Part, configuration: str) -> Finding:
    """Check that no layer has units that all start equal and all get the same gradient.

    Such units would stay equal for ever. A last layer of zeros is fine, because its classes get
    different gradients.

    Source: CS231n notes, "Neural Networks Part 2", weight initialization: "all zero
    initialization".
    """
    name = "symmetry"
    gradients = subject.gradients(batch)[1]
    layers = {
        key: weight
        for key, weight in subject.parameters.items()
        if weight.ndim >= 2 and weight.shape[0] >= 2
    }
    same = [key for key, weight in layers.items() if _alike(weight) and _alike(gradients[key])]
    figures = {"layers": len(layers), "symmetric": len(same)}
    if same:
        means = (
            "Units that start equal and get equal updates stay equal, and act as a single unit. "
            "Draw initial weights at random (He, Xavier)."
        )
        return Finding(
            name,
            Status.FAILED,
            f"all units equal, in their gradient too: {', '.join(same[:5])}",
            means,
            figures,
            configuration,
        )
    told = (
        f"the units of all {len(layers)} layers differ" if layers else "no layer of several units"
    )
    return Finding(name, Status.PASSED, told, "", figures, configuration)


def _alike(rows: Tensor) -> bool:
    """Return whether all rows are the same, up to rounding."""
    return bool(((rows - rows[:1]).abs() <= 1e-12 * rows.abs().max()).all())
