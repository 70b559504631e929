"""The choice of how an array's steps are computed: eagerly, as a traced graph, or compiled.

Eager steps need no preparation, so every array begins with them. A faster backend is prepared once
the time that it would save outweighs its preparation. The saving is estimated for the work that is
left, or for as much work as has been done, whichever is more. A prepared backend is compared with
the eager step on the array's own tensors, and timed against it. A failure is logged once, and costs
nothing but the time.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from worker.tasks.trees import Tree
from worker.training.compute.compiler import Compiler, CompilerMissing
from worker.training.compute.graph import Graph, Untraceable, copy_inputs, trace
from worker.training.math.precision import BF16
from worker.training.model.networks import ChainNetwork
from worker.training.model.vmap_networks import LoneNetwork
from worker.training.stacked.stack import Stack
from worker.training.stacked.step import Batch, Plan, StepResult, Whole
from worker.training.types import Watch

EAGER, TRACED, COMPILED, AUTO = "eager", "traced", "compiled", "auto"
WAYS = (AUTO, EAGER, TRACED, COMPILED)
# Enough for a large model on a slow machine. The worker must not be taken for stuck before.
COMPILING_S = 600.0
TRACING_S = 2.0  # imports and two passes through the model
GUESSED_GAINS = {  # speed relative to eager steps, assumed before anything was measured here
    ("chain", TRACED): 1.0,  # its backward pass is hand-written and works in place already
    ("stacked", TRACED): 1.1,
    ("lone", TRACED): 1.0,
    ("chain", COMPILED): 1.4,
    ("stacked", COMPILED): 1.3,
    ("lone", COMPILED): 1.3,
}
CLEAR_GAIN = 1.03  # a smaller gain is noise
TIMED_ROUNDS = 5
TOLERANCE = {torch.float64: 1e-8}  # relative to the norm of a slot's gradient and of its update
# For float32: an example at a kink may fall to either side. A wrong graph differs by far more.
LOOSE_TOLERANCE = 3e-2
# For bfloat16, of 8 bits: a compiler does not round between operations that it fuses.
BF16_TOLERANCE = 1e-1
LOOK_S = 0.1  # between two looks, while something is compiled, whether to stop
Made = TypeVar("Made")


class StoppedMeanwhile(Exception):
    """The worker was told to stop while a backend was prepared."""


class Sample(NamedTuple):
    """Some steps on one batch, to try a backend with."""

    inputs: Tree
    targets: Tree
    plan: Plan


@dataclass
class Case:
    """What is known about one kind of step."""

    slot_steps: int = 0  # steps x slots done eagerly
    seconds: float = 0.0  # seconds that these took
    tried: set[str] = field(default_factory=set)
    whole: Whole | None = None
    told: str = ""
    gave_up: bool = False  # whether its modules cannot be compiled


class Backends:
    """The backends of one engine. ``told`` says how steps are computed now, and why."""

    def __init__(
        self,
        device: torch.device,
        log: Callable[[str], None],
        wanted: str = AUTO,
        compiler: Compiler | None = None,
    ) -> None:
        """Set up the backends.

        Args:
            device: the engine's device.
            log: called with one line for each backend that is prepared or fails.
            wanted: "auto", or one backend for all steps, prepared before the first step.
            compiler: by default the one of this user.
        """
        if wanted not in WAYS:
            raise ValueError(f"backend = {wanted!r}: use one of {', '.join(WAYS)}")
        self.told = ""
        self.prepared_s = 0.0  # seconds spent on preparing backends so far
        self._wanted = wanted
        self._log = log
        self._compiler = compiler or Compiler()
        self._compiles = device.type == "cpu"  # compiling has not been measured on a GPU
        self._cases: dict[Hashable, Case] = {}
        self._said: set[str] = set()

    def equip(
        self, stack: Stack, shared: bool, left: int, sample: Callable[[], Sample], watch: Watch
    ) -> None:
        """Give the stack the best backend for its next steps.

        Args:
            stack: the array's tensors. They are unchanged afterwards.
            shared: whether all slots see the same batches.
            left: steps x slots that are still to be done, as far as is known.
            sample: returns some steps to try a backend with.
            watch: is told before a compilation begins. If it says stop, the compilation is left.
        """
        case = self._cases.setdefault(self._key(stack, shared), Case())
        network = stack.network
        if isinstance(network, LoneNetwork) and stack.model.recipe.kinds["compile"]:
            if network.compiled is None and not case.gave_up:
                watch.beat("compiling", COMPILING_S)
                self._compile_module(network, stack, case, sample(), shared)
                watch.beat()
            self.told = f"{case.told}, 1 at a time"
            return
        way = self._worth_trying(stack, case, left, shared)
        if way is not None:
            case.tried.add(way)
            watch.beat("compiling", COMPILING_S)
            started = time.perf_counter()
            self._try(way, stack, case, sample(), shared, watch)
            self.prepared_s += time.perf_counter() - started
            watch.beat()
        stack.use(case.whole)
        told = case.told or _explain_unprepared(stack, case, self._compiles)
        self.told = f"{told}, {stack.width} at a time"

    def note(self, stack: Stack, shared: bool, slot_steps: int, seconds: float) -> None:
        """Record how long steps took."""
        case = self._cases.setdefault(self._key(stack, shared), Case())
        if case.whole is None:
            case.slot_steps += slot_steps
            case.seconds += seconds

    def _worth_trying(self, stack: Stack, case: Case, left: int, shared: bool) -> str | None:
        ways = [
            way
            for way in (COMPILED, TRACED)
            if way not in case.tried and (way == TRACED or self._compiles)
        ]
        if stack.model.structure.alone or not ways or COMPILED in case.tried:
            return None
        if not stack.whole_batches:
            return None
        if self._wanted != AUTO:
            return self._wanted if self._wanted in ways else None
        if not case.slot_steps:
            return None  # the time of a step is not known yet
        work_s = max(left, case.slot_steps) * case.seconds / case.slot_steps
        if work_s <= TRACING_S:
            return None
        saved = {
            way: work_s * (1 - 1 / self._gain(stack, way)) - self._cost_s(stack, shared, way)
            for way in ways
        }
        best = max(ways, key=lambda way: saved[way])
        if saved[best] <= 0:
            return None
        return best

    def _gain(self, stack: Stack, way: str) -> float:
        kind = _kind(stack)
        return max(1e-9, self._compiler.costs.gain(f"{kind}/{way}", GUESSED_GAINS[kind, way]))

    def _cost_s(self, stack: Stack, shared: bool, way: str) -> float:
        return TRACING_S + (
            self._compiler.costs.cost_s(self._name(stack, shared)) if way == COMPILED else 0.0
        )

    def _try(
        self, way: str, stack: Stack, case: Case, sample: Sample, shared: bool, watch: Watch
    ) -> None:
        """Prepare a backend and keep it if it is faster."""
        started = time.perf_counter()
        try:
            whole = self._prepare(way, stack, sample, shared, watch)
            prepared_s = time.perf_counter() - started
            wrong, gain = _compare(stack, lambda on: stack.use(whole if on else None), sample)
        except StoppedMeanwhile:
            return
        except (CompilerMissing, Untraceable) as error:
            self._give_up(case, way, str(error))
            return
        except Exception as error:
            # The tracer, the compiler or its tools may raise anything. Eager steps go on.
            self._give_up(case, way, _first_line(error))
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

    def _compile_module(
        self, network: LoneNetwork, stack: Stack, case: Case, sample: Sample, shared: bool
    ) -> None:
        """Compile the module of a model that trains alone, as its trial asks.

        It is used even if it is slower, so that the numbers do not depend on what else the machine
        does.
        """
        started, first, model, gain = time.perf_counter(), not case.told, stack.model, 1.0
        wrong: str | None
        try:
            if model.stateful is not None:
                raise CompilerMissing(f"it would be compiled again and again: {model.stateful}")
            if model.recipe.values["activation_l1"]:
                raise CompilerMissing("activation_l1 reads activations inside the model")
            call = self._compiler.compile_module(model.module, self._name(stack, shared))

            def use(compiled: bool) -> None:
                network.compiled = call if compiled else None

            wrong, gain = _compare(stack, use, sample, TIMED_ROUNDS if first else 0)
        except CompilerMissing as error:
            wrong = str(error)
        except Exception as error:
            # As for steps of arrays. What the model itself raises, the eager step raises again.
            wrong = _first_line(error)
        self.prepared_s += time.perf_counter() - started
        if wrong is not None:
            network.compiled, case.gave_up = None, True
            self._give_up(case, COMPILED, wrong)
            return
        network.compiled = call
        if first:
            prepared_s = time.perf_counter() - started
            case.told = f"{COMPILED}: {gain:.2g} times as fast as plain steps"
            self._log(f"steps of 1 trial: {case.told} ({prepared_s:.1f} s to prepare)")

    def _prepare(self, way: str, stack: Stack, sample: Sample, shared: bool, watch: Watch) -> Whole:
        if way == COMPILED and (why := self._compiler.missing()) is not None:
            raise CompilerMissing(why)
        inputs, columns = stack.ready(sample.inputs, sample.plan, 0)
        batch, keys = Batch(inputs, sample.targets, columns), sample.plan.keys[0]
        graph, parts = trace(stack, shared, batch, keys, to_compile=way == COMPILED)
        if way == TRACED:
            return Graph(graph, sorted(columns), compiled=False, parts=parts)
        examples, name = copy_inputs(stack, batch, keys), self._name(stack, shared)
        run = run_until(watch.stopping, lambda: self._compiler.compile(graph, examples, name))
        return Graph(run, sorted(columns), compiled=True, parts=parts)

    def _give_up(self, case: Case, way: str, why: str) -> None:
        case.told = f"{EAGER}: {why}" if case.whole is None else case.told
        if why not in self._said:
            self._said.add(why)
            self._log(f"steps are not {way}: {why}; training goes on without")

    def _key(self, stack: Stack, shared: bool) -> Hashable:
        return stack.model.structure, stack.form, shared

    def _name(self, stack: Stack, shared: bool) -> str:
        """Return a name of this kind of step, under which its costs are recorded.

        It is the same in every process.
        """
        told = (stack.model.frame, stack.model.recipe.key, stack.form, shared)
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def run_until(stopping: Callable[[], bool], make: Callable[[], Made]) -> Made:
    """Return what ``make`` returns, but do not wait for it once the worker is told to stop.

    Imports and compilations look at no order to stop, and take longer than a scheduler waits. So
    they run in a thread of their own. A thread that is left ends with the process.

    Raises:
        StoppedMeanwhile: the worker was told to stop.
        BaseException: what ``make`` raises.
    """
    made: list[Made] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            made.append(make())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="compiling", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_S)
        if stopping() and thread.is_alive():
            raise StoppedMeanwhile
    if raised:
        raise raised[0]
    return made[0]


def _kind(stack: Stack) -> str:
    if isinstance(stack.network, ChainNetwork):
        return "chain"
    return "lone" if isinstance(stack.network, LoneNetwork) else "stacked"


def _plainly(stack: Stack) -> str:
    """Return what the eager steps of this stack are called."""
    return "plain" if isinstance(stack.network, LoneNetwork) else EAGER


def _explain_unprepared(stack: Stack, case: Case, compiles: bool) -> str:
    if stack.model.structure.alone:
        return "plain: a model that cannot be stacked trains alone"
    if not stack.whole_batches:
        return f"{_plainly(stack)}: accumulate computes each batch in pieces"
    if not compiles:
        return f"{_plainly(stack)}: compiling is for CPUs so far"
    why = (
        "compiling would take longer than it saves"
        if case.slot_steps
        else "the first steps tell what compiling would save"
    )
    return f"{_plainly(stack)}: {why}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _compare(
    stack: Stack, use: Callable[[bool], None], sample: Sample, rounds: int = TIMED_ROUNDS
) -> tuple[str | None, float]:
    """Compare a prepared step with the eager one. The stack is unchanged afterwards.

    Args:
        stack: the array's tensors.
        use: makes the following steps prepared ones, or eager ones.
        sample: the steps.
        rounds: that are timed, after one that is not.

    Returns:
        What they disagree on, or None, and how many times as fast the prepared step is.
    """
    kept = {name: tensor.clone() for name, tensor in stack.rows.items()}
    found: list[tuple[StepResult, Tensor]] = []
    seconds = [float("inf"), float("inf")]
    try:
        for position in range(2 * (rounds + 1)):
            way = position % 2
            use(bool(way))
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
        use(False)
        for name, tensor in kept.items():
            stack.rows[name].copy_(tensor)
    loose = BF16_TOLERANCE if stack.model.recipe.kind("precision") == BF16 else LOOSE_TOLERANCE
    return _difference(found[0], found[1], loose), seconds[0] / seconds[1] if rounds else 1.0


def _difference(
    eager: tuple[StepResult, Tensor], other: tuple[StepResult, Tensor], loose: float
) -> str | None:
    """Return what differs between two steps from the same state, or None.

    Slots are compared one by one. Exploded slots are ignored. ``loose`` is the tolerance in
    float32.
    """
    (mine, update), (theirs, other_update) = eager, other
    limit = TOLERANCE.get(update.dtype, loose)
    gaps = {
        "loss": (mine.loss - theirs.loss).abs() / mine.loss.abs().clamp(min=1),
        "penalty": (mine.penalty - theirs.penalty).abs() / mine.penalty.abs().clamp(min=1),
        "update": _norm(update - other_update)
        / _norm(update).clamp(min=torch.finfo(update.dtype).tiny),
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
