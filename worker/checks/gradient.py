"""Comparison of a gradient with centred differences. Disagreement caused by kinks is recognised.

Source: CS231n notes, "Neural Networks Part 3: Learning and Evaluation", gradient checks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from worker.checks.report import CENTRE, Figure, Finding, Status

STEP = 1e-5  # of the centred differences
# Tried next: a kink between w - h and w + h may lie outside a smaller step.
SMALLER_STEPS = (1e-6, 1e-7)
COARSE_STEP = 1e-3  # If only this step agrees, the model rounds to single precision inside.
# Relative errors from the notes: good, acceptable only with kinks, wrong.
GOOD, KINKY, WRONG = 1e-7, 1e-4, 1e-2
# Rounding error of a loss of size 1, summed over a small batch.
ROUNDING = 16 * torch.finfo(torch.float64).eps
# Entries compared in each parameter: drawn from all, and drawn from those with a nonzero gradient.
RANDOM_ENTRIES, MOVING_ENTRIES = 3, 3


@dataclass(frozen=True)
class Compared:
    """The comparison for one entry of one parameter."""

    parameter: str
    analytic: float
    numeric: float  # by centred differences with STEP
    error: float  # relative, minus what rounding may explain; the smallest over the steps
    raw: float  # relative, with STEP, including rounding
    kink: bool = False  # it agrees with a step that avoids a kink, or the entry lies on a kink
    coarse: bool = False  # only a coarse step agrees: the model rounds to single precision


def compare(
    loss: Callable[[], float],
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    seed: int,
    until_s: float,
) -> list[Compared]:
    """Compare a few entries of each parameter with centred differences.

    Args:
        loss: computes the loss for the current values of ``parameters``, in double precision.
        parameters: by name. Each entry is moved by the step and restored.
        gradients: the gradients to check, by name.
        seed: of the choice of entries.
        until_s: the time on the monotonic clock to stop at. At least one entry is compared. Entries
            are taken from all parameters in turn.
    """
    found: list[Compared] = []
    for name, place in _in_turn(
        {name: choose_places(gradients[name], seed + n) for n, name in enumerate(parameters)}
    ):
        if found and time.monotonic() > until_s:
            break
        found.append(
            _compare(
                loss,
                name,
                parameters[name].view(-1),
                place,
                float(gradients[name].reshape(-1)[place]),
            )
        )
    return found


def choose_places(gradient: Tensor, seed: int) -> list[int]:
    """Return the flat indices of entries to compare in one parameter.

    Some are drawn from all entries, and some from the entries with a nonzero gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = gradient.detach().reshape(-1).cpu()
    moving = flat.nonzero().flatten()
    places = torch.randperm(len(flat), generator=generator)[:RANDOM_ENTRIES].tolist()
    places += moving[torch.randperm(len(moving), generator=generator)[:MOVING_ENTRIES]].tolist()
    return list(dict.fromkeys(int(place) for place in places))


def judge(
    compared: Sequence[Compared], when: str, n_parameters: int, configuration: str = CENTRE
) -> Finding:
    """Return the finding for the compared entries, using the thresholds of the notes.

    Args:
        compared: the entries.
        when: the point of the training, for the name of the finding.
        n_parameters: how many tensors the model has.
        configuration: the name of the configuration.
    """
    name = f"gradient {when}"
    worst = max(compared, key=lambda one: one.error)
    kinks = sum(one.kink for one in compared)
    looked = len({one.parameter for one in compared})
    smooth = median([one.raw for one in compared if not one.kink] or [0.0])
    figures: dict[str, Figure] = {
        "error": worst.error,
        "typical": smooth,
        "parameter": worst.parameter,
    }
    figures |= {"entries": len(compared), "parameters": looked, "kinks": kinks}
    beyond = (
        f"at most {worst.error:.0e} beyond rounding" if worst.error else "nothing beyond rounding"
    )
    found = (
        f"{len(compared)} entries of {looked} of {n_parameters} tensors: median relative error "
        f"{smooth:.0e}, {beyond}"
    )
    found += f"; {kinks} at kinks, recognised" if kinks else ""
    where = (
        f"{worst.parameter}: the engine computes {worst.analytic:.6g}, differences give "
        f"{worst.numeric:.6g}. "
    )
    if worst.error > WRONG:
        means = (
            "The backward pass is wrong: a custom autograd function, a detach(), an operation in "
            "place, .data, or a rounding on the way."
        )
        return Finding(name, Status.FAILED, found, where + means, figures, configuration)
    if any(one.coarse for one in compared):
        means = (
            "The model rounds to single precision inside (float(), float32 constants): "
            "differences cannot resolve more."
        )
        return Finding(name, Status.WARNING, found, where + means, figures, configuration)
    if worst.error > (KINKY if kinks else GOOD):
        means = (
            "Rounding does not explain the error: a derivative is nearly right, or the loss has "
            "very large numbers."
        )
        return Finding(name, Status.WARNING, found, where + means, figures, configuration)
    return Finding(name, Status.PASSED, found, "", figures, configuration)


def _in_turn(places: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, int]]:
    for round_ in range(max((len(p) for p in places.values()), default=0)):
        yield from ((name, p[round_]) for name, p in places.items() if round_ < len(p))


def _compare(
    loss: Callable[[], float], name: str, flat: Tensor, place: int, analytic: float
) -> Compared:
    middle = loss()
    first = _Difference.at(loss, flat, place, STEP, middle)
    error, raw = first.error(analytic), first.raw(analytic)
    if error <= GOOD:
        return Compared(name, analytic, first.centred, error, raw)
    smaller = [_Difference.at(loss, flat, place, step, middle) for step in SMALLER_STEPS]
    best = min(error, *(difference.error(analytic) for difference in smaller))
    if best <= GOOD:
        return Compared(
            name, analytic, first.centred, best, raw, kink=not smaller[0].is_curved(first)
        )
    if smaller[-1].on_kink(analytic, smaller[0]):
        return Compared(name, analytic, first.centred, 0.0, raw, kink=True)
    coarse = _Difference.at(loss, flat, place, COARSE_STEP, middle).error(analytic)
    if best > KINKY and coarse < best / 10:
        return Compared(name, analytic, first.centred, coarse, raw, coarse=True)
    return Compared(name, analytic, first.centred, best, raw)


@dataclass(frozen=True)
class _Difference:
    """The slopes of the loss on both sides of a point."""

    step: float
    left: float  # slope between w - h and w
    right: float  # slope between w and w + h
    centred: float
    rounding: float  # rounding error of the centred slope

    @classmethod
    def at(
        cls, loss: Callable[[], float], flat: Tensor, place: int, step: float, middle: float
    ) -> _Difference:
        before = float(flat[place])
        flat[place] = before + step
        above, h_above = loss(), float(flat[place]) - before  # the step after rounding
        flat[place] = before - step
        below, h_below = loss(), before - float(flat[place])
        flat[place] = before
        rounding = ROUNDING * max(1.0, abs(above), abs(below)) / step
        return cls(
            step,
            (middle - below) / h_below,
            (above - middle) / h_above,
            (above - below) / (h_above + h_below),
            rounding,
        )

    def error(self, analytic: float) -> float:
        """Return the relative error minus what rounding may explain; 0 if both are zero."""
        return _relative(abs(analytic - self.centred) - self.rounding, analytic, self.centred)

    def raw(self, analytic: float) -> float:
        """Return the relative error, including rounding."""
        return _relative(abs(analytic - self.centred), analytic, self.centred)

    @property
    def jump(self) -> float:
        """The difference between the slopes on the two sides."""
        return abs(self.right - self.left)

    def is_curved(self, wider: _Difference) -> bool:
        """Return whether the loss is a smooth curve here.

        On a smooth curve the jump shrinks in proportion to the step. The error then comes from the
        curvature and not from a kink.
        """
        return (
            abs(self.jump - wider.jump * self.step / wider.step)
            <= 0.5 * wider.jump * self.step / wider.step + 4 * self.rounding
        )

    def on_kink(self, analytic: float, wider: _Difference) -> bool:
        """Return whether the point itself is a kink and the gradient lies between its two slopes.

        At a kink the slopes on the two sides stay apart however small the step.
        """
        low, high = sorted((self.left, self.right))
        within = low - 2 * self.rounding <= analytic <= high + 2 * self.rounding
        # On a smooth curve the jump would shrink with the step, to a tenth.
        stays = self.jump > 0.5 * wider.jump and self.jump > 10 * self.rounding
        return within and stays


def _relative(gap: float, one: float, other: float) -> float:
    size = max(abs(one), abs(other))
    if math.isnan(gap) or math.isnan(size):
        return math.inf
    return gap / size if gap > 0 else 0.0
