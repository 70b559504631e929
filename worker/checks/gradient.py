"""Whether a gradient agrees with centred differences, and whether where it does not a kink is to blame.

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

STEP = 1e-5  # of the differences
SMALLER_STEPS = (1e-6, 1e-7)  # a kink between w - h and w + h is left behind by a smaller h
COARSE_STEP = 1e-3  # what only this one resolves was rounded to single precision inside the model
GOOD, KINKY, WRONG = 1e-7, 1e-4, 1e-2  # relative errors; the notes': good, fine only where there are kinks, wrong
ROUNDING = 16 * torch.finfo(torch.float64).eps  # of a loss of size 1, summed over a small batch
RANDOM_ENTRIES, MOVING_ENTRIES = 3, 3  # looked at in each parameter: any, and such with a gradient that is not zero


@dataclass(frozen=True)
class Compared:
    """One entry of one parameter."""

    parameter: str
    analytic: float
    numeric: float  # by centred differences of STEP
    error: float  # relative, the smallest over the steps, less what rounding may explain
    raw: float  # relative, of STEP, as it is
    kink: bool = False  # it agrees once a kink is out of the way, or lies on one
    coarse: bool = False  # only a coarse difference agrees: single precision inside


def compare(
    loss: Callable[[], float],
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    seed: int,
    until_s: float,
) -> list[Compared]:
    """Compares a few entries of each parameter; stops at ``until_s`` on the monotonic clock, with one entry at least.

    Args:
        loss: evaluates the loss for the present values of ``parameters``, in double precision.
        parameters: by name; moved by the step and put back.
        gradients: what is checked, by name.
        seed: of the choice of entries.
        until_s: when to stop; entries are taken in turn from all parameters, so that each has its share.
    """
    found: list[Compared] = []
    for name, place in _in_turn({name: chosen(gradients[name], seed + n) for n, name in enumerate(parameters)}):
        if found and time.monotonic() > until_s:
            break
        found.append(_compared(loss, name, parameters[name].view(-1), place, float(gradients[name].reshape(-1)[place])))
    return found


def chosen(gradient: Tensor, seed: int) -> list[int]:
    """Places to look at in one parameter: some at random, and some at random where the gradient is not zero."""
    generator = torch.Generator().manual_seed(seed)
    flat = gradient.detach().reshape(-1).cpu()
    moving = flat.nonzero().flatten()
    places = torch.randperm(len(flat), generator=generator)[:RANDOM_ENTRIES].tolist()
    places += moving[torch.randperm(len(moving), generator=generator)[:MOVING_ENTRIES]].tolist()
    return list(dict.fromkeys(int(place) for place in places))


def judged(compared: Sequence[Compared], when: str, n_parameters: int, configuration: str = CENTRE) -> Finding:
    """What the comparison says, by the notes' thresholds; ``when`` is where in the training."""
    name = f"gradient {when}"
    worst = max(compared, key=lambda one: one.error)
    kinks = sum(one.kink for one in compared)
    looked = len({one.parameter for one in compared})
    smooth = median([one.raw for one in compared if not one.kink] or [0.0])
    figures: dict[str, Figure] = {"error": worst.error, "typical": smooth, "parameter": worst.parameter}
    figures |= {"entries": len(compared), "parameters": looked, "kinks": kinks}
    beyond = f"at most {worst.error:.0e} beyond rounding" if worst.error else "nothing beyond rounding"
    found = f"{len(compared)} entries of {looked} of {n_parameters} tensors: relative error {smooth:.0e} in the middle, {beyond}"
    found += f"; {kinks} at kinks, told apart" if kinks else ""
    where = f"{worst.parameter}: the engine's {worst.analytic:.6g}, differences say {worst.numeric:.6g}. "
    if worst.error > WRONG:
        means = (
            "The backward pass is wrong: a custom autograd function, a detach(), an operation in place, .data, or a rounding on the way."
        )
        return Finding(name, Status.FAILED, found, where + means, figures, configuration)
    if any(one.coarse for one in compared):
        means = "The model rounds to single precision inside (float(), float32 constants): differences cannot tell more."
        return Finding(name, Status.WARNING, found, where + means, figures, configuration)
    if worst.error > (KINKY if kinks else GOOD):
        means = "More than rounding explains: a derivative that is nearly right, or a loss of very large numbers."
        return Finding(name, Status.WARNING, found, where + means, figures, configuration)
    return Finding(name, Status.PASSED, found, "", figures, configuration)


def _in_turn(places: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, int]]:
    for round_ in range(max((len(p) for p in places.values()), default=0)):
        yield from ((name, p[round_]) for name, p in places.items() if round_ < len(p))


def _compared(loss: Callable[[], float], name: str, flat: Tensor, place: int, analytic: float) -> Compared:
    middle = loss()
    first = _Difference.at(loss, flat, place, STEP, middle)
    error, raw = first.error(analytic), first.raw(analytic)
    if error <= GOOD:
        return Compared(name, analytic, first.centred, error, raw)
    smaller = [_Difference.at(loss, flat, place, step, middle) for step in SMALLER_STEPS]
    best = min(error, *(difference.error(analytic) for difference in smaller))
    if best <= GOOD:
        return Compared(name, analytic, first.centred, best, raw, kink=not smaller[0].curved(first))
    if smaller[-1].on_kink(analytic, smaller[0]):
        return Compared(name, analytic, first.centred, 0.0, raw, kink=True)
    coarse = _Difference.at(loss, flat, place, COARSE_STEP, middle).error(analytic)
    if best > KINKY and coarse < best / 10:
        return Compared(name, analytic, first.centred, coarse, raw, coarse=True)
    return Compared(name, analytic, first.centred, best, raw)


@dataclass(frozen=True)
class _Difference:
    """The loss on both sides of a point."""

    step: float
    left: float  # slope between w - h and w
    right: float  # slope between w and w + h
    centred: float
    rounding: float  # of the centred slope

    @classmethod
    def at(cls, loss: Callable[[], float], flat: Tensor, place: int, step: float, middle: float) -> _Difference:
        before = float(flat[place])
        flat[place] = before + step
        above, h_above = loss(), float(flat[place]) - before  # as far as it really moved, in binary
        flat[place] = before - step
        below, h_below = loss(), before - float(flat[place])
        flat[place] = before
        rounding = ROUNDING * max(1.0, abs(above), abs(below)) / step
        return cls(step, (middle - below) / h_below, (above - middle) / h_above, (above - below) / (h_above + h_below), rounding)

    def error(self, analytic: float) -> float:
        """Relative error, less what rounding may explain; 0 where both are zero."""
        return _relative(abs(analytic - self.centred) - self.rounding, analytic, self.centred)

    def raw(self, analytic: float) -> float:
        """Relative error as it is."""
        return _relative(abs(analytic - self.centred), analytic, self.centred)

    @property
    def jump(self) -> float:
        """By how much the slopes on the two sides differ."""
        return abs(self.right - self.left)

    def curved(self, wider: _Difference) -> bool:
        """Whether the jump shrinks with the step as it does on a smooth curve, whose bend alone then explains the error."""
        return abs(self.jump - wider.jump * self.step / wider.step) <= 0.5 * wider.jump * self.step / wider.step + 4 * self.rounding

    def on_kink(self, analytic: float, wider: _Difference) -> bool:
        """Whether the point itself is a kink: the slopes on its two sides stay apart however small the step, and hold the gradient."""
        low, high = sorted((self.left, self.right))
        within = low - 2 * self.rounding <= analytic <= high + 2 * self.rounding
        stays = (
            self.jump > 0.5 * wider.jump and self.jump > 10 * self.rounding
        )  # of a smooth curve it would shrink with the step, to a tenth
        return within and stays


def _relative(gap: float, one: float, other: float) -> float:
    size = max(abs(one), abs(other))
    if math.isnan(gap) or math.isnan(size):
        return math.inf
    return gap / size if gap > 0 else 0.0
