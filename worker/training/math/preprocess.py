"""Preprocessing of inputs by the statistics of the training set alone.

Validation inputs, test inputs and the inputs of a checkpoint's predictions are transformed with the
same statistics.

Source: CS231n notes, "Neural Networks Part 2: Setting up the Data", "Data Preprocessing".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.errors import TaskError

NONE, CENTRE, NORMALISE, PCA, WHITEN = "none", "centre", "normalise", "pca", "whiten"
KINDS = (NONE, CENTRE, NORMALISE, PCA, WHITEN)
# Added to each variance, so that almost constant directions are not blown up (CS231n notes).
WHITENING_EPS = 1e-5
# Examples that are summed in double precision at a time. The data set is never copied as a
# whole.
ROWS_AT_ONCE = 4096
STATISTICS = {
    NONE: (),
    CENTRE: ("mean",),
    NORMALISE: ("mean", "deviation"),
    PCA: ("mean", "basis"),
    WHITEN: ("mean", "basis", "scale"),
}


@dataclass(frozen=True)
class Preprocessing:
    """A fitted preprocessing.

    ``statistics`` by name: ``mean`` and ``deviation`` have the shape of an example. ``basis`` is
    (d, d), one principal direction per column, the largest variance first. ``scale`` is (d,), the
    standard deviations along the directions.
    """

    kind: str
    statistics: Mapping[str, Tensor]

    @property
    def keeps_shape(self) -> bool:
        """Whether outputs have the shape of the inputs, so that images stay images."""
        return "basis" not in self.statistics

    def apply(self, inputs: Tensor) -> Tensor:
        """Return inputs (n, ...) as the training sees them.

        Integers become float32; floating types are kept. Centred and normalised inputs keep their
        shape. Decorrelated and whitened ones are (n, d), where d is the number of elements of an
        example.

        Raises:
            TaskError: the examples have another shape than those it was fitted on.
        """
        if self.kind == NONE:
            return inputs
        values = inputs if inputs.is_floating_point() else inputs.float()
        known = {
            name: tensor.to(values.device, values.dtype) for name, tensor in self.statistics.items()
        }
        if values.shape[1:] != known["mean"].shape:
            told, fitted = tuple(values.shape[1:]), tuple(known["mean"].shape)
            raise TaskError(
                f"preprocess = {self.kind!r} was fitted on examples of shape {fitted}, these have "
                f"{told}; give examples of shape {fitted}"
            )
        values = values - known["mean"]
        if self.kind == NORMALISE:
            values.div_(known["deviation"])
        if not self.keeps_shape:
            values = values.flatten(1) @ known["basis"]
        if self.kind == WHITEN:
            values.div_(known["scale"])
        return values

    def state(self) -> dict[str, Any]:
        """Return tensors on the CPU and plain values, for a checkpoint."""
        return {
            "kind": self.kind,
            **{name: tensor.detach().cpu().clone() for name, tensor in self.statistics.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Preprocessing:
        """Build a preprocessing from the result of ``state``.

        Raises:
            TaskError: it is not such a state.
        """
        kind = state.get("kind")
        names = STATISTICS.get(kind) if isinstance(kind, str) else None
        if (
            names is None
            or set(state) != {"kind", *names}
            or not all(isinstance(state[name], Tensor) for name in names)
        ):
            raise TaskError(
                f"a preprocessing of kind {kind!r} with {', '.join(sorted(state))} cannot be read; "
                "train the checkpoint again"
            )
        return cls(str(kind), {name: state[name] for name in names})


def fit(kind: str, inputs: Tensor) -> Preprocessing:
    """Fit a preprocessing to the inputs of the training set.

    Args:
        kind: one of ``KINDS``.
        inputs: (n, ...) on any device. Statistics are computed in double precision and kept in the
            precision of the inputs.

    Raises:
        TaskError: the kind does not exist, or values are not finite.
    """
    if kind not in KINDS:
        raise TaskError(
            f"preprocess = {kind!r}: no such preprocessing; use one of {', '.join(KINDS)}"
        )
    if kind == NONE:
        return Preprocessing(kind, {})
    dtype = inputs.dtype if inputs.is_floating_point() else torch.float32
    statistics = _moments(inputs) if kind in (CENTRE, NORMALISE) else _principal(inputs)
    if not all(bool(tensor.isfinite().all()) for tensor in statistics.values()):
        raise TaskError(
            f"preprocess = {kind!r}: the training inputs hold NaN or infinite values; remove them "
            "in data()"
        )
    return Preprocessing(kind, {name: statistics[name].to(dtype) for name in STATISTICS[kind]})


def _moments(inputs: Tensor) -> dict[str, Tensor]:
    """Return the mean and the deviation of each element of an example.

    A constant element gets its value and 1, so that it becomes 0.
    """
    mean = _mean(inputs)
    squares = torch.stack([(rows - mean).square().sum(0) for rows in _doubles(inputs)]).sum(0)
    constant = inputs.amin(0) == inputs.amax(0)
    mean = torch.where(constant, inputs[0].double(), mean)  # exact, while a mean is rounded
    return {"mean": mean, "deviation": torch.where(constant, 1.0, (squares / len(inputs)).sqrt())}


def _principal(inputs: Tensor) -> dict[str, Tensor]:
    """Return the mean, the principal directions by falling variance, and their deviations.

    ``WHITENING_EPS`` is added to each variance.
    """
    mean = _mean(inputs)
    covariance = mean.new_zeros(mean.numel(), mean.numel())
    for rows in _doubles(inputs):
        centred = (rows - mean).flatten(1)
        covariance.addmm_(centred.T, centred, alpha=1 / len(inputs))
    if not bool(covariance.isfinite().all()):  # eigh would fail with its own message
        return {"mean": mean, "basis": covariance, "scale": covariance[0]}
    variances, basis = torch.linalg.eigh(covariance)
    basis = basis.flip(1)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    # The sign of a direction is arbitrary. Fix it, so that it is the same in every process.
    basis = basis * torch.where(largest < 0, -1.0, 1.0)
    return {
        "mean": mean,
        "basis": basis,
        "scale": (variances.flip(0).clamp(min=0) + WHITENING_EPS).sqrt(),
    }


def _mean(inputs: Tensor) -> Tensor:
    return torch.stack([rows.sum(0) for rows in _doubles(inputs)]).sum(0) / len(inputs)


def _doubles(inputs: Tensor) -> Iterator[Tensor]:
    for first in range(0, len(inputs), ROWS_AT_ONCE):
        yield inputs[first : first + ROWS_AT_ONCE].double()
