"""How many trials to train together: measured once per structure, on scratch weights."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from worker.tasks import trees
from worker.training.model.networks import network_for
from worker.training.model.structure import Model, Structure, chain_of
from worker.training.stacked.rows import fresh_rows
from worker.training.stacked.stack import Stack
from worker.training.stacked.step import Pace
from worker.training.stacked.training_data import Setting

# Wider arrays were never faster on a CPU: the weights leave the cache.
CPU_WIDTHS = (1, 2, 4, 8, 16, 32, 64)
# A GPU is bound by kernel launches: the time is nearly flat until the device is full.
GPU_WIDTHS = (1, 16, 64, 256, 1024, 4096)
CPU_DEFAULT, GPU_DEFAULT = 32, 256
# Of parameters in an array on a CPU. More would leave the cache between two steps.
CACHE_BYTES = 4 << 20
# Steps of one trial. Measuring costs some 700 steps, so with less work than this the default width
# is faster.
WORTH_MEASURING = 10_000
TIMED_STEPS, WARM_STEPS = 4, 2
LONG_STEP_S = 2e-3  # a shorter step is all overhead, which threads add to
# More threads must take less than this share of the time: the cores are not always free.
THREADS_GAIN = 0.8
# A wider array must take less than this share of the time per trial.
CLEAR_GAIN = 0.97
# The same of one that leaves the cache. It is measured while others may be idle, and slows down
# when they share the cache: by a fifth in two processes with 64 x 1 MB.
CLEAR_GAIN_BEYOND_CACHE = 0.9
# The fixed width may take up to this multiple of the fastest width's time, which is noise.
FIXED_LOSS = 1.05
# Stacked on a CPU they may take more than twice as long.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Widths:
    """The widths of one engine, by structure."""

    def __init__(self, device: torch.device, fixed: int | None) -> None:
        self._device = device
        self._fixed = fixed
        self._measure: dict[Structure, int] = {}
        # The widest that was tried, where it was the fastest. Wider ones may be faster.
        self._at_least: dict[Structure, int] = {}
        self._ceilings: dict[Structure, int] = {}

    def limit(self, structure: Structure, width: int) -> None:
        """Never use more than ``width`` again, because memory ran out."""
        self._ceilings[structure] = max(1, width)

    def guess(self, model: Model) -> int:
        """Return the width that is known without measuring.

        A measured width is used even if a width is fixed. The fixed width is then the maximum.
        """
        structure = model.structure
        unsettled = max(self._default(model), self._at_least.get(structure, 1))
        width = min(self._measure.get(structure) or unsettled, self._fixed or sys.maxsize)
        return min(width, self._ceilings.get(structure, width))

    @property
    def default(self) -> int:
        """The width for a structure that was not seen before."""
        return self._fixed or (GPU_DEFAULT if self._device.type == "cuda" else CPU_DEFAULT)

    def to_claim(self, model: Model) -> int:
        """Return how many trials like this one to claim: as many as an array holds.

        On a GPU it is twice as many until a wider array is not faster, because measuring takes that
        many. So the width climbs from claim to claim.
        """
        structure = model.structure
        climbs = (
            self._device.type == "cuda"
            and not self._fixed
            and not {structure} & (self._measure.keys() | self._ceilings.keys())
        )
        return min(self.guess(model) * 2, GPU_WIDTHS[-1]) if climbs else self.guess(model)

    def _default(self, model: Model) -> int:
        """Return the width for a structure that was not measured."""
        if self._fixed or self._device.type == "cuda":
            return self.default
        return min(CPU_DEFAULT, self._cached(model))

    def _cached(self, model: Model) -> int:
        """Return how many trials' parameters a CPU's cache holds. On a GPU nothing limits them."""
        if self._device.type == "cuda":
            return sys.maxsize
        row_bytes = model.layout.size * next(model.module.parameters()).element_size()
        return max(1, round(CACHE_BYTES / row_bytes))

    def _needed(self, model: Model, width: int) -> float:
        """Return the share of the time of narrower arrays that this width must stay below."""
        if width == self._fixed:
            return FIXED_LOSS
        return CLEAR_GAIN if width <= self._cached(model) else CLEAR_GAIN_BEYOND_CACHE

    def choose(
        self, model: Model, n_trials: int, n_steps: int, measure: Callable[[int], float]
    ) -> int:
        """Return the width for ``n_trials`` that have ``n_steps`` left together.

        A fixed width is used as it is, except for models on a CPU whose stacking may cost more than
        it gains (convolutions). For these it is the largest width that is tried, and a smaller one
        is used if it is faster.

        Args:
            model: a model of the structure.
            n_trials: the number of trials.
            n_steps: the steps that they have left together.
            measure: returns the seconds per step and slot at a given width.
        """
        structure = model.structure
        if (
            structure in self._measure
            or n_trials <= self._at_least.get(structure, 1)
            or self._fixed == 1
            or self._sure(model, n_steps)
        ):
            return self.guess(model)
        ladder = GPU_WIDTHS if self._device.type == "cuda" else CPU_WIDTHS
        most = min(n_trials, self._fixed or ladder[-1], self._ceilings.get(structure, n_trials))
        # What is known to be faster than anything narrower is measured again, to compare with.
        least = min(self._at_least.get(structure, 1), most)
        candidates = sorted({least, most, *(width for width in ladder if least < width <= most)})
        best, best_s = 1, float("inf")
        for width in candidates:
            try:
                seconds = measure(width)
            except Exception:
                # Too wide, or it cannot be stacked. The array itself meets the same error and
                # reports it.
                break
            if seconds < best_s * self._needed(model, width):
                best, best_s = width, seconds
            elif seconds > 1.5 * best_s:
                break
        if best == most < min(self._fixed or ladder[-1], self._ceilings.get(structure, ladder[-1])):
            self._at_least[structure] = best
            return best  # the widest that so few trials allow; climb when there are more
        self._measure[structure] = best
        return self.guess(model)

    def _sure(self, model: Model, n_steps: int) -> bool:
        """Return whether the fixed or default width needs no measuring."""
        on_cpu = self._device.type == "cpu"
        if self._fixed is not None:
            return not (
                on_cpu
                and any(isinstance(module, CONVOLUTIONS) for module in model.module.modules())
            )
        return n_steps < WORTH_MEASURING and not (on_cpu and chain_of(model.module) is None)


class Threads:
    """How many threads an array uses on the CPU: more than one only where that is faster.

    Small tensors gain nothing. If another process uses the cores, each operation waits for a thread
    that is not running: with two threads, the digits perceptron was seen to train tens of times
    slower beside a busy neighbour.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._chosen: dict[Structure, int] = {}

    def choose(self, structure: Structure, step_s: Callable[[], float]) -> int:
        """Return the number of threads for arrays of this structure.

        ``step_s`` returns the seconds of a step with the threads that are set.
        """
        if structure not in self._chosen:
            self._chosen[structure] = self._measure(step_s)
        return self._chosen[structure]

    def _measure(self, step_s: Callable[[], float]) -> int:
        if self.most == 1:
            return 1
        torch.set_num_threads(1)
        try:
            alone_s = step_s()
            if alone_s < LONG_STEP_S:
                return 1
            torch.set_num_threads(self.most)
            return self.most if step_s() < alone_s * THREADS_GAIN else 1
        except Exception:
            # Too wide, or it cannot be trained. The array itself meets the same error and reports
            # it.
            return 1


def slot_step_s(
    model: Model, shapes: Sequence[tuple[int, ...]], width: int, setting: Setting
) -> float:
    """Measure the seconds per step and slot, with ``width`` slots and scratch weights."""
    row = fresh_rows([model], [0], setting.device, setting.dtype)
    rows = {name: tensor.repeat_interleave(width, 0) for name, tensor in row.items()}
    network = network_for(model, lone=width == 1)
    batches, train = setting.batches(model.recipe.batch_size), setting.parts(model.recipe).train
    stack = Stack(
        model, network, setting.objective(model.recipe), rows, shapes, setting.frame(model)
    )
    batch = batches.rows(0, 1)
    plan = stack.plan(batch.expand(TIMED_STEPS + WARM_STEPS, -1), True, Pace.start(width))
    inputs, targets = trees.pick(train.inputs, batch[0]), trees.pick(train.targets, batch[0])
    passed = []
    for number in range(TIMED_STEPS + WARM_STEPS):
        started = time.perf_counter()
        stack.step(inputs, targets, plan, number)
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)
        passed.append(time.perf_counter() - started)
    return min(passed[WARM_STEPS:]) / width
