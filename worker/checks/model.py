"""Checks of a model: first loss, symmetry, gradient, learning. They run per configuration."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from common.search.hyperparameters import SCHEDULES, UPDATES
from common.search.values import Hyperparameters
from worker.checks import gradient, learning, loss, metrics, overfit, symmetry
from worker.checks.errors import explain_task_error
from worker.checks.plan import Configuration, quiet
from worker.checks.report import CENTRE, Figure, Finding, Status
from worker.checks.subject import Subject
from worker.checks.training import Portion, claim_of, engine_of, spread
from worker.tasks import trees
from worker.tasks.base import Data, Part, Task, model_of, no_exit, own_metrics
from worker.tasks.trees import Tree
from worker.training.engine.builder import USED
from worker.training.engine.engine import Engine
from worker.training.model.lazy import give_sizes

# Most seconds for each check. The digits search needs a fraction of them.
GRADIENT_S, OVERFIT_S, LEARN_S, OPTIONS_S = 1.0, 3.0, 5.0, 2.0
BATCH_S = 0.5  # most seconds of a batch: larger models are checked with fewer examples
# Examples. The gradient check uses few: less rounding and fewer kinks (CS231n notes).
LOSS_ROWS, GRADIENT_ROWS = 256, 8
TIMED_ROWS = 32
SAME_OUTPUTS = 1e-6  # between a model and one loaded from its file, in double precision
# Steps before the gradient is checked again: the weights have left their initial values, and the
# gradient has not vanished.
TRAINED_STEPS = 20
# These options change neither model nor loss. Only their parsing is checked.
WITHOUT_MODEL = frozenset({*UPDATES, *SCHEDULES})


@dataclass(frozen=True)
class Ground:
    """The task, its data and an engine, for checks of several models."""

    task: Task
    n_classes: int | None
    engine: Engine
    seed: int

    @classmethod
    def of(cls, task: Task, data: Data, seed: int) -> Ground:
        """Create the engine for a task.

        Args:
            task: the task.
            data: the examples to check with, not yet preprocessed.
            seed: of the search.
        """
        portion = Portion(task, data, getattr(task, "preprocess", "none"))
        return cls(task, data.n_classes, engine_of(portion, seed), seed)


class Looked:
    """The model of one configuration, with batches to check it on."""

    def __init__(
        self, ground: Ground, values: Hyperparameters, configuration: str = CENTRE
    ) -> None:
        """Build the model twice: as a trial would, and without regularisation and noise.

        Raises:
            TaskError: the engine refuses the model.
            Exception: whatever the model raises.
        """
        self.ground, self.values, self.configuration = ground, values, configuration
        engine = ground.engine
        engine.builder.entry(claim_of(values, seed=ground.seed))
        calm = quiet(values, {"batch_size": GRADIENT_ROWS})
        self.subject = Subject(engine, calm, ground.seed)
        parts = engine.builder.setting().parts(self.subject.model.recipe)
        self.data = Data(parts.train, parts.val, None, ground.n_classes)
        self.few = self.batch(GRADIENT_ROWS)
        self.subject.gradients(self.few)  # tests whether it can be stacked, and warms up
        self.pass_s = self._pass_s()
        self.many = self.batch(max(GRADIENT_ROWS, min(LOSS_ROWS, round(BATCH_S / self.pass_s))))

    def _pass_s(self) -> float:
        """Measure the seconds of a forward and backward pass, per example of a typical batch."""
        timed = self.batch(TIMED_ROWS)
        started = time.perf_counter()
        self.subject.gradients(timed)
        return (time.perf_counter() - started) / len(timed)

    def batch(self, n: int) -> Part:
        """Return ``n`` different training examples, taken from all classes."""
        train = self.data.train
        return train.take(spread(train, n, self.data.n_classes, self.ground.seed))

    def describe_model(self) -> Finding:
        """Return the finding with the model's size and whether it trains in arrays."""
        layout = self.subject.model.layout
        how = "trains in arrays" if self.subject.stacked else "trains one at a time"
        return Finding(
            "model",
            Status.PASSED,
            f"{layout.size} parameters in {len(layout.shapes)} tensors; {how}",
        )

    def first_loss(self) -> Finding:
        """Check the first loss, see ``loss.first``."""
        return loss.first(self.subject, self.many, self.configuration)

    def metrics(self) -> Finding:
        """Check the task's metrics, see ``metrics.numbers``."""
        val, n = self.data.val, max(GRADIENT_ROWS, round(BATCH_S / self.pass_s))
        part = val.take(spread(val, n, self.data.n_classes, self.ground.seed))
        return metrics.numbers(
            own_metrics(self.ground.task), self.subject.stack.predict(part.inputs), part.targets
        )

    def symmetry(self) -> Finding:
        """Check that units differ, see ``symmetry.broken``."""
        return symmetry.broken(self.subject, self.many, self.configuration)

    def gradient(self, when: str, seconds: float = GRADIENT_S) -> Finding:
        """Check the gradient, see ``gradient.compare``."""
        _, gradients = self.subject.gradients(self.few)
        parameters = self.subject.parameters
        until_s = time.monotonic() + seconds
        compared = gradient.compare(
            lambda: self.subject.plain_loss(self.few),
            parameters,
            gradients,
            self.ground.seed,
            until_s,
        )
        return gradient.judge(compared, when, len(parameters), self.configuration)

    def gradient_later(self) -> Finding:
        """Check the gradient again after a few steps."""
        self.subject.train(self.many, TRAINED_STEPS)
        return self.gradient(f"after {TRAINED_STEPS} steps")

    def saving(self) -> Finding:
        """Check that the weights can be saved and loaded, and then predict the same."""
        name, model = "saving", self.subject.model
        try:
            content = self.subject.saved()
            saved = torch.load(io.BytesIO(content), weights_only=True)["model"]
        except Exception as error:
            means = (
                "No weights could be kept: keep tensors, numbers, text, lists and dicts in "
                "get_extra_state(), no functions or objects."
            )
            found = f"the state cannot be saved and read again: {explain_task_error(error)}"
            return Finding(name, Status.FAILED, found, means, configuration=self.configuration)
        fresh = model_of(self.ground.task, self.values)
        give_sizes(fresh, self.few.inputs)
        fresh.double().load_state_dict(saved)
        if model.stateful is not None:
            told = f"its weights are saved and loaded; {model.stateful}"
            means = "A model of the saved weights alone may predict something else."
            return Finding(name, Status.WARNING, told, means, configuration=self.configuration)
        with torch.no_grad():
            predicted = fresh.eval()(self.few.inputs)
        size = _largest_gap(predicted, trees.pick(self.subject.stack.predict(self.few.inputs), 0))
        figures: dict[str, Figure] = {"gap": size, "bytes": len(content)}
        if not size <= SAME_OUTPUTS:
            means = (
                "The model computes with values that its state_dict() lacks: make them parameters "
                "or buffers."
            )
            found = f"a loaded model predicts something else, by {size:.2g}"
            return Finding(name, Status.FAILED, found, means, figures, self.configuration)
        found = f"{len(content)} bytes; a loaded model predicts the same"
        return Finding(name, Status.PASSED, found, "", figures, self.configuration)

    def overfit(self) -> Finding:
        """Check that the model learns a few examples by heart, see ``overfit.twenty``."""
        start = self.subject.gradients(self.many)[0]
        chance = self.subject.objective.chance(self.subject.model.recipe.values)
        return overfit.twenty(
            self.ground.task,
            self.data,
            self.values,
            chance,
            start,
            self.ground.seed,
            OVERFIT_S,
            self.pass_s,
        )

    def learns(self) -> Finding:
        """Check that the model generalises, see ``learning.generalises``."""
        return learning.generalises(
            self.ground.task, self.data, self.values, self.ground.seed, LEARN_S, self.pass_s
        )


def _largest_gap(one: Tree, other: Tree) -> float:
    pairs = zip(trees.list_leaves(one), trees.list_leaves(other), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def of_centre(looked: Looked) -> Iterator[Finding]:
    """Yield the findings of all checks at the centre of the space."""
    yield guard("first loss", looked.first_loss)
    if own_metrics(looked.ground.task):
        yield guard("metrics", looked.metrics)
    yield guard("regularisation", lambda: loss.check_regularisation(looked.subject, looked.few))
    yield guard("saving", looked.saving)
    yield guard("symmetry", looked.symmetry)
    yield guard("gradient at the start", lambda: looked.gradient("at the start"))
    yield guard("overfit", looked.overfit)
    yield guard("learns", looked.learns)
    yield guard("gradient later", looked.gradient_later)  # last, because it moves the weights


def of_options(ground: Ground, options: Sequence[Configuration]) -> tuple[list[Finding], list[str]]:
    """Run the quick checks of each option.

    Returns:
        The findings, and the names of the options for which there was no time.
    """
    until_s = time.monotonic() + OPTIONS_S
    findings: list[Finding] = []
    for number, option in enumerate(options):
        if time.monotonic() > until_s:
            return findings, [left.differs for left in options[number:]]
        findings += _of_option(ground, option)
    return findings, []


def _of_option(ground: Ground, option: Configuration) -> list[Finding]:
    name = "option"
    try:
        if option.name in WITHOUT_MODEL:
            ground.engine.builder.entry(claim_of(option.values, seed=ground.seed))
            return [Finding(name, Status.PASSED, "is understood", configuration=option.differs)]
        with no_exit(USED):
            looked = Looked(ground, option.values, option.differs)
    except Exception as error:
        means = "Every trial with this option would fail: correct model(hp), or remove the option."
        return [
            Finding(
                name, Status.FAILED, explain_task_error(error), means, configuration=option.differs
            )
        ]
    checks = {
        "first loss": looked.first_loss,
        "symmetry": looked.symmetry,
        "gradient": lambda: looked.gradient("at the start", 0.3),
    }
    found = [guard(check, function, option.differs) for check, function in checks.items()]
    if bad := [finding for finding in found if finding.status is not Status.PASSED]:
        return bad
    told = (
        f"first loss {found[0].figures['loss']:.3g}; units differ; the gradient agrees "
        f"(median {found[2].figures['typical']:.0e})"
    )
    return [Finding(name, Status.PASSED, told, configuration=option.differs)]


def guard(name: str, check: Callable[[], Finding], configuration: str = CENTRE) -> Finding:
    """Return the finding of ``check``. An error in the task's code becomes a failed finding."""
    try:
        with no_exit(USED):
            return check()
    except Exception as error:
        means = "The task's own code raised this; a trial would fail in the same way."
        return Finding(
            name, Status.FAILED, explain_task_error(error), means, configuration=configuration
        )
