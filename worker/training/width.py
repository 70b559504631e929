"""How many trials to train together: measured once for each structure, on scratch weights."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from worker.training.networks import network_for
from worker.training.rows import fresh_row
from worker.training.setting import Setting
from worker.training.stack import Stack
from worker.training.step import Pace
from worker.training.structure import Model, Structure, chain_of

CPU_WIDTHS = (1, 8, 16, 32, 64)  # wider never paid on a CPU: the weights leave the cache
GPU_WIDTHS = (1, 16, 64, 256, 1024, 4096)  # bound by launches: time is nearly flat until the device is full
CPU_DEFAULT, GPU_DEFAULT = 32, 256
WORTH_MEASURING = 10_000  # steps of one trial; measuring costs some 700, less work than this is done sooner with the default
TIMED_STEPS, WARM_STEPS = 4, 2
LONG_STEP_S = 2e-3  # a shorter step is all overhead, which threads add to
THREADS_GAIN = 0.8  # more threads must take less than this share of the time: the cores are not always free
CLEAR_GAIN = 0.97  # a wider array must take less than this share of the time for each trial
FIXED_LOSS = 1.05  # a width that is given may take so much longer than the fastest: that is noise
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # stacked on a CPU they may take more than twice as long


class Widths:
    """The widths of one engine, by structure."""

    def __init__(self, device: torch.device, fixed: int | None) -> None:
        self._device = device
        self._fixed = fixed
        self._measured: dict[Structure, int] = {}
        self._ceilings: dict[Structure, int] = {}

    def limit(self, structure: Structure, width: int) -> None:
        """Memory ran out: never again wider than ``width``."""
        self._ceilings[structure] = max(1, width)

    def guess(self, structure: Structure) -> int:
        """What is known without measuring. What was measured holds even where a width is given: that is the widest that may be used."""
        width = min(self._measured.get(structure, self.default), self._fixed or sys.maxsize)
        return min(width, self._ceilings.get(structure, width))

    @property
    def default(self) -> int:
        """For a structure that nobody has measured."""
        return self._fixed or (GPU_DEFAULT if self._device.type == "cuda" else CPU_DEFAULT)

    def choose(self, model: Model, n_trials: int, n_steps: int, measure: Callable[[int], float]) -> int:
        """The width for ``n_trials`` that have ``n_steps`` left together; ``measure`` tells seconds a step for one of so many slots.

        A given width is taken as it is, but for models on a CPU whose stacking may cost more than it gains (convolutions): there it is
        the widest that is tried, and a narrower one is used if it is faster.
        """
        structure = model.structure
        if structure in self._measured or n_trials == 1 or self._fixed == 1 or self._sure(model, n_steps):
            return self.guess(structure)
        ladder = GPU_WIDTHS if self._device.type == "cuda" else CPU_WIDTHS
        most = min(n_trials, self._fixed or ladder[-1], self._ceilings.get(structure, n_trials))
        candidates = sorted({most, *(width for width in ladder if width <= most)})
        best, best_s = 1, float("inf")
        for width in candidates:
            try:
                seconds = measure(width)
            except Exception:
                break  # too wide, or not to be stacked: the array itself meets the same error, and tells it
            if seconds < best_s * (FIXED_LOSS if width == self._fixed else CLEAR_GAIN):
                best, best_s = width, seconds
            elif seconds > 1.5 * best_s:
                break
        if best == most < (self._fixed or ladder[-1]):
            return best  # the widest that so few trials allow: measure again when there are more
        self._measured[structure] = best
        return self.guess(structure)

    def _sure(self, model: Model, n_steps: int) -> bool:
        """Whether the width that is given, or the default, needs no measuring."""
        on_cpu = self._device.type == "cpu"
        if self._fixed is not None:
            return not (on_cpu and any(isinstance(module, CONVOLUTIONS) for module in model.module.modules()))
        return n_steps < WORTH_MEASURING and not (on_cpu and chain_of(model.module) is None)


class Threads:
    """How many threads an array uses on the CPU: more than one only where that was measured to pay.

    Small tensors gain nothing, and where another process wants the cores each operation waits for a thread that is not
    running: with two threads the digits perceptron was seen to train tens of times slower beside a busy neighbour.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._chosen: dict[Structure, int] = {}

    def choose(self, structure: Structure, step_s: Callable[[], float]) -> int:
        """The number for arrays of this structure; ``step_s`` tells the seconds of a step with the threads that are set."""
        if structure not in self._chosen:
            self._chosen[structure] = self._measured(step_s)
        return self._chosen[structure]

    def _measured(self, step_s: Callable[[], float]) -> int:
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
            return 1  # too wide, or not to be trained: the array itself meets the same error, and tells it


def slot_step_s(model: Model, shapes: Sequence[tuple[int, ...]], width: int, setting: Setting) -> float:
    """Seconds that one step takes for each of ``width`` slots with scratch weights."""
    row, network = fresh_row(model, 0, setting.device, setting.dtype), network_for(model, lone=width == 1)
    batches, train = setting.batches(model.recipe.batch_size), setting.parts(model.recipe).train
    stack = Stack(model, network, setting.objective(model.recipe), [row] * width, shapes, setting.frame(model))
    rows = batches.rows(0, 1)
    plan = stack.plan(rows.expand(TIMED_STEPS + WARM_STEPS, -1), True, Pace.start(width))
    inputs, targets = train.inputs[rows[0]], train.targets[rows[0]]
    passed = []
    for number in range(TIMED_STEPS + WARM_STEPS):
        started = time.perf_counter()
        stack.step(inputs, targets, plan, number)
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)
        passed.append(time.perf_counter() - started)
    return min(passed[WARM_STEPS:]) / width
