"""How the steps of an array are computed: eagerly, as a traced graph, or compiled. Chosen by timing, and by the work that is left.

Eager steps cost nothing to prepare, so every array begins with them. Once the seconds that a faster way would save, on the work at hand or
on as much work as has been done already, outweigh what preparing it costs, it is prepared, held against the eager step on the array's own
tensors, and timed against it. What fails is told once, and costs nothing but the time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from worker.training.called import LoneNetwork
from worker.training.compiler import Compiler, CompilerMissing
from worker.training.graph import Graph, Untraceable, given, trace
from worker.training.interface import Watch
from worker.training.networks import ChainNetwork
from worker.training.stack import Stack
from worker.training.step import Batch, Plan, StepResult, Whole
from worker.training.structure import signature

EAGER, TRACED, COMPILED, AUTO = "eager", "traced", "compiled", "auto"
WAYS = (AUTO, EAGER, TRACED, COMPILED)
COMPILING_S = 600.0  # a large model on a slow machine; nobody should take the worker for stuck before
TRACING_S = 2.0  # imports and two passes through the model
GUESSED_GAINS = {  # times the eager step, before anything was measured here
    ("chain", TRACED): 1.0,  # by hand already, and in place
    ("stacked", TRACED): 1.1,
    ("lone", TRACED): 1.0,
    ("chain", COMPILED): 1.4,
    ("stacked", COMPILED): 1.3,
    ("lone", COMPILED): 1.3,
}
CLEAR_GAIN = 1.03  # less is noise
TIMED_ROUNDS = 5
TOLERANCE = {torch.float64: 1e-8}  # of the norm of a slot's gradient, and of its update
LOOSE_TOLERANCE = 3e-2  # float32: an example at a kink may fall to either side; a wrong graph is off by far more


class Sample(NamedTuple):
    """Some steps on one batch to try things with."""

    inputs: Tensor
    targets: Tensor
    plan: Plan


@dataclass
class Case:
    """What is known of one kind of step."""

    slot_steps: int = 0  # done eagerly
    seconds: float = 0.0  # that they took
    tried: set[str] = field(default_factory=set)
    whole: Whole | None = None
    told: str = ""


class Backends:
    """The ways of one engine. ``told`` says how steps are computed now, and why."""

    def __init__(self, device: torch.device, log: Callable[[str], None], wanted: str = AUTO, compiler: Compiler | None = None) -> None:
        """``wanted``: one way for all steps, prepared before the first, or "auto". ``compiler``: by default this user's."""
        if wanted not in WAYS:
            raise ValueError(f"backend = {wanted!r}: use one of {', '.join(WAYS)}")
        self.told = ""
        self.prepared_s = 0.0  # spent so far on preparing ways
        self._wanted = wanted
        self._log = log
        self._compiler = compiler or Compiler()
        self._compiles = device.type == "cpu"  # on a GPU it has not been measured
        self._cases: dict[Hashable, Case] = {}
        self._said: set[str] = set()

    def equip(self, stack: Stack, shared: bool, left: int, sample: Callable[[], Sample], watch: Watch) -> None:
        """Gives the stack the way that is best for its next steps.

        Args:
            stack: the array's tensors; they are as before afterwards.
            shared: whether all slots see the same batches.
            left: steps times slots that are still to be done, as far as is known.
            sample: one step of them.
            watch: is told of a compilation.
        """
        case = self._cases.setdefault(self._key(stack, shared), Case())
        way = self._worth_trying(stack, case, left, shared)
        if way is not None:
            case.tried.add(way)
            watch.beat("compiling", COMPILING_S)
            started = time.perf_counter()
            self._try(way, stack, case, sample(), shared)
            self.prepared_s += time.perf_counter() - started
            watch.beat()
        stack.use(case.whole)
        told = case.told or _unprepared(stack, case, self._compiles)
        self.told = f"{told}, {stack.width} at a time"

    def note(self, stack: Stack, shared: bool, slot_steps: int, seconds: float) -> None:
        """Hears what steps took."""
        case = self._cases.setdefault(self._key(stack, shared), Case())
        if case.whole is None:
            case.slot_steps += slot_steps
            case.seconds += seconds

    def _worth_trying(self, stack: Stack, case: Case, left: int, shared: bool) -> str | None:
        ways = [way for way in (COMPILED, TRACED) if way not in case.tried and (way == TRACED or self._compiles)]
        if stack.model.structure.alone or not ways or COMPILED in case.tried:
            return None
        if self._wanted != AUTO:
            return self._wanted if self._wanted in ways else None
        if not case.slot_steps:
            return None  # nobody knows yet what a step takes
        work_s = max(left, case.slot_steps) * case.seconds / case.slot_steps
        if work_s <= TRACING_S:
            return None
        saved = {way: work_s * (1 - 1 / self._gain(stack, way)) - self._cost_s(stack, shared, way) for way in ways}
        best = max(ways, key=lambda way: saved[way])
        if saved[best] <= 0:
            return None
        return best

    def _gain(self, stack: Stack, way: str) -> float:
        kind = _kind(stack)
        return max(1e-9, self._compiler.costs.gain(f"{kind}/{way}", GUESSED_GAINS[kind, way]))

    def _cost_s(self, stack: Stack, shared: bool, way: str) -> float:
        return TRACING_S + (self._compiler.costs.cost_s(self._name(stack, shared)) if way == COMPILED else 0.0)

    def _try(self, way: str, stack: Stack, case: Case, sample: Sample, shared: bool) -> None:
        """Prepares a way and keeps it if it is the faster one."""
        started = time.perf_counter()
        try:
            whole = self._prepared(way, stack, sample, shared)
            prepared_s = time.perf_counter() - started
            wrong, gain = _compared(stack, whole, sample)
        except (CompilerMissing, Untraceable) as error:
            self._give_up(case, way, str(error))
            return
        except Exception as error:  # of the tracer, the compiler or its tools, whatever they raise: the eager step goes on
            self._give_up(case, way, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            return
        if wrong is not None:
            self._give_up(case, way, wrong)
            return
        self._compiler.costs.note_gain(f"{_kind(stack)}/{way}", gain)
        if gain >= CLEAR_GAIN or self._wanted == way:
            case.whole = whole
            case.told = f"{way}: {gain:.2g} times as fast as eager steps"
        else:
            case.told = f"{_plainly(stack)}: {way} steps take {1 / gain:.2g} times as long"
        trials = "1 trial" if stack.width == 1 else f"{stack.width} trials"
        self._log(f"steps of {trials}: {case.told} ({prepared_s:.1f} s to prepare)")

    def _prepared(self, way: str, stack: Stack, sample: Sample, shared: bool) -> Whole:
        if way == COMPILED and (why := self._compiler.missing()) is not None:
            raise CompilerMissing(why)
        inputs, columns = stack.ready(sample.inputs, sample.plan, 0)
        batch, keys = Batch(inputs, sample.targets, columns), sample.plan.keys[0]
        graph = trace(stack, shared, batch, keys, to_compile=way == COMPILED)
        if way == TRACED:
            return Graph(graph, sorted(columns), compiled=False)
        run = self._compiler.compile(graph, given(stack, batch, keys), self._name(stack, shared))
        return Graph(run, sorted(columns), compiled=True)

    def _give_up(self, case: Case, way: str, why: str) -> None:
        case.told = f"{EAGER}: {why}" if case.whole is None else case.told
        if why not in self._said:
            self._said.add(why)
            self._log(f"steps are not {way}: {why}; training goes on without")

    def _key(self, stack: Stack, shared: bool) -> Hashable:
        return stack.model.structure, stack.form, shared

    def _name(self, stack: Stack, shared: bool) -> str:
        """The same in every process: names in the memory of costs what is compiled."""
        told = (signature(stack.model.module), stack.model.recipe.key, stack.form, shared)
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _kind(stack: Stack) -> str:
    if isinstance(stack.network, ChainNetwork):
        return "chain"
    return "lone" if isinstance(stack.network, LoneNetwork) else "stacked"


def _plainly(stack: Stack) -> str:
    """What the eager step of this stack is called."""
    return "plain" if isinstance(stack.network, LoneNetwork) else EAGER


def _unprepared(stack: Stack, case: Case, compiles: bool) -> str:
    if stack.model.structure.alone:
        return "plain: what cannot be stacked is trained as it is"
    if not compiles:
        return f"{_plainly(stack)}: compiling is for CPUs so far"
    why = "so little work would not repay a compiler" if case.slot_steps else "the first steps tell what compiling would save"
    return f"{_plainly(stack)}: {why}"


def _compared(stack: Stack, whole: Whole, sample: Sample) -> tuple[str | None, float]:
    """What the two ways disagree on, None if they agree, and how many times as fast ``whole`` is. Nothing is moved in the end."""
    kept = {name: tensor.clone() for name, tensor in stack.rows.items()}
    found: list[tuple[StepResult, Tensor]] = []
    seconds = [float("inf"), float("inf")]
    try:
        for position in range(2 * (TIMED_ROUNDS + 1)):
            way = position % 2
            stack.use(whole if way else None)
            if position < 2:
                result = stack.step(sample.inputs, sample.targets, sample.plan, 0)
                found.append((result, stack.rows["flat"] - kept["flat"]))
            started = time.perf_counter()
            for number in range(len(sample.plan.keys)):
                stack.step(sample.inputs, sample.targets, sample.plan, number)
            _wait(stack)
            if position >= 2:
                seconds[way] = min(seconds[way], time.perf_counter() - started)
            for name, tensor in kept.items():
                stack.rows[name].copy_(tensor)
    finally:
        stack.use(None)
        for name, tensor in kept.items():
            stack.rows[name].copy_(tensor)
    return _difference(*found), seconds[0] / seconds[1]


def _difference(eager: tuple[StepResult, Tensor], other: tuple[StepResult, Tensor]) -> str | None:
    """What is not the same in two steps from the same state, slot by slot; exploded slots say nothing."""
    (mine, update), (theirs, other_update) = eager, other
    limit = TOLERANCE.get(update.dtype, LOOSE_TOLERANCE)
    gaps = {
        "loss": (mine.loss - theirs.loss).abs() / mine.loss.abs().clamp(min=1),
        "penalty": (mine.penalty - theirs.penalty).abs() / mine.penalty.abs().clamp(min=1),
        "update": _norm(update - other_update) / _norm(update).clamp(min=torch.finfo(update.dtype).tiny),
    }
    sound = torch.isfinite(mine.loss) & torch.isfinite(mine.penalty) & torch.isfinite(_norm(update))
    for name, gap in gaps.items():
        worst = torch.where(sound, gap, 0.0).amax().item()
        if not worst <= limit:
            return f"the {name} of a prepared step differs from the eager one by {worst:.2g}"
    return None


def _norm(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms


def _wait(stack: Stack) -> None:
    device = stack.rows["flat"].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
