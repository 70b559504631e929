"""Measurements during the training of an array, for all slots at once. They are read once an epoch.

An epoch adds these points to the curves of a trial (``LAYER`` is the layer's name in the module):

``update_ratio.LAYER``
    Norm of the update divided by the norm of the weights before it. Only parameters of two or more
    dimensions count: biases start at zero, where a ratio says nothing. Mean over the watched steps.
    About 1e-3 is healthy.
``grad_norm``
    Norm of the trial's whole gradient of the batch loss, before clipping and regularisation. Mean
    over the watched steps.
``dead.LAYER``
    Share of units of a ReLU layer that are zero for every example of a sample of the validation
    part.
``saturated.LAYER``
    Share of units of a sigmoid or tanh layer that are within 5 % of the ends of their range for
    more than half of that sample.
``wiggle``
    Standard deviation of the batch losses within the epoch about their trend, relative to their
    mean. The deviation is estimated from second differences, sqrt(mean (l[t-1] - 2 l[t] + l[t+1])^2
    / 6). A straight trend leaves them at zero, and a curved one nearly so.

A unit is an element of an activation (B, n), or a channel of an activation (B, C, ...). A channel
is judged over examples and positions.

Only ``points`` and ``state`` wait for the device. They fetch the numbers of all slots at once.

Source: CS231n notes, "Babysitting the learning process" (loss, ratio, activations); Gasser, Sroka
and Jennen-Steinmetz, "Residual variance and residual pattern in nonlinear regression", Biometrika
1986 (second differences).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from worker.training.model.layout import Layout

# A watched step costs a fifth more than another (a copy of the parameters, some passes over them).
# One in so many steps costs 1 %.
STEPS_A_LOOK = 16
MOST_LOOKS = 4  # watched steps per epoch: enough for a mean, however long the epoch
# Most validation examples to measure activations on. A unit that is silent for all of them is as
# good as dead.
SAMPLE = 256
# Training examples per example of the sample. So the measurement costs a fiftieth of an epoch if
# the data are few.
SAMPLE_SHARE = 16
# Fewest examples of the sample. With so many, a unit that is active for one example in ten is taken
# for dead in 4 % of cases.
LEAST_SAMPLE = 32
# Share of the range, at each end. There a sigmoid's slope is below a fifth of its largest.
SATURATED_MARGIN = 0.05
LEAST_LOSSES = 4  # fewest losses for a wiggle: two second differences
# Variance of a second difference of independent losses, relative to theirs: 1 + 4 + 1.
SECOND_DIFFERENCE = 6.0
# Columns: number of losses, their sum, squared second differences, the last loss, the one before.
LOSS_SUMS = 5

Span = tuple[int, int]  # columns, the end excluded


def is_watched(step: int, per_epoch: int) -> bool:
    """Return whether to measure at this step of an epoch, counted from 0.

    The watched steps are evenly spread, and early enough for budgets of half an epoch.
    """
    n = max(1, min(MOST_LOOKS, per_epoch // STEPS_A_LOOK))
    return any(step == (4 * number + 1) * per_epoch // (4 * n) for number in range(n))


def sample_size(n_train: int, n_val: int) -> int:
    """Return how many validation examples to measure activations on."""
    return min(n_val, SAMPLE, max(LEAST_SAMPLE, n_train // SAMPLE_SHARE))


def weight_spans(layout: Layout, layers: Mapping[str, Sequence[str]]) -> dict[str, list[Span]]:
    """Return the columns of each layer's weights.

    A layer that has only vectors (normalisation) is left out.
    """
    found: dict[str, Span] = {}
    start = 0
    for name, shape in layout.shapes.items():
        if len(shape) >= 2:
            found[name] = (start, start + math.prod(shape))
        start += math.prod(shape)
    spans = {
        layer: [found[name] for name in names if name in found] for layer, names in layers.items()
    }
    return {layer: own for layer, own in spans.items() if own}


def step_figures(
    before: Tensor, after: Tensor, gradients: Tensor, spans: Sequence[Sequence[Span]]
) -> Tensor:
    """Return the update:weight ratio of each layer and the norm of the gradient, (K, L + 1).

    The code does not depend on values, so it can be traced and compiled.

    Args:
        before: (K, P) parameters before the step. It is overwritten, which saves an allocation.
        after: (K, P) parameters after the step.
        gradients: (K, P), or norms of its parts (K, n), as the norm of norms is the norm.
        spans: columns of each layer's weights.
    """
    sizes = [_norm(before, layer) for layer in spans]
    update = torch.sub(after, before, out=before)
    ratios = [_norm(update, layer) / size for layer, size in zip(spans, sizes, strict=True)]
    return torch.stack([*ratios, torch.linalg.vector_norm(gradients, dim=1)], dim=1)


def norms(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norms (K, n) of the n parts (K, ...) of a gradient.

    They are all that ``step_figures`` needs of the gradient, and need no copy of it.
    """
    return torch.stack(
        [torch.linalg.vector_norm(part.flatten(1), dim=1) for part in gradients], dim=1
    )


def silent_share(kind: str, activations: Tensor) -> Tensor:
    """Return the share (K,) of dead units ("relu") or saturated ones ("sigmoid", "tanh").

    Args:
        kind: the activation.
        activations: (K, B, n) or (K, B, C, ...).
    """
    units = (
        activations
        if activations.dim() == 3
        else activations.flatten(3).transpose(2, 3).flatten(1, 2)
    )  # (K, examples, units)
    if kind == "relu":
        silent = units.amax(1) <= 0
    else:
        low, high = (-1.0, 1.0) if kind == "tanh" else (0.0, 1.0)
        inner = (high - low) * (0.5 - SATURATED_MARGIN)
        # Seven times as fast as counting comparisons.
        silent = (units - (low + high) / 2).abs_().sub_(inner).sign_().sum(1) > 0
    return silent.double().mean(1)


class Monitor:
    """The sums of K slots since the last evaluation of each."""

    def __init__(
        self, layout: Layout, layers: Mapping[str, Sequence[str]], width: int, device: torch.device
    ) -> None:
        """Create a monitor.

        Args:
            layout: of the parameters.
            layers: the parameters of each layer that has weights, by its name (``Network.layers``).
            width: the number of slots, K.
            device: of the sums.
        """
        spans = weight_spans(layout, layers)
        self._names = [f"update_ratio.{layer}" for layer in spans]
        self._spans = list(spans.values())
        self._seen: dict[str, Tensor] = {}  # (K,) shares of the current sample, by curve
        self._judged: list[str] = []  # names of the columns of ``_shares``
        self._sums = torch.zeros(
            width, LOSS_SUMS + 1 + len(self._names) + 1, dtype=torch.float64, device=device
        )
        self._shares = self._sums.new_full((width, 0), math.nan)
        self._read: set[int] = set()  # positions whose sums are cleared before the next measurement
        self._host: list[list[float]] | None = None

    @property
    def width(self) -> int:
        """The number of slots."""
        return len(self._sums)

    def after_step(
        self, before: Tensor, after: Tensor, gradients: Tensor, counted: Tensor | None = None
    ) -> None:
        """Add the figures of a watched step.

        Args:
            before: (K, P) parameters before the step. It is overwritten.
            after: (K, P) parameters after the step.
            gradients: (K, P), or norms of its parts (K, n).
            counted: (K,) bool, the slots for which this step is a watched one; None for all.
        """
        self.note_figures(step_figures(before, after, gradients, self._spans), counted)

    def note_figures(self, figures: Tensor, counted: Tensor | None = None) -> None:
        """Add the figures (K, L + 1) of a watched step, as ``step_figures`` returns them."""
        sums = self._fresh()[:, LOSS_SUMS:]
        found = torch.cat([torch.ones_like(sums[:, :1]), figures.to(sums.dtype)], dim=1)
        sums += found if counted is None else torch.where(counted.unsqueeze(1), found, 0.0)

    def note_losses(self, losses: Tensor) -> None:
        """Add the batch losses (m, K) of the last m steps."""
        sums = self._fresh()
        count, total, squares, last, before = sums[:, :LOSS_SUMS].T
        line = torch.cat(
            [before.unsqueeze(0), last.unsqueeze(0), losses.to(sums.dtype)]
        )  # (m + 2, K)
        # (m, K) number of losses before each.
        steps = count + torch.arange(len(losses), device=sums.device).unsqueeze(1)
        second = torch.where(steps >= 2, line[2:] - 2 * line[1:-1] + line[:-2], 0.0)
        squares += second.square().sum(0)
        total += line[2:].sum(0)
        count += len(losses)
        sums[:, 3:LOSS_SUMS] = line[-2:].flip(0).T

    def observe(self, activations: Sequence[tuple[str, str, Tensor]]) -> None:
        """Measure the activations (K, B, ...) of a sample: layer name, kind, values."""
        self.begin_sample()
        for name, kind, values in activations:
            self.note_activation(name, kind, values)

    def begin_sample(self) -> None:
        """Begin a new sample and drop the last one."""
        self._seen = {}
        self._shares, self._judged = self._sums.new_zeros(self.width, 0), []
        self._host = None

    def note_activation(self, name: str, kind: str, values: Tensor) -> None:
        """Measure one layer's activations (K, B, ...) on at most ``SAMPLE`` examples."""
        if kind in ("relu", "sigmoid", "tanh"):
            self._seen[f"{'dead' if kind == 'relu' else 'saturated'}.{name}"] = silent_share(
                kind, values[:, :SAMPLE]
            )

    def points(self, position: int) -> dict[str, float | None]:
        """Return the points of the epoch for the slot's curves, and clear the slot's sums.

        A point is None if it could not be measured.
        """
        row = self._row(position)
        self._read.add(position)
        end = LOSS_SUMS + 1 + len(self._names) + 1
        count, *figures = row[LOSS_SUMS:end]
        means = [_finite(figure / count) if count else None for figure in figures]
        return {
            **dict(zip(self._names, means, strict=False)),
            "grad_norm": means[-1],
            "wiggle": _wiggle(*row[:3]),
            **dict(zip(self._judged, map(_finite, row[end:]), strict=True)),
        }

    def keep(self, positions: Sequence[int]) -> None:
        """Drop all other slots."""
        index = torch.tensor(positions, dtype=torch.int64, device=self._sums.device)
        self._gather()
        sums = self._fresh()
        self._sums, self._shares = sums.index_select(0, index), self._shares.index_select(0, index)

    def append(self, n: int) -> None:
        """Add slots at the end."""
        self._gather()
        sums = self._fresh()
        self._sums = torch.cat([sums, sums.new_zeros(n, sums.shape[1])])
        self._shares = torch.cat(
            [self._shares, self._shares.new_full((n, self._shares.shape[1]), math.nan)]
        )

    def state(self, position: int) -> list[float]:
        """Return the slot's sums as plain numbers, for ``restore``."""
        return (
            [0.0] * self._sums.shape[1]
            if position in self._read
            else self._row(position)[: self._sums.shape[1]]
        )

    def restore(self, position: int, state: Sequence[float]) -> None:
        """Set the slot's sums to what ``state`` returned.

        Raises:
            ValueError: the sums are of another structure.
        """
        sums = self._fresh()
        if len(state) != sums.shape[1]:
            raise ValueError(f"{len(state)} numbers of the monitor instead of {sums.shape[1]}")
        sums[position] = torch.tensor(state, dtype=sums.dtype, device=sums.device)

    def _fresh(self) -> Tensor:
        """Return the sums for writing. Those of slots that were read are cleared first."""
        if self._read:
            self._sums.index_fill_(
                0, torch.tensor(sorted(self._read), device=self._sums.device), 0.0
            )
            self._read.clear()
        self._host = None
        return self._sums

    def _gather(self) -> None:
        if self._seen:
            self._shares, self._judged = (
                torch.stack(list(self._seen.values()), dim=1).to(self._sums),
                list(self._seen),
            )
            self._seen = {}

    def _row(self, position: int) -> list[float]:
        if self._host is None:
            self._gather()
            self._host = torch.cat([self._sums, self._shares], dim=1).tolist()
        return self._host[position]


def _norm(flat: Tensor, spans: Sequence[Span]) -> Tensor:
    """Return the norm (K,) of these columns of (K, P)."""
    norms = [torch.linalg.vector_norm(flat[:, start:end], dim=1) for start, end in spans]
    whole: Tensor = (
        norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms, dim=1), dim=1)
    )
    return whole


def _wiggle(count: float, total: float, squares: float) -> float | None:
    if count < LEAST_LOSSES or not total:
        return None
    return _finite(math.sqrt(squares / (count - 2) / SECOND_DIFFERENCE) / abs(total / count))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
