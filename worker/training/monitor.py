"""What is measured while an array trains, for all slots at once, to be read once an epoch.

An epoch leaves these points in the curves of a trial (``LAYER`` is the layer's name in the module):

``update_ratio.LAYER``
    Norm of the update over norm of the weights before it, of the layer's parameters of two dimensions and more (biases start at zero,
    where a ratio says nothing). Mean over the watched steps. About 1e-3 is healthy.
``grad_norm``
    Norm of the trial's whole gradient as the engine hands it in. Mean over the watched steps.
``dead.LAYER``
    Share of units of a ReLU layer that are zero for every example of a sample of the validation part.
``saturated.LAYER``
    Share of units of a sigmoid or tanh layer that are within 5 % of the ends of their range for more than half of that sample.
``wiggle``
    Standard deviation of the batch losses within the epoch about their trend, relative to their mean. The deviation is estimated from
    second differences, which a straight trend leaves at zero and a curved one nearly so: sqrt(mean (l[t-1] - 2 l[t] + l[t+1])^2 / 6).

A unit is an element of an activation (B, n), and a channel of (B, C, ...): a channel is judged over examples and positions.

Nothing here waits for the device but ``points`` and ``state``, which fetch all slots' numbers at once.

Source: CS231n notes, "Babysitting the learning process" (loss, ratio, activations); Gasser, Sroka and Jennen-Steinmetz, "Residual variance
and residual pattern in nonlinear regression", Biometrika 1986 (second differences).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from worker.training.layout import Layout

STEPS_A_LOOK = 16  # a watched step costs a fifth of a step more (a copy of the parameters, some passes over them): one in so many is 1 %
MOST_LOOKS = 4  # watched steps an epoch: enough for a mean, however long the epoch
SAMPLE = 256  # validation examples, at most, that activations are looked at on: a unit silent for all of them is as good as dead
SAMPLE_SHARE = 16  # training examples for each of them, so that looking costs a fiftieth of an epoch where the data are few
LEAST_SAMPLE = 32  # but no fewer: a unit that answers to one example in ten would be taken for dead in 4 % of cases
SATURATED_MARGIN = 0.05  # of the range, at each end: a sigmoid's slope there is below a fifth of its largest
LEAST_LOSSES = 4  # for a wiggle: two second differences
SECOND_DIFFERENCE = 6.0  # 1 + 4 + 1: how much larger its variance is than that of independent losses
LOSS_SUMS = 5  # columns: losses, their sum, squared second differences, the last loss, the one before

Span = tuple[int, int]  # columns, the end excluded


def watched(step: int, per_epoch: int) -> bool:
    """Whether to measure at this step of an epoch, counted from 0: evenly spread, early enough for budgets of half an epoch."""
    n = max(1, min(MOST_LOOKS, per_epoch // STEPS_A_LOOK))
    return any(step == (4 * number + 1) * per_epoch // (4 * n) for number in range(n))


def sample_size(n_train: int, n_val: int) -> int:
    """How many validation examples to hand to ``observe``."""
    return min(n_val, SAMPLE, max(LEAST_SAMPLE, n_train // SAMPLE_SHARE))


def weight_spans(layout: Layout, layers: Mapping[str, Sequence[str]]) -> dict[str, list[Span]]:
    """The columns of each layer's weights; a layer that has only vectors (normalisation) is left out."""
    found: dict[str, Span] = {}
    start = 0
    for name, shape in layout.shapes.items():
        if len(shape) >= 2:
            found[name] = (start, start + math.prod(shape))
        start += math.prod(shape)
    spans = {layer: [found[name] for name in names if name in found] for layer, names in layers.items()}
    return {layer: own for layer, own in spans.items() if own}


def step_figures(before: Tensor, after: Tensor, gradients: Tensor, spans: Sequence[Sequence[Span]]) -> Tensor:
    """(K, L + 1) update:weight ratio of each layer, then the norm of the gradient. No value is looked at: it may be traced and compiled.

    Args:
        before: (K, P) parameters before the step; used up, which spares memory that is written for the first time.
        after: (K, P) after it.
        gradients: (K, P), or norms of parts of it (K, n): the norm of norms is the norm.
        spans: columns of each layer's weights.
    """
    sizes = [_norm(before, layer) for layer in spans]
    update = torch.sub(after, before, out=before)
    ratios = [_norm(update, layer) / size for layer, size in zip(spans, sizes, strict=True)]
    return torch.stack([*ratios, torch.linalg.vector_norm(gradients, dim=1)], dim=1)


def norms(gradients: Sequence[Tensor]) -> Tensor:
    """(K, n) norm of each of n parts (K, ...) of a gradient: what ``step_figures`` needs of it, at no copy."""
    return torch.stack([torch.linalg.vector_norm(part.flatten(1), dim=1) for part in gradients], dim=1)


def silent_share(kind: str, activations: Tensor) -> Tensor:
    """(K,) share of dead units ("relu") or saturated ones ("sigmoid", "tanh") of activations (K, B, n) or (K, B, C, ...)."""
    units = activations if activations.dim() == 3 else activations.flatten(3).transpose(2, 3).flatten(1, 2)  # (K, examples, units)
    if kind == "relu":
        silent = units.amax(1) <= 0
    else:
        low, high = (-1.0, 1.0) if kind == "tanh" else (0.0, 1.0)
        inner = (high - low) * (0.5 - SATURATED_MARGIN)
        silent = (units - (low + high) / 2).abs_().sub_(inner).sign_().sum(1) > 0  # seven times as fast as counting comparisons
    return silent.double().mean(1)


class Monitor:
    """The sums of K slots since the last evaluation of each."""

    def __init__(self, layout: Layout, layers: Mapping[str, Sequence[str]], width: int, device: torch.device) -> None:
        """``layers``: the parameters of each layer that has weights, by its name (``Network.layers``)."""
        spans = weight_spans(layout, layers)
        self._layers = list(spans)
        self._spans = list(spans.values())
        self._seen: dict[str, Tensor] = {}  # (K,) shares of the sample that is being looked at, by curve
        self._judged: list[str] = []  # names of the columns of ``_shares``
        self._sums = torch.zeros(width, LOSS_SUMS + 1 + len(self._layers) + 1, dtype=torch.float64, device=device)
        self._shares = self._sums.new_full((width, 0), math.nan)
        self._read: set[int] = set()  # positions that begin anew with what is measured next
        self._host: list[list[float]] | None = None

    @property
    def width(self) -> int:
        """How many slots."""
        return len(self._sums)

    def after_step(self, before: Tensor, after: Tensor, gradients: Tensor, counted: Tensor | None = None) -> None:
        """Notes a watched step.

        Args:
            before: (K, P) parameters before the step; used up.
            after: (K, P) after it.
            gradients: (K, P), or norms of parts of it (K, n).
            counted: (K,) bool, the slots for which this step is a watched one; None for all.
        """
        self.note_figures(step_figures(before, after, gradients, self._spans), counted)

    def note_figures(self, figures: Tensor, counted: Tensor | None = None) -> None:
        """Notes the ``step_figures`` (K, L + 1) of a watched step."""
        sums = self._fresh()[:, LOSS_SUMS:]
        found = torch.cat([torch.ones_like(sums[:, :1]), figures.to(sums.dtype)], dim=1)
        sums += found if counted is None else torch.where(counted.unsqueeze(1), found, 0.0)

    def note_losses(self, losses: Tensor) -> None:
        """Notes the batch losses (m, K) of the last m steps."""
        sums = self._fresh()
        count, total, squares, last, before = sums[:, :LOSS_SUMS].T
        line = torch.cat([before.unsqueeze(0), last.unsqueeze(0), losses.to(sums.dtype)])  # (m + 2, K)
        steps = count + torch.arange(len(losses), device=sums.device).unsqueeze(1)  # (m, K) losses before each
        second = torch.where(steps >= 2, line[2:] - 2 * line[1:-1] + line[:-2], 0.0)
        squares += second.square().sum(0)
        total += line[2:].sum(0)
        count += len(losses)
        sums[:, 3:LOSS_SUMS] = line[-2:].flip(0).T

    def observe(self, activations: Sequence[tuple[str, str, Tensor]]) -> None:
        """Notes the activations (K, B, ...) of a sample of the validation part: layer name, kind, values."""
        self.begin_sample()
        for name, kind, values in activations:
            self.note_activation(name, kind, values)

    def begin_sample(self) -> None:
        """Forgets the last sample."""
        self._seen = {}
        self._shares, self._judged = self._sums.new_zeros(self.width, 0), []
        self._host = None

    def note_activation(self, name: str, kind: str, values: Tensor) -> None:
        """Notes one layer's activations (K, B, ...) of the sample, of which no more than ``SAMPLE`` are looked at."""
        if kind in ("relu", "sigmoid", "tanh"):
            self._seen[f"{'dead' if kind == 'relu' else 'saturated'}.{name}"] = silent_share(kind, values[:, :SAMPLE])

    def points(self, position: int) -> dict[str, float | None]:
        """What the epoch that ended leaves in the slot's curves, None where nothing could be measured; the slot begins anew."""
        row = self._row(position)
        self._read.add(position)
        sums, shares = row[: self._sums.shape[1]], row[self._sums.shape[1] :]
        count, *figures = sums[LOSS_SUMS:]
        means = [_finite(figure / count) if count else None for figure in figures]
        ratios = {f"update_ratio.{layer}": mean for layer, mean in zip(self._layers, means[:-1], strict=True)}
        seen = dict(zip(self._judged, (_finite(share) for share in shares), strict=True))
        return {**ratios, "grad_norm": means[-1], "wiggle": _wiggle(*sums[:3]), **seen}

    def keep(self, positions: Sequence[int]) -> None:
        """Drops all other slots."""
        index = torch.tensor(positions, dtype=torch.int64, device=self._sums.device)
        self._gather()
        sums = self._fresh()
        self._sums, self._shares = sums.index_select(0, index), self._shares.index_select(0, index)

    def append(self, n: int) -> None:
        """Adds slots at the end."""
        self._gather()
        sums = self._fresh()
        self._sums = torch.cat([sums, sums.new_zeros(n, sums.shape[1])])
        self._shares = torch.cat([self._shares, self._shares.new_full((n, self._shares.shape[1]), math.nan)])

    def state(self, position: int) -> list[float]:
        """The slot's sums as plain numbers, to go on from later."""
        return [0.0] * self._sums.shape[1] if position in self._read else self._row(position)[: self._sums.shape[1]]

    def restore(self, position: int, state: Sequence[float]) -> None:
        """The inverse of ``state``.

        Raises:
            ValueError: it is of another structure.
        """
        sums = self._fresh()
        if len(state) != sums.shape[1]:
            raise ValueError(f"{len(state)} numbers of the monitor instead of {sums.shape[1]}")
        sums[position] = torch.tensor(state, dtype=sums.dtype, device=sums.device)

    def _fresh(self) -> Tensor:
        """The sums, about to be changed: slots that were read begin anew."""
        if self._read:
            self._sums.index_fill_(0, torch.tensor(sorted(self._read), device=self._sums.device), 0.0)
            self._read.clear()
        self._host = None
        return self._sums

    def _gather(self) -> None:
        if self._seen:
            self._shares, self._judged = torch.stack(list(self._seen.values()), dim=1).to(self._sums), list(self._seen)
            self._seen = {}

    def _row(self, position: int) -> list[float]:
        if self._host is None:
            self._gather()
            self._host = torch.cat([self._sums, self._shares], dim=1).tolist()
        return self._host[position]


def _norm(flat: Tensor, spans: Sequence[Span]) -> Tensor:
    """(K,) norm of these columns of (K, P)."""
    norms = [torch.linalg.vector_norm(flat[:, start:end], dim=1) for start, end in spans]
    whole: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms, dim=1), dim=1)
    return whole


def _wiggle(count: float, total: float, squares: float) -> float | None:
    if count < LEAST_LOSSES or not total:
        return None
    return _finite(math.sqrt(squares / (count - 2) / SECOND_DIFFERENCE) / abs(total / count))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
