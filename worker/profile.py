"""`worker profile`: where the time of a training step goes, for the middle of a search's space."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import torch
from rich.console import Console
from rich.table import Table

from common.errors import TaskError
from common.search import Search
from common.select import Chosen
from common.space import Hyperparameters
from common.trial import Claim, Fence, Trial, trial_id, trial_seed
from worker.checks.command import PLAIN_WIDTH, task_of
from worker.checks.plan import centre
from worker.tasks import Loop, load_task
from worker.training.array import TrialArray
from worker.training.engine import Engine
from worker.training.interface import Job
from worker.training.monitor import watched
from worker.training.step import Pace

ROUNDS = 7  # the fastest of so many: other processes come and go
LEAST_S = 0.01  # of a round: shorter ones tell more of the clock
STAGE = "profile"


class Part(NamedTuple):
    """One part of an epoch's work, spread over its steps."""

    name: str
    seconds: float  # a step, all slots together


class Quiet:
    """A watch that nobody looks at."""

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        """See ``Watch``."""

    def lost(self) -> tuple[str, ...]:
        """See ``Watch``."""
        return ()

    def stopping(self) -> bool:
        """See ``Watch``."""
        return False


def profile(chosen: Chosen, data_dir: Path, widths: Sequence[int], backend: str) -> None:
    """Prints a table: a row a part of the step, a column a width, in microseconds a trial and step.

    Raises:
        TaskError: the task cannot be loaded, or is a loop of its own.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    spec, folder = task_of(chosen)
    task = load_task(spec, folder, data_dir)
    if isinstance(task, Loop):
        raise TaskError(
            f"task {spec!r} is a loop of its own, whose steps nobody else sees; profile it with a profiler of its framework, "
            "such as torch.profiler inside train(trial)"
        )
    values = centre(chosen.search.space)
    columns, told = {}, []
    for width in widths:
        engine = _engine(chosen.search, task, backend, width)
        array = _array(engine, values, width)
        columns[array.width] = parts(array)
        array.advance(Quiet())  # prepares the backend and times it
        told.append(engine.backend)
    _draw(chosen.search, columns, told)


def _engine(search: Search, task: object, backend: str, width: int) -> Engine:
    say: Callable[[str], None] = lambda message: click.echo(message, err=True)  # noqa: E731
    options = {"search_seed": search.seed, "task_name": search.task, "explosion_factor": search.explosion_factor}
    return Engine(
        task,  # type: ignore[arg-type]
        torch.device("cpu"),
        log=say,
        width=width,
        metric=search.metric,
        mode=search.mode,
        backend=backend,
        **options,  # type: ignore[arg-type]
    )


def _array(engine: Engine, values: Hyperparameters, width: int) -> TrialArray:
    entries = [engine.entry(_job(index, values)) for index in range(width)]
    first = entries[0].model
    entries = entries[:1] if first.structure.alone else entries
    return TrialArray(entries, engine.shapes(first) or [], engine.setting(), engine.backends)


def _job(index: int, values: Hyperparameters) -> Job:
    trial = Trial(trial_id(STAGE, index), STAGE, index, trial_seed(0, STAGE, index), 1.0, values, "{}")
    return Job(Claim(trial, Fence(trial.id, 1, STAGE)))


def parts(array: TrialArray) -> list[Part]:
    """Each part of an eager step of the array, what happens once an epoch spread over its steps."""
    with torch.no_grad():
        return _step_parts(array) + _epoch_parts(array)


def _step_parts(array: TrialArray) -> list[Part]:
    stack, network, train = array.stack, array.stack.network, array.parts.train
    rows = array.batches.rows(0, 1)
    plan = stack.plan(rows, True, Pace.start(array.width))
    raw, targets = train.inputs[rows[0]], train.targets[rows[0]]
    keys, noise = plan.keys[0], stack.noise
    inputs, columns = stack.ready(raw, plan, 0)
    shared = stack.shared(True)
    losses = stack.objective(network.forward(inputs, shared, noise.masks), targets, stack.objective_values)
    own = {name: column for name, column in columns.items() if name not in ("l2", "l1", "shrink")}

    def forward() -> None:
        network.forward(inputs, shared, noise.masks)

    def backward() -> None:
        forward()
        network.backward(losses.gradient.clone())

    outputs = network.forward(inputs, shared, noise.masks).clone()
    noise_s = _seconds(lambda: noise.fill(keys, stack.rows["threshold"], stack.rows["scale"]))
    forward_s, whole_s = _seconds(forward), _seconds(lambda: stack.step(raw, targets, plan, 0))
    bare_s, moved_s = _seconds(lambda: stack.move(own, {})), _seconds(lambda: stack.move(columns, stack.limits))
    found = [
        Part("batch gathering", _seconds(lambda: (train.inputs[rows[0]], train.targets[rows[0]]))),
        Part("noise", noise_s),
        Part("augmentation", max(0.0, _seconds(lambda: stack.ready(raw, plan, 0)) - noise_s)),
        Part("forward", forward_s),
        Part("loss", _seconds(lambda: stack.objective(outputs.clone(), targets, stack.objective_values))),
        Part("backward", max(0.0, _seconds(backward) - forward_s)),
        Part("regularisation", max(0.0, moved_s - bare_s)),
        Part("update", bare_s),
    ]
    return [*found, Part("whole step", whole_s)]


def _epoch_parts(array: TrialArray) -> list[Part]:
    """Watching and evaluation, by the step."""
    stack, per_epoch = array.stack, array.batches.per_epoch
    rows = array.batches.rows(0, 1)
    plan = stack.plan(rows, True, Pace.start(array.width))
    inputs, targets = array.parts.train.inputs[rows[0]], array.parts.train.targets[rows[0]]

    def look() -> None:
        looked = stack.step(inputs, targets, plan, 0, look=True).looked
        if looked is not None:
            array.monitor.after_step(looked.before, stack.rows["flat"], looked.gradients)

    n_looks = sum(watched(step, per_epoch) for step in range(per_epoch))
    look_s = max(0.0, _seconds(look) - _seconds(lambda: stack.step(inputs, targets, plan, 0)))
    return [
        Part("watching", look_s * n_looks / per_epoch),
        Part("evaluation", _seconds(lambda: array.validation(array.stack, array.monitor, Quiet())) / per_epoch),
    ]


def _seconds(work: Callable[[], object]) -> float:
    """Of the fastest round; each is long enough for the clock."""
    work()
    started = time.perf_counter()
    work()
    n = max(1, round(LEAST_S / max(time.perf_counter() - started, 1e-7)))
    passed = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(n):
            work()
        passed.append((time.perf_counter() - started) / n)
    return min(passed)


def _draw(search: Search, columns: dict[int, list[Part]], told: Sequence[str]) -> None:
    table = Table(title=f"{search.name}: microseconds a trial and step, eager, one thread")
    table.add_column("part")
    for width in columns:
        table.add_column(f"{width} at a time" if width > 1 else "alone", justify="right")
    rows = zip(*columns.values(), strict=True)
    for row in rows:
        table.add_row(row[0].name, *(f"{part.seconds / width * 1e6:.1f}" for part, width in zip(row, columns, strict=True)))
    console = Console()
    console = console if console.is_terminal else Console(width=PLAIN_WIDTH)
    console.print(table)
    for line in told:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
