"""`worker profile`: the time of each part of a training step, for the middle of the space."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import torch
from rich.table import Table

from common.console import open_console
from common.errors import TaskError
from common.folder.chosen import Chosen
from common.search.search_file import Search
from common.search.trial import Claim, Fence, Trial, trial_id, trial_seed
from common.search.values import Hyperparameters
from worker.checks.plan import centre
from worker.tasks import Loop, trees
from worker.tasks.loader import load_chosen
from worker.training.engine.array import TrialArray
from worker.training.engine.engine import Engine, TrainingOptions
from worker.training.math.update import GROUP
from worker.training.stacked.monitor import is_watched
from worker.training.stacked.step import Pace

ROUNDS = 7  # the fastest round counts, as other processes disturb some
LEAST_S = 0.01  # duration of a round; a shorter one measures mostly the clock
STAGE = "profile"
CPU = torch.device("cpu")


class Part(NamedTuple):
    """One part of an epoch's work, as time per step."""

    name: str
    seconds: float  # per step, all slots together


class Quiet:
    """A ``Watch`` that does nothing."""

    def beat(self, phase: str = "training", limit_s: float | None = None) -> None:
        """See ``Watch``."""

    def lost(self) -> tuple[str, ...]:
        """See ``Watch``."""
        return ()

    def stopping(self) -> bool:
        """See ``Watch``."""
        return False


def profile(chosen: Chosen, data_dir: Path, widths: Sequence[int], backend: str) -> None:
    """Print a table with a row per part of the step and a column per width.

    The unit is microseconds per trial and step.

    Raises:
        TaskError: the task cannot be loaded, or it is a loop of its own.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    task = load_chosen(chosen, data_dir)
    if isinstance(task, Loop):
        raise TaskError(
            f"task {chosen.search.task!r} is a loop of its own, whose steps are not visible from "
            "outside; profile it with a profiler of its framework, such as torch.profiler inside "
            "train(trial)"
        )
    values = centre(chosen.search.space)
    columns, told = {}, []
    for width in widths:
        engine = build_engine(chosen.search, task, backend, width)
        array = _array(engine, values, width)
        columns[array.width] = parts(array)
        array.advance(Quiet())  # this prepares and times the backend
        told.append(engine.backend)
    _draw(chosen.search, columns, told)


def build_engine(
    search: Search, task: object, backend: str, width: int | None, device: torch.device = CPU
) -> Engine:
    """Return an engine of the search.

    ``width`` is the width of its arrays. With None the engine chooses.
    """
    say: Callable[[str], None] = lambda message: click.echo(message, err=True)  # noqa: E731
    options = TrainingOptions(
        device,
        search.seed,
        search.task,
        say,
        explosion_factor=search.explosion_factor,
        explosion=search.explosion,
        width=width,
        metric=search.metric,
        mode=search.mode,
        backend=backend,
    )
    return Engine(task, options)  # type: ignore[arg-type]


def _array(engine: Engine, values: Hyperparameters, width: int) -> TrialArray:
    entries = [engine.builder.entry(build_claim(index, values)) for index in range(width)]
    first = entries[0].model
    entries = entries[:1] if first.structure.alone else entries
    return TrialArray(
        entries,
        engine.builder.shapes(first),
        engine.builder.setting(),
        engine.builder.backends,
    )


def build_claim(index: int, values: Hyperparameters) -> Claim:
    """Return a made-up trial with this configuration."""
    trial = Trial(
        trial_id(STAGE, index), STAGE, index, trial_seed(0, STAGE, index), 1.0, values, "{}"
    )
    return Claim(trial, Fence(trial.id, 1, STAGE))


def parts(array: TrialArray) -> list[Part]:
    """Return each part of an eager step of the array.

    What happens once per epoch is spread over its steps.
    """
    with torch.no_grad():
        return _step_parts(array) + _epoch_parts(array)


def _step_parts(array: TrialArray) -> list[Part]:
    stack, network, train = array.stack, array.stack.network, array.parts.train
    rows = array.batches.rows(0, 1)
    plan = stack.plan(rows, True, Pace.start(array.width))
    raw, targets = trees.pick(train.inputs, rows[0]), trees.pick(train.targets, rows[0])
    keys, noise = plan.keys[0], stack.noise
    inputs, columns = stack.ready(raw, plan, 0)
    shared = stack.is_shared(True)
    losses = stack.objective(
        network.forward(inputs, shared, noise.masks), targets, stack.objective_values
    )
    own = {
        name: column
        for name, column in columns.items()
        if name.partition(GROUP)[0] not in ("l2", "l1", "shrink")
    }

    def forward() -> None:
        network.forward(inputs, shared, noise.masks)

    def backward() -> None:
        forward()
        network.backward(trees.map_leaves(torch.clone, losses.gradient))

    outputs = trees.map_leaves(torch.clone, network.forward(inputs, shared, noise.masks))
    noise_s = _seconds(lambda: noise.fill(keys, stack.rows["threshold"], stack.rows["scale"]))
    forward_s, whole_s = _seconds(forward), _seconds(lambda: stack.step(raw, targets, plan, 0))
    bare_s, moved_s = (
        _seconds(lambda: stack.move(own, {})),
        _seconds(lambda: stack.move(columns, stack.limits)),
    )
    found = [
        Part(
            "batch gathering",
            _seconds(lambda: trees.pick((train.inputs, train.targets), rows[0])),
        ),
        Part("noise", noise_s),
        Part("augmentation", max(0.0, _seconds(lambda: stack.ready(raw, plan, 0)) - noise_s)),
        Part("forward", forward_s),
        Part(
            "loss",
            _seconds(
                lambda: stack.objective(
                    trees.map_leaves(torch.clone, outputs), targets, stack.objective_values
                )
            ),
        ),
        Part("backward", max(0.0, _seconds(backward) - forward_s)),
        Part("regularisation", max(0.0, moved_s - bare_s)),
        Part("update", bare_s),
    ]
    return [*found, Part("whole step", whole_s)]


def _epoch_parts(array: TrialArray) -> list[Part]:
    """Return the time per step of watching and evaluation."""
    stack, per_epoch = array.stack, array.batches.per_epoch
    rows = array.batches.rows(0, 1)
    plan = stack.plan(rows, True, Pace.start(array.width))
    train = array.parts.train
    inputs, targets = trees.pick(train.inputs, rows[0]), trees.pick(train.targets, rows[0])

    def look() -> None:
        looked = stack.step(inputs, targets, plan, 0, look=True).looked
        if looked is not None:
            array.monitor.after_step(looked.before, stack.rows["flat"], looked.gradients)

    n_looks = sum(is_watched(step, per_epoch) for step in range(per_epoch))
    look_s = max(0.0, _seconds(look) - _seconds(lambda: stack.step(inputs, targets, plan, 0)))
    return [
        Part("watching", look_s * n_looks / per_epoch),
        Part(
            "evaluation",
            _seconds(lambda: array.validation(array.stack, array.monitor, Quiet())) / per_epoch,
        ),
    ]


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds of one call, in the fastest of several rounds."""
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
        table.add_row(
            row[0].name,
            *(
                f"{part.seconds / width * 1e6:.1f}"
                for part, width in zip(row, columns, strict=True)
            ),
        )
    console = open_console()
    console.print(table)
    for line in told:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
